"""List, read and copy files at a URL through fsspec. Safe to use after a fork.

A request that fails is repeated, then reported as one error; a missing file is not an error. Every read has a size
limit, whatever size the server states, and every request has a time limit. Object stores give sizes first.

For http(s), the session, with its headers and accounts, is that of fsspec's HTTP file system; the bodies are read here.
They are read and counted in pieces, so a wrong Content-Length, an endless body or a small body that decompresses to
gigabytes cannot fill the memory. After the first `WAIT_S` seconds, a body must arrive at `LEAST_BYTES_PER_S` at least.
Servers are asked not to compress; gzip and deflate are decompressed nevertheless.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import sys
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from fsspec.asyn import sync
from fsspec.callbacks import Callback

from featurecache.errors import CorruptStoreError, FeatureCacheError, StoreError
from featurecache.files.publish import TemporaryFile, write_error

WAIT_S = 60.0
"""Time limit for the connection, for the response, and for the first piece of the body."""
LEAST_BYTES_PER_S = 16 << 10
PIECE_BYTES = 64 << 10
CONCURRENT = 8
MAX_LISTING_BYTES = 64 << 20
GONE = (404, 410)

_LINK = re.compile(rb"""<a\s(?:[^>]*?\s)?href\s*=\s*["']([^"']{1,4096})["']""", re.IGNORECASE)


def http_session_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return fsspec's storage options with time limits and without automatic decompression."""
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=WAIT_S, sock_read=WAIT_S)
    headers = {"Accept-Encoding": "identity", **options.get("headers", {})}
    client = {"timeout": limits, **options.get("client_kwargs", {}), "auto_decompress": False}
    return {**options, "headers": headers, "client_kwargs": client}


async def http_get(fs: Any, url: str, max_bytes: int, write: Callable[[bytes], object]) -> None:
    """Pass the body of a file to `write`, piece by piece.

    Raises:
        FileNotFoundError: the server has no such file.
        CorruptStoreError: the file is larger than `max_bytes`, or compressed in an unknown way.
        TimeoutError: the server does not answer, or sends more slowly than `LEAST_BYTES_PER_S`.
    """

    def too_large(got: str) -> CorruptStoreError:
        return CorruptStoreError(url, expected=f"at most {max_bytes} bytes", got=got)

    session = await fs.set_session()
    async with asyncio.timeout(2 * WAIT_S):
        response = await session.get(fs.encode_url(url), **fs.kwargs)
    try:
        if response.status in GONE:
            raise FileNotFoundError(url)
        response.raise_for_status()
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding == "identity" and (response.content_length or 0) > max_bytes:
            raise too_large(str(response.content_length))
        length = 0
        async for piece in _decoded(_pieces(response.content), encoding, url):
            length += len(piece)
            if length > max_bytes:
                raise too_large("more")
            write(piece)
    finally:
        response.close()


async def _pieces(body: Any) -> AsyncIterator[bytes]:
    """Yield the pieces of a body; TimeoutError if they arrive too slowly."""
    began, length = time.monotonic(), 0
    while True:
        allowed_s = WAIT_S + length / LEAST_BYTES_PER_S - (time.monotonic() - began)
        async with asyncio.timeout(max(0.0, allowed_s)):
            piece = await body.read(PIECE_BYTES)
        if not piece:
            return
        length += len(piece)
        yield piece


async def _decoded(pieces: AsyncIterator[bytes], encoding: str, url: str) -> AsyncIterator[bytes]:
    """Yield the decompressed content of a body, at most `PIECE_BYTES` at a time."""
    if encoding in ("", "identity"):
        async for piece in pieces:
            yield piece
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise CorruptStoreError(url, expected="a body that is not compressed", got=encoding)
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        async for piece in pieces:
            while piece:
                if inflater.eof:  # a body may consist of several gzip members
                    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
                unpacked = inflater.decompress(piece, PIECE_BYTES)
                piece = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
                yield unpacked
        while not inflater.eof and (rest := inflater.decompress(b"", PIECE_BYTES)):
            yield rest
    except zlib.error as error:
        raise CorruptStoreError(url, expected=f"a body packed by {encoding}", got=str(error)) from error
    if not inflater.eof:
        raise CorruptStoreError(url, expected=f"a whole body packed by {encoding}", got="one that was cut short")


async def http_get_all(fs: Any, urls: Mapping[str, str], max_bytes: int, total_bytes: int) -> dict[str, bytes]:
    """Return the bodies of existing files by the keys of `urls`. Several requests run at once.

    Raises:
        CorruptStoreError: a file is larger than `max_bytes`, or all together than `total_bytes`.
    """
    slots = asyncio.Semaphore(CONCURRENT)
    bodies: dict[str, bytearray] = {}
    length = 0

    async def fetch(key: str, url: str) -> None:
        body = bytearray()

        def write(piece: bytes) -> None:
            nonlocal length
            length += len(piece)
            if length > total_bytes:
                raise CorruptStoreError(url, expected=f"files of at most {total_bytes} bytes together", got="more")
            body.extend(piece)

        async with slots:
            try:
                await http_get(fs, url, max_bytes, write)
            except FileNotFoundError:
                return
        bodies[key] = body

    async with asyncio.TaskGroup() as group:
        for key, url in urls.items():
            group.create_task(fetch(key, url))
    return {key: bytes(bodies[key]) for key in urls if key in bodies}


async def http_names_below(fs: Any, url: str) -> list[str] | None:
    """Return the names below a folder that its page links to; None if the page has no such links."""
    page = bytearray()
    url = url.rstrip("/") + "/"
    await http_get(fs, url, MAX_LISTING_BYTES, page.extend)
    place = urlsplit(url)
    names = set()
    for link in _LINK.findall(bytes(page)):
        target = urlsplit(urljoin(url, link.decode("utf-8", "replace")))
        below = target.path.removeprefix(place.path).strip("/")
        if target.netloc == place.netloc and target.path.startswith(place.path) and below and "/" not in below:
            names.add(unquote(below))
    return sorted(names) or None


ATTEMPTS = 3
MAX_METADATA_BYTES = 2 << 30
"""Maximum total size of files that are read together; the records of ten million clips need this much."""
PAUSE_S = 0.5
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

_TRANSPORT_ERRORS = {
    "aiohttp": "ClientError",
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "google.auth.exceptions": "GoogleAuthError",
}
"""Base classes of transport errors besides OSError, by module. A module that is not loaded raised none."""

Result = TypeVar("Result")


class RemoteFiles:
    """The files below a URL, by relative path."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.url = url.rstrip("/")
        self._options = dict(options)
        self._is_http = self.url.startswith(("http://", "https://"))
        self._pid = 0

    def read(self, path: str, max_bytes: int) -> bytes | None:
        """Return the bytes of a file, or None if it does not exist.

        Raises:
            CorruptStoreError: the file is larger than `max_bytes`.
            StoreError: the server does not answer, or refuses the request.
        """
        return self.read_all({path: None}, max_bytes).get(path)

    def read_all(self, sizes: Mapping[str, int | None], max_bytes: int) -> dict[str, bytes]:
        """Return the bytes of those files that exist; `sizes` maps paths to sizes, None if unknown.

        Several files are read at once if fsspec can.

        Raises:
            CorruptStoreError: a file is larger than `max_bytes`, or all together than `MAX_METADATA_BYTES`.
            StoreError: the server does not answer, or refuses the request.
        """
        for path, size in sizes.items():
            self._check_size(path, size, max_bytes)
        if not sizes:
            return {}
        subject = next(iter(sizes)) if len(sizes) == 1 else ""
        seconds = _seconds_for(max_bytes if len(sizes) == 1 else MAX_METADATA_BYTES)

        def request(fs: Any, base: str) -> dict[str, bytes]:
            if self._is_http:
                urls = {path: f"{base}/{path}" for path in sizes}
                bodies: dict[str, bytes] = sync(fs.loop, http_get_all, fs, urls, max_bytes, MAX_METADATA_BYTES)
                return bodies
            unknown = {path: _size(fs, f"{base}/{path}") for path, size in sizes.items() if size is None}
            for path, size in unknown.items():
                self._check_size(path, size, max_bytes)
            existing = {path: f"{base}/{path}" for path in sizes if unknown.get(path, 0) is not None}
            if len(existing) < 2:
                return {path: fs.cat_file(full_path) for path, full_path in existing.items()}
            contents = fs.cat(list(existing.values()), on_error="omit")
            by_full_path = {_plain_path(full_path): data for full_path, data in contents.items()}
            return {
                path: by_full_path[_plain_path(full_path)]
                for path, full_path in existing.items()
                if _plain_path(full_path) in by_full_path
            }

        bodies = self._request("", request, seconds, subject)
        for path, data in bodies.items():
            self._check_size(path, len(data), max_bytes)
        return bodies

    def listing(self, path: str) -> dict[str, int | None] | None:
        """Return the names in a folder with their sizes, if known; None if the server lists no folder."""

        def request(fs: Any, place: str) -> dict[str, int | None] | None:
            if self._is_http:
                names = sync(fs.loop, http_names_below, fs, place)
                return None if names is None else dict.fromkeys(names)
            listed = fs.ls(place, detail=True, refresh=True)
            return {str(entry["name"]).rstrip("/").rsplit("/", 1)[-1]: entry.get("size") for entry in listed}

        try:
            return self._request(path, request, _seconds_for(MAX_LISTING_BYTES))
        except (FileNotFoundError, NotImplementedError, NotADirectoryError):
            return None

    def fetch(self, path: str, num_bytes: int, file: TemporaryFile) -> None:
        """Copy a file that has `num_bytes` bytes.

        Raises:
            CorruptStoreError: the file is missing, or has another size.
            StoreError: the server does not answer, or refuses the request.
            WriteError: the disk is full or refuses.
        """
        size_limit = _SizeLimit(f"{self.url}/{path}", num_bytes, file)

        def request(fs: Any, place: str) -> None:
            if not self._is_http:
                fs.get_file(place, str(file.path), callback=size_limit)
                return
            os.ftruncate(file.fd, 0)
            os.lseek(file.fd, 0, os.SEEK_SET)
            sync(fs.loop, http_get, fs, place, num_bytes, file.write)

        try:
            self._request(path, request, _seconds_for(num_bytes))
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

    def _request(self, path: str, request: Callable[[Any, str], Result], seconds: float, subject: str = "") -> Result:
        """Call `request` with a file system and a path in it; repeat it if the network fails.

        Each call may take `seconds`.
        """
        fs, base = self._open()
        for attempt in range(ATTEMPTS):
            try:
                return _within(seconds, lambda: request(fs, f"{base}/{path}".rstrip("/")))
            except (FileNotFoundError, NotImplementedError, NotADirectoryError):
                raise
            except _network_errors() as raised:
                error = _first_cause(raised)
                if isinstance(error, FeatureCacheError):
                    raise error from None
                if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                    raise write_error(path, error) from error
                if attempt < ATTEMPTS - 1 and not isinstance(error, PermissionError):
                    time.sleep(PAUSE_S * 2**attempt)
                    continue
                timed_out = isinstance(error, TimeoutError)
                raise StoreError(
                    f"{self.url}/{path or subject}",
                    expected="an answer",
                    got="none in time, or one that came too slowly"
                    if timed_out
                    else f"{type(error).__name__}: {error}",
                    next_step="Check the URL, the network and the access to it; what was fetched is kept.",
                ) from error
        raise AssertionError("unreachable")

    def _open(self) -> tuple[Any, str]:
        """Return the file system of this process, and the base path in it."""
        if self._pid != os.getpid():  # after a fork: connections of the parent process must not be shared
            try:
                from fsspec.core import url_to_fs

                options = http_session_options(self._options) if self._is_http else self._options
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


class _SizeLimit(Callback):  # type: ignore[misc]  # fsspec has no type hints
    """Stops a copy that exceeds its expected size, before it fills the disk."""

    def __init__(self, subject: str, num_bytes: int, file: TemporaryFile) -> None:
        super().__init__()
        self._subject, self._num_bytes, self._file = subject, num_bytes, file

    def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
        """Compare the size; fsspec calls this after every block."""
        if os.fstat(self._file.fd).st_size > self._num_bytes:
            raise CorruptStoreError(self._subject, expected=f"{self._num_bytes} bytes", got="more")


def _network_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of transports; concurrent requests raise them in a group."""
    loaded = ((sys.modules[module], name) for module, name in _TRANSPORT_ERRORS.items() if module in sys.modules)
    return (OSError, ExceptionGroup, *(getattr(module, name) for module, name in loaded))


def _first_cause(error: BaseException) -> BaseException:
    """Return the first exception of a group, or the exception itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _size(fs: Any, place: str) -> int | None:
    """Return the size of a file, 0 if the server does not state it; None if there is no file."""
    try:
        return int(fs.info(place).get("size") or 0)
    except FileNotFoundError:
        return None


def _seconds_for(num_bytes: int) -> float:
    """Return the time limit for a transfer."""
    return 3 * WAIT_S + num_bytes / LEAST_BYTES_PER_S


def _within(seconds: float, call: Callable[[], Result]) -> Result:
    """Return the result of `call`, or raise its exception. A call that does not return stays behind in a thread.

    Raises:
        TimeoutError: the call takes longer than `seconds`.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, Exception):
                raise

    # A daemon thread and no executor: the interpreter would wait at its end for the threads of an executor.
    threading.Thread(target=run, name="featurecache-remote", daemon=True).start()
    finished, _ = wait([future], timeout=seconds)
    if not finished:  # `Future.result` cannot tell its own timeout from a TimeoutError of `call`
        raise TimeoutError(f"no answer in {seconds:.0f} s")
    return future.result()


def _plain_path(path: str) -> str:
    """Return a path in one form for all file systems of fsspec."""
    return path.split("://")[-1].lstrip("/")
