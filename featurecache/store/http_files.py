"""Read files at an http(s) URL with limits for time and for bytes after decompression.

The session, with its headers and accounts, is that of fsspec's HTTP file system. Bodies are read and counted in pieces,
so a wrong Content-Length, an endless body or a small body that decompresses to gigabytes cannot fill the memory. After
the first `WAIT_S` seconds, a body must arrive at `LEAST_BYTES_PER_S` at least. Servers are asked not to compress; gzip
and deflate are decompressed nevertheless.
"""

from __future__ import annotations

import asyncio
import re
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from featurecache.errors import CorruptStoreError

WAIT_S = 60.0
"""Time limit for the connection, for the response, and for the first piece of the body."""
LEAST_BYTES_PER_S = 16 << 10
PIECE_BYTES = 64 << 10
CONCURRENT = 8
MAX_LISTING_BYTES = 64 << 20
GONE = (404, 410)

_LINK = re.compile(rb"""<a\s(?:[^>]*?\s)?href\s*=\s*["']([^"']{1,4096})["']""", re.IGNORECASE)


def session_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return fsspec's storage options with time limits and without automatic decompression."""
    import aiohttp

    limits = aiohttp.ClientTimeout(total=None, sock_connect=WAIT_S, sock_read=WAIT_S)
    headers = {"Accept-Encoding": "identity", **options.get("headers", {})}
    client = {"timeout": limits, **options.get("client_kwargs", {}), "auto_decompress": False}
    return {**options, "headers": headers, "client_kwargs": client}


async def get(fs: Any, url: str, max_bytes: int, write: Callable[[bytes], object]) -> None:
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


async def get_all(fs: Any, urls: Mapping[str, str], max_bytes: int, total_bytes: int) -> dict[str, bytes]:
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
                await get(fs, url, max_bytes, write)
            except FileNotFoundError:
                return
        bodies[key] = body

    async with asyncio.TaskGroup() as group:
        for key, url in urls.items():
            group.create_task(fetch(key, url))
    return {key: bytes(bodies[key]) for key in urls if key in bodies}


async def names_below(fs: Any, url: str) -> list[str] | None:
    """Return the names below a folder that its page links to; None if the page has no such links."""
    page = bytearray()
    url = url.rstrip("/") + "/"
    await get(fs, url, MAX_LISTING_BYTES, page.extend)
    place = urlsplit(url)
    names = set()
    for link in _LINK.findall(bytes(page)):
        target = urlsplit(urljoin(url, link.decode("utf-8", "replace")))
        below = target.path.removeprefix(place.path).strip("/")
        if target.netloc == place.netloc and target.path.startswith(place.path) and below and "/" not in below:
            names.add(unquote(below))
    return sorted(names) or None
