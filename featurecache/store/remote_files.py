"""Files under a URL, by way of fsspec: listed, read whole, copied. Safe to use after a fork.

What the network refuses is tried again, then told as one error; that a file is not there is no error. Nothing is read
beyond its limit, whatever the server says of its size (`http_files` counts as it reads; object stores tell sizes
first), and nothing is waited for without end.
"""

from __future__ import annotations

import errno
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fsspec.asyn import sync
from fsspec.callbacks import Callback

from featurecache.errors import CorruptStoreError, FeatureCacheError, StoreError
from featurecache.files.publish import TemporaryFile, write_error
from featurecache.store import http_files

ATTEMPTS = 3
MAX_METADATA_BYTES = 2 << 30
"""Most that the files read at once may be together; the records of ten million clips are."""
PAUSE_S = 0.5
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

_TRANSPORT_ERRORS = {
    "aiohttp": "ClientError",
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "google.auth.exceptions": "GoogleAuthError",
}
"""Roots of what transports raise beside OSError, by module; one that is not loaded cannot have raised."""

Answer = TypeVar("Answer")


class RemoteFiles:
    """The files under a URL, named by their paths below it."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = url.rstrip("/")
        self._options = dict(options)
        self._is_http = self.url.startswith(("http://", "https://"))
        self._pid = 0

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """A whole file, or None where there is none.

        Raises:
            CorruptStoreError: it is larger than `max_bytes`.
            StoreError: the server does not answer, or refuses.
        """
        return self.read_all({path: None}, max_bytes).get(path)

    def read_all(self, sizes: Mapping[str, int | None], max_bytes: int) -> dict[str, bytes]:
        """Those of many files that are there, whose sizes are known or None; several at once where fsspec can.

        Raises:
            CorruptStoreError: one is larger than `max_bytes`, or all together than `MAX_METADATA_BYTES`.
            StoreError: the server does not answer, or refuses.
        """
        for path, size in sizes.items():
            self._check_size(path, size, max_bytes)
        if not sizes:
            return {}
        subject = next(iter(sizes)) if len(sizes) == 1 else ""
        seconds = _seconds_for(max_bytes if len(sizes) == 1 else MAX_METADATA_BYTES)

        def ask(fs: Any, base: str) -> dict[str, bytes]:
            if self._is_http:
                urls = {path: f"{base}/{path}" for path in sizes}
                return sync(fs.loop, http_files.get_all, fs, urls, max_bytes, MAX_METADATA_BYTES)
            unknown = {path: _size(fs, f"{base}/{path}") for path, size in sizes.items() if size is None}
            for path, size in unknown.items():
                self._check_size(path, size, max_bytes)
            there = [f"{base}/{path}" for path in sizes if unknown.get(path, 0) is not None]
            found = fs.cat(there, on_error="omit") if len(there) > 1 else {place: fs.cat_file(place) for place in there}
            by_place = {_place(place): data for place, data in found.items()}
            return {path: by_place[_place(f"{base}/{path}")] for path in sizes if _place(f"{base}/{path}") in by_place}

        found = self._ask("", ask, seconds, subject)
        for path, data in found.items():
            self._check_size(path, len(data), max_bytes)
        return found

    def listing(self, path: str) -> dict[str, int | None] | None:
        """Names in a folder, with sizes as far as the server tells them; None where it lists nothing."""

        def ask(fs: Any, place: str) -> dict[str, int | None] | None:
            if self._is_http:
                names = sync(fs.loop, http_files.names_below, fs, place)
                return None if names is None else dict.fromkeys(names)
            listed = fs.ls(place, detail=True, refresh=True)
            return {str(each["name"]).rstrip("/").rsplit("/", 1)[-1]: each.get("size") for each in listed}

        try:
            return self._ask(path, ask, _seconds_for(http_files.MAX_LISTING_BYTES))
        except (FileNotFoundError, NotImplementedError, NotADirectoryError):
            return None

    def fetch(self, path: str, num_bytes: int, file: TemporaryFile) -> None:
        """Copy one file, which must have that many bytes.

        Raises:
            CorruptStoreError: it is missing, or has another size.
            StoreError: the server does not answer, or refuses.
            WriteError: the disk is full or refuses.
        """
        bound = _Bound(f"{self.url}/{path}", num_bytes, file)

        def ask(fs: Any, place: str) -> None:
            if not self._is_http:
                fs.get_file(place, str(file.path), callback=bound)
                return
            os.ftruncate(file.fd, 0)
            os.lseek(file.fd, 0, os.SEEK_SET)
            sync(fs.loop, http_files.get, fs, place, num_bytes, file.write)

        try:
            self._ask(path, ask, _seconds_for(num_bytes))
            copied = os.fstat(file.fd).st_size
            got = f"{copied} bytes" if copied != num_bytes else ""
        except FileNotFoundError:
            got = "no file"
        if got:
            raise CorruptStoreError(
                f"{self.url}/{path}",
                expected=f"{num_bytes} bytes, as its record says",
                got=got,
                next_step="Run `fcache verify` where the store is written, and copy it anew.",
            )

    def _check_size(self, path: str, size: int | None, max_bytes: int) -> None:
        if size is not None and size > max_bytes:
            raise CorruptStoreError(f"{self.url}/{path}", expected=f"at most {max_bytes} bytes", got=str(size))

    def _ask(self, path: str, ask: Callable[[Any, str], Answer], seconds: float, subject: str = "") -> Answer:
        """Call with a file system and a place in it, again where the network fails; no call lasts longer than that."""
        fs, base = self._open()
        for attempt in range(ATTEMPTS):
            try:
                return _within(seconds, lambda: ask(fs, f"{base}/{path}".rstrip("/")))
            except (FileNotFoundError, NotImplementedError, NotADirectoryError):
                raise
            except (*_transport_errors(), ExceptionGroup) as raised:
                error = _first(raised)
                if isinstance(error, FeatureCacheError):
                    raise error from None
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise write_error(path, error) from error
                if attempt < ATTEMPTS - 1 and not isinstance(error, PermissionError):
                    time.sleep(PAUSE_S * 2**attempt)
                    continue
                late = isinstance(error, TimeoutError)
                raise StoreError(
                    f"{self.url}/{path or subject}",
                    expected="an answer",
                    got="none in time, or one that came too slowly" if late else f"{type(error).__name__}: {error}",
                    next_step="Check the URL, the network and the access to it; what was fetched is kept.",
                ) from error
        raise AssertionError("unreachable")

    def _open(self) -> tuple[Any, str]:
        if self._pid != os.getpid():  # a connection of the parent process must not be shared
            try:
                from fsspec.core import url_to_fs

                options = http_files.session_options(self._options) if self._is_http else self._options
                self._fs, base = url_to_fs(self.url, skip_instance_cache=self._pid != 0, **options)
            except ImportError as error:
                raise StoreError(
                    self.url,
                    expected="the library for this kind of URL",
                    got=str(error),
                    next_step="Run `pip install 'featurecache[remote]'`.",
                ) from error
            except (ValueError, OSError) as error:
                got = str(error).partition("\n")[0]
                raise StoreError(self.url, expected="a kind of URL that fsspec can open", got=got) from error
            self._base, self._pid = base.rstrip("/"), os.getpid()
        return self._fs, self._base


class _Bound(Callback):
    """Stops a copy that grows beyond what its record says, before it fills the disk."""

    def __init__(self, subject: str, num_bytes: int, file: TemporaryFile) -> None:
        super().__init__()
        self._subject, self._num_bytes, self._file = subject, num_bytes, file

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """Called by fsspec after every piece."""
        if os.fstat(self._file.fd).st_size > self._num_bytes:
            raise CorruptStoreError(self._subject, expected=f"{self._num_bytes} bytes", got="more")


def _transport_errors() -> tuple[type[BaseException], ...]:
    loaded = ((sys.modules[module], name) for module, name in _TRANSPORT_ERRORS.items() if module in sys.modules)
    return (OSError, *(getattr(module, name) for module, name in loaded))


def _first(error: BaseException) -> BaseException:
    """The first cause of what several readings at once raised."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _size(fs: Any, place: str) -> int | None:
    """Bytes of a file as far as they are told, 0 where they are not; None where there is no file."""
    try:
        return int(fs.info(place).get("size") or 0)
    except FileNotFoundError:
        return None


def _seconds_for(num_bytes: int) -> float:
    """How long a transfer of so many bytes may take in all."""
    return 3 * http_files.WAIT_S + num_bytes / http_files.LEAST_BYTES_PER_S


def _within(seconds: float, call: Callable[[], Answer]) -> Answer:
    """Return what `call` returns, or raise what it raises; a transport that never returns is left behind.

    Raises:
        TimeoutError: it takes longer.
    """
    done: queue.SimpleQueue[tuple[Answer | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((call(), None))
        except BaseException as error:
            done.put((None, error))
            if not isinstance(error, Exception):
                raise

    threading.Thread(target=run, name="featurecache-remote", daemon=True).start()
    try:
        answer, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:.0f} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _place(path: str) -> str:
    """A path as every file system of fsspec would write it."""
    return path.split("://")[-1].lstrip("/")
