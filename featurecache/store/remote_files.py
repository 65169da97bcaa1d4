"""Files under a URL, by way of fsspec: listed, read whole, copied. Safe to use after a fork.

What the network refuses is tried again, then told as one error; that a file is not there is no error. Sizes are asked
before anything is read into memory, where the server tells them.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fsspec.callbacks import Callback

from featurecache.errors import CorruptStoreError, StoreError
from featurecache.store.publish import TemporaryFile, write_error

ATTEMPTS = 3
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
        self._pid = 0

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """A whole file, or None where there is none.

        Raises:
            CorruptStoreError: it is larger than `max_bytes`.
            StoreError: the server does not answer, or refuses.
        """
        try:
            size = self._ask(path, lambda fs, place: fs.info(place).get("size"))
            self._check_size(path, size, max_bytes)
            return self._ask(path, lambda fs, place: fs.cat_file(place))
        except FileNotFoundError:
            return None

    def read_all(self, sizes: Mapping[str, int | None], max_bytes: int) -> dict[str, bytes]:
        """Those of many files that are there, whose sizes are known or None; several at once where fsspec can.

        Raises:
            CorruptStoreError: one is larger than `max_bytes`.
            StoreError: the server does not answer, or refuses.
        """
        for path, size in sizes.items():
            self._check_size(path, size, max_bytes)
        if not sizes:
            return {}
        if len(sizes) == 1:  # fsspec answers in another form
            (path,) = sizes
            data = self.read(path, max_bytes)
            return {} if data is None else {path: data}

        def ask(fs: Any, base: str) -> dict[str, bytes]:
            found = fs.cat([f"{base}/{path}" for path in sizes], on_error="omit")
            by_place = {_place(place): data for place, data in found.items()}
            return {path: by_place[_place(f"{base}/{path}")] for path in sizes if _place(f"{base}/{path}") in by_place}

        return self._ask("", ask)

    def listing(self, path: str) -> dict[str, int | None] | None:
        """Names in a folder, with sizes as far as the server tells them; None where it lists nothing."""
        try:
            listed = self._ask(path, lambda fs, place: fs.ls(place, detail=True, refresh=True))
        except (FileNotFoundError, NotImplementedError, NotADirectoryError):
            return None
        return {str(each["name"]).rstrip("/").rsplit("/", 1)[-1]: each.get("size") for each in listed}

    def fetch(self, path: str, num_bytes: int, file: TemporaryFile) -> None:
        """Copy one file, which must have that many bytes.

        Raises:
            CorruptStoreError: it is missing, or has another size.
            StoreError: the server does not answer, or refuses.
            WriteError: the disk is full or refuses.
        """

        bound = _Bound(f"{self.url}/{path}", num_bytes, file)
        try:
            self._ask(path, lambda fs, place: fs.get_file(place, str(file.path), callback=bound))
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

    def _ask(self, path: str, ask: Callable[[Any, str], Answer]) -> Answer:
        """Call with a file system and a place in it, again where the network fails."""
        fs, base = self._open()
        for attempt in range(ATTEMPTS):
            try:
                return ask(fs, f"{base}/{path}".rstrip("/"))
            except (FileNotFoundError, NotImplementedError, NotADirectoryError):
                raise
            except _transport_errors() as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise write_error(path, error) from error
                if attempt < ATTEMPTS - 1 and not isinstance(error, PermissionError):
                    time.sleep(PAUSE_S * 2**attempt)
                    continue
                raise StoreError(
                    f"{self.url}/{path}",
                    expected="an answer",
                    got=f"{type(error).__name__}: {error}",
                    next_step="Check the URL, the network and the access to it; what was fetched is kept.",
                ) from error
        raise AssertionError("unreachable")

    def _open(self) -> tuple[Any, str]:
        if self._pid != os.getpid():  # a connection of the parent process must not be shared
            try:
                from fsspec.core import url_to_fs

                self._fs, base = url_to_fs(self.url, skip_instance_cache=self._pid != 0, **self._options)
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


def _place(path: str) -> str:
    """A path as every file system of fsspec would write it."""
    return path.split("://")[-1].lstrip("/")
