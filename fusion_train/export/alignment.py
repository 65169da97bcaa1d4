"""Lay out a safetensors file so that its tensors can be used where they are mapped.

A loader maps the file; CPU kernels want tensors at multiples of 64 bytes, and `featurecache.encoders.network.align`
copies those that lie elsewhere. Here the header is padded to a multiple of 64 and tensors whose size is no such
multiple come last, so a model loads without a second copy of its weights: its memory is that of the file.
Content and names stay; only the order of the bytes changes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from featurecache.encoders.network import ALIGNMENT_BYTES
from featurecache.errors import WriteError

LENGTH_BYTES = 8  # of the header's length, little-endian, at the start of the file
BLOCK_BYTES = 16 << 20


def align_file(path: Path) -> None:
    """Rewrite `path` with aligned tensors, in place of itself.

    Raises:
        WriteError: no room for the copy.
    """
    temporary = path.with_name(f".{path.name}.aligned")
    try:
        with path.open("rb") as source, temporary.open("wb") as target:
            header, data_start = _read_header(source)
            metadata = header.pop("__metadata__", None)
            order = sorted(header, key=lambda name: (_size(header[name]) % ALIGNMENT_BYTES != 0, name))
            place, entries = 0, {}
            for name in order:
                size = _size(header[name])
                entries[name] = header[name] | {"data_offsets": [place, place + size]}
                place += size
            text = json.dumps(
                ({"__metadata__": metadata} if metadata else {}) | entries, separators=(",", ":")
            ).encode()
            text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT_BYTES)
            target.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
            for name in order:
                _copy(source, target, data_start + header[name]["data_offsets"][0], _size(header[name]))
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(
            str(path),
            expected="room for a copy while it is laid out",
            got=error.strerror or str(error),
            next_step="Free space and export again.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_header(source: Any) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(source.read(LENGTH_BYTES), "little")
    return json.loads(source.read(length)), LENGTH_BYTES + length


def _size(entry: dict[str, Any]) -> int:
    first, end = entry["data_offsets"]
    return end - first


def _copy(source: Any, target: Any, start: int, size: int) -> None:
    source.seek(start)
    while size > 0:
        block = source.read(min(size, BLOCK_BYTES))
        if not block:
            raise OSError("the file ends before its tensors do")
        target.write(block)
        size -= len(block)
