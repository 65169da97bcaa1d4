"""The file format of plans and commit records: a JSON header and binary columns, without one Python object per clip.

Layout, all numbers little-endian (docs/format.md is normative):

    0   8 bytes      magic
    8   u32          H, bytes of the header
    12  H bytes      header: canonical JSON; "columns" lists [name, dtype, count] in file order
    then each column, at the next multiple of 8 bytes, with zero bytes in between
    then u32         crc32c of all bytes before it

All sizes in a file are compared with the real file size before memory of that size is allocated. This module does not
know the meaning of the columns.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from featurecache.errors import CorruptStoreError
from featurecache.spec import canonical_json

PREFIX = struct.Struct("<8sI")
TRAILER = struct.Struct("<I")
DTYPES = ("|u1", "<u2", "<u4", "<u8", "<f4", "<f8")
MAX_HEADER_BYTES = 64 << 20


def pack(magic: bytes, header: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of a file. Equal content gives equal bytes."""
    listed = [[name, column.dtype.str, int(column.size)] for name, column in columns.items()]
    text = canonical_json({**header, "columns": listed}).encode("ascii")
    parts = [PREFIX.pack(magic, len(text)), text]
    length = PREFIX.size + len(text)
    for column in columns.values():
        padding = -length % 8
        data = np.ascontiguousarray(column).tobytes()
        parts += [b"\0" * padding, data]
        length += padding + len(data)
    body = b"".join(parts)
    return body + TRAILER.pack(google_crc32c.value(body))


def read(path: Path, magic: bytes, max_bytes: int, next_step: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read one file; return its header, and its columns as read-only views of the bytes.

    Raises:
        CorruptStoreError: the file is too large, torn or of another kind, or its checksum differs.
        FileNotFoundError: no such file.
    """
    size = os.stat(path).st_size
    if size > max_bytes:
        raise CorruptStoreError(str(path), expected=f"at most {max_bytes} bytes", got=str(size), next_step=next_step)
    return unpack(path.read_bytes(), magic, str(path), next_step)


def unpack(data: bytes, magic: bytes, subject: str, next_step: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Like `read`, for bytes in memory."""

    def corrupt(expected: str, got: str) -> CorruptStoreError:
        return CorruptStoreError(subject, expected=expected, got=got, next_step=next_step)

    if len(data) < PREFIX.size + TRAILER.size:
        raise corrupt("a whole file", f"{len(data)} bytes")
    actual_magic, header_bytes = PREFIX.unpack_from(data)
    if actual_magic != magic:
        raise corrupt(f"a file that begins with {magic!r}", repr(actual_magic))
    body = memoryview(data)[: -TRAILER.size]
    checksum = google_crc32c.value(np.frombuffer(data, np.uint8, len(body)))
    if checksum != TRAILER.unpack_from(data, len(body))[0]:
        raise corrupt("the checksum its bytes give", "another one")
    if header_bytes > min(len(body) - PREFIX.size, MAX_HEADER_BYTES):
        raise corrupt("a header inside the file", f"{header_bytes} bytes")
    offset = PREFIX.size + header_bytes
    try:
        header = json.loads(bytes(body[PREFIX.size : offset]))
        listed = [(str(name), str(dtype), count) for name, dtype, count in header.pop("columns")]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise corrupt("a JSON header that lists columns", type(error).__name__) from error
    columns = {}
    for name, dtype, count in listed:
        if dtype not in DTYPES or not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise corrupt("a known dtype and a count of items", f"{name}: {dtype!r}, {count!r}")
        offset += -offset % 8
        end = offset + count * np.dtype(dtype).itemsize
        if end > len(body):
            raise corrupt("columns inside the file", f"{name} ends at byte {end} of {len(body)}")
        columns[name] = np.frombuffer(data, dtype, count, offset)
        offset = end
    if offset != len(body):
        raise corrupt(f"{offset + TRAILER.size} bytes", str(len(data)))
    return header, columns


def pack_texts(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return texts joined end to end, and the offsets (n + 1,) at which they begin and the last one ends."""
    ends = np.zeros(len(texts) + 1, "<u4")
    np.cumsum([len(text) for text in texts], out=ends[1:])
    return np.frombuffer(b"".join(texts), "|u1"), ends


def check_texts(columns: Mapping[str, np.ndarray], name: str, count: int, subject: str, next_step: str) -> None:
    """Check that the offsets of a text column fit its bytes.

    Raises:
        CorruptStoreError: they do not.
    """
    text, starts = columns[name], columns[f"{name}_starts"]
    consistent = (
        starts.size == count + 1
        and starts[0] == 0
        and starts[-1] == text.size
        and bool(np.all(np.diff(starts.astype(np.int64)) >= 0))
    )
    if not consistent:
        raise CorruptStoreError(
            subject, expected=f"{count} texts inside {text.size} bytes", got="other offsets", next_step=next_step
        )
