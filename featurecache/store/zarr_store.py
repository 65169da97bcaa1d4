"""The Zarr v3 format: slot i at byte i × row_bytes of a shard, then Zarr's shard index. Any Zarr reader can open it.

    shard file = S slots (holes where a clip has no tokens) · index: (offset, length) u64 × S · crc32c u32

The array is (N, K, D) with chunks (1, K, D) inside shards (S, K, D). Its fill value is NaN, so that another program
cannot mistake a gap for zeros. bfloat16 is declared as uint16 and float8 as uint8; an attribute names the real dtype.
The archive codec compresses rows (Blosc: zstd after a bit shuffle) and stores them in slot order without gaps. The
commit record, not the shard, says which slots have tokens.
Source: Zarr v3 core and sharding-indexed codec specifications.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc

from featurecache.errors import CorruptStoreError
from featurecache.files.publish import TemporaryFile
from featurecache.store.layout import SCALES_ENDING, STORE_FORMAT, FeatureFolder
from featurecache.store.plan import ShardPlan
from featurecache.store.protocols import Status
from featurecache.store.records import NEXT_STEP, CommitRecord, RecordBuilder
from featurecache.store.shard_format import FeatureLayout, RowPart, ShardSink, SpillFile, json_file, row_at

MISSING = 2**64 - 1
INDEX_ENTRY_BYTES = 16
CRC_BYTES = 4
ARCHIVE_CODEC = "blosc-zstd-bitshuffle"
ARCHIVE_LEVEL = 5

_SHARD = re.compile(r"c/[0-9]+/0/0")
_ZARR_DTYPES: dict[str, tuple[str, Any]] = {
    "<f2": ("float16", "NaN"),
    "<f4": ("float32", "NaN"),
    "|i1": ("int8", 0),  # has no NaN; its scales do
    "<u2": ("uint16", 0x7FC0),  # bfloat16's NaN
    "|u1": ("uint8", 0x7F),  # the NaN of e4m3
}


class ZarrFormat:
    """`ShardFormat` of Zarr v3."""

    name = "zarr"
    endings: tuple[str, ...] = (".zarr",)
    codecs: tuple[str, ...] = ("none", ARCHIVE_CODEC)
    spec_copy = "zarr.json"

    def root_files(self) -> dict[str, bytes]:
        attributes = {"featurecache": {"format": STORE_FORMAT}}
        return {"zarr.json": json_file({"zarr_format": 3, "node_type": "group", "attributes": attributes})}

    def folders(self, folder: FeatureFolder, parts: Sequence[RowPart]) -> list[Path]:
        return [_array_folder(folder, part) for part in parts]

    def columns(self, layout: FeatureLayout) -> list[str]:
        if layout.codec == "none":
            return []
        return [part.column(name) for part in layout.parts for name in ("offset", "length", "packed_crc32c")]

    def paths(self, folder: FeatureFolder, shard: int, parts: Sequence[RowPart]) -> list[Path]:
        return shard_paths(folder, shard, parts)

    def is_shard(self, relative: str) -> bool:
        return _SHARD.fullmatch(relative) is not None

    def file_of(self, part: int) -> int:
        return part

    def sink(self, layout: FeatureLayout, shard: int, encoded_ids: list[bytes]) -> ShardSink:
        paths = self.paths(layout.folder, shard, layout.parts)
        return (ZarrSink if layout.codec == "none" else ArchiveSink)(layout, paths, len(encoded_ids))

    def begin(self, record: CommitRecord, slot: int, part: RowPart) -> int | None:
        return slot * part.row_bytes if part.column("length") not in record.columns else None

    def row(self, data: np.ndarray, record: CommitRecord, slot: int, part: RowPart) -> np.ndarray:
        if part.column("length") not in record.columns:
            return row_at(data, record, slot, slot * part.row_bytes, part.row_bytes)
        begin, length = (int(record.columns[part.column(name)][slot]) for name in ("offset", "length"))
        return _unpack(row_at(data, record, slot, begin, length), part, f"shard {record.shard}, slot {slot}")

    def derived_files(self, layout: FeatureLayout, spec_text: bytes, plan: ShardPlan) -> dict[Path, bytes]:
        return {
            _array_folder(layout.folder, part) / "zarr.json": _array_json(layout, spec_text, part, plan.num_rows)
            for part in layout.parts
        }

    def file_problems(
        self, data: np.ndarray, record: CommitRecord, layout: FeatureLayout, number: int, quick: bool
    ) -> list[str]:
        part = layout.parts[number]
        index_bytes = record.shard_rows * INDEX_ENTRY_BYTES + CRC_BYTES
        offsets, lengths = _row_ranges(record, part)
        if data[-index_bytes:].tobytes() != shard_index(record.columns["status"], offsets, lengths, record.shard_rows):
            return ["the shard index is not what the record gives"]
        if quick:
            return []
        if part.column("length") in record.columns:
            return _packed_problems(data, record, part)
        holes = np.flatnonzero(record.columns["status"] != Status.OK).tolist()
        return [
            f"slot {slot} has no tokens but is not a hole"
            for slot in holes
            if data[slot * part.row_bytes : (slot + 1) * part.row_bytes].any()
        ]


class ZarrSink:
    """`ShardSink` of uncompressed shards: every row is written at its final position."""

    def __init__(self, layout: FeatureLayout, paths: list[Path], num_slots: int) -> None:
        self._paths = paths
        self._layout = layout
        self._files: list[TemporaryFile] = []
        for _ in layout.parts:
            self._files.append(TemporaryFile(layout.folder.temporary))

    def put(self, slot: int, rows: Sequence[np.ndarray]) -> None:
        for file, part, row in zip(self._files, self._layout.parts, rows, strict=True):
            file.write_at(row.reshape(-1).view(np.uint8).data, slot * part.row_bytes)

    def holds(self, slot: int, checksums: Sequence[int]) -> bool:
        for file, part, crc in zip(self._files, self._layout.parts, checksums, strict=True):
            file.flush()
            if google_crc32c.value(os.pread(file.fd, part.row_bytes, slot * part.row_bytes)) != crc:
                return False
        return True

    def renumber(self, shard: int, encoded_ids: list[bytes], slots: Sequence[int]) -> None:
        # Rows move to lower offsets of the same file, so this also works on a full disk.
        for file, part in zip(self._files, self._layout.parts, strict=True):
            file.flush()
            size = part.row_bytes
            for new, old in enumerate(slots):
                if new != old:
                    os.pwrite(file.fd, os.pread(file.fd, size, old * size).ljust(size, b"\0"), new * size)
            os.ftruncate(file.fd, len(slots) * size)
        self._paths = shard_paths(self._layout.folder, shard, self._layout.parts)

    def finish(self, builder: RecordBuilder) -> list[tuple[TemporaryFile, Path]]:
        status = builder.column("status")
        for file, part in zip(self._files, self._layout.parts, strict=True):
            offsets = np.arange(status.size, dtype="<u8") * np.uint64(part.row_bytes)
            lengths = np.full(status.size, part.row_bytes, "<u8")
            index = shard_index(status, offsets, lengths, self._layout.shard_rows)
            file.write_at(index, status.size * part.row_bytes)
            file.flush()
        return list(zip(self._files, self._paths, strict=True))

    def close(self) -> None:
        for file in self._files:
            file.close()


class ArchiveSink:
    """`ShardSink` of compressed shards: rows are collected in a spill file and then written in slot order."""

    def __init__(self, layout: FeatureLayout, paths: list[Path], num_slots: int) -> None:
        self._paths = paths
        self._layout = layout
        self._spill = SpillFile[tuple[int, int]](layout.folder.temporary)
        self._checksums: dict[tuple[int, int], int] = {}
        self._files: list[TemporaryFile] = []

    def put(self, slot: int, rows: Sequence[np.ndarray]) -> None:
        for number, row in enumerate(rows):
            packed = blosc.compress(row, b"zstd", ARCHIVE_LEVEL, blosc.BITSHUFFLE, 0)
            self._spill.put((number, slot), packed)
            self._checksums[number, slot] = google_crc32c.value(packed)

    def holds(self, slot: int, checksums: Sequence[int]) -> bool:
        keys = [(number, slot) for number in range(len(checksums))]
        rows = {key: self._spill.read(key) for key in keys}
        return all(row is not None and google_crc32c.value(row) == self._checksums[key] for key, row in rows.items())

    def renumber(self, shard: int, encoded_ids: list[bytes], slots: Sequence[int]) -> None:
        parts = range(len(self._layout.parts))
        keys = {(number, old): (number, new) for new, old in enumerate(slots) for number in parts}
        self._spill.rename(keys)
        self._checksums = {keys[key]: crc for key, crc in self._checksums.items() if key in keys}
        self._paths = shard_paths(self._layout.folder, shard, self._layout.parts)

    def finish(self, builder: RecordBuilder) -> list[tuple[TemporaryFile, Path]]:
        status = builder.column("status")
        while self._files:  # left by a failed commit
            self._files.pop().close()
        for number, part in enumerate(self._layout.parts):
            file = TemporaryFile(self._layout.folder.temporary)
            self._files.append(file)
            offsets, lengths = builder.column(part.column("offset")), builder.column(part.column("length"))
            end = 0
            for slot in np.flatnonzero(status == Status.OK).tolist():
                lengths[slot] = self._spill.copy((number, slot), file)
                offsets[slot] = end
                builder.column(part.column("packed_crc32c"))[slot] = self._checksums[number, slot]
                end += int(lengths[slot])
            file.write(shard_index(status, offsets, lengths, self._layout.shard_rows))
        return list(zip(self._files, self._paths, strict=True))

    def close(self) -> None:
        self._spill.close()
        for file in self._files:
            file.close()


def shard_paths(folder: FeatureFolder, shard: int, parts: Sequence[RowPart]) -> list[Path]:
    """Return the file of each part of a shard."""
    return [_array_folder(folder, part) / "c" / str(shard) / "0" / "0" for part in parts]


def shard_index(status: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, shard_rows: int) -> bytes:
    """Return Zarr's index of a shard: (offset, length) of the rows of ok slots, `MISSING` for others, and a crc32c."""
    index = np.full((shard_rows, 2), MISSING, "<u8")
    slots = np.flatnonzero(status == Status.OK)
    index[slots, 0] = offsets[slots]
    index[slots, 1] = lengths[slots]
    data = index.tobytes()
    return data + struct.pack("<I", google_crc32c.value(data))


def _array_folder(folder: FeatureFolder, part: RowPart) -> Path:
    return folder.root if not part.name else folder.root.with_name(folder.root.name + SCALES_ENDING)


def _packed_problems(data: np.ndarray, record: CommitRecord, part: RowPart) -> list[str]:
    """Return the compressed rows whose bytes changed. Decompression does not notice every change."""
    offsets, lengths, checksums = (record.columns[part.column(name)] for name in ("offset", "length", "packed_crc32c"))
    return [
        f"slot {slot}: compressed bytes contradict their checksum"
        for slot in np.flatnonzero(record.columns["status"] == Status.OK).tolist()
        if google_crc32c.value(data[int(offsets[slot]) : int(offsets[slot] + lengths[slot])]) != checksums[slot]
    ]


def _row_ranges(record: CommitRecord, part: RowPart) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets (n,) and lengths (n,) of the rows of a part."""
    if part.column("length") in record.columns:
        return record.columns[part.column("offset")], record.columns[part.column("length")]
    slots = np.arange(len(record), dtype="<u8")
    return slots * np.uint64(part.row_bytes), np.full(len(record), part.row_bytes, "<u8")


def _unpack(packed: np.ndarray, part: RowPart, subject: str) -> np.ndarray:
    """Decompress a row."""
    header_bytes = int.from_bytes(packed[4:8].tobytes(), "little") if packed.size >= 16 else -1
    if header_bytes != part.row_bytes:  # checked before memory of that size is allocated
        raise CorruptStoreError(
            subject, expected=f"a compressed row of {part.row_bytes} bytes", got=str(header_bytes), next_step=NEXT_STEP
        )
    row = np.empty(part.row_bytes, np.uint8)
    try:
        blosc.decompress(packed, row)
    except (RuntimeError, ValueError) as error:
        raise CorruptStoreError(subject, expected="a compressed row", got=str(error), next_step=NEXT_STEP) from error
    return row


def _array_json(layout: FeatureLayout, spec_text: bytes, part: RowPart, num_rows: int) -> bytes:
    spec = layout.spec
    dtype, fill = _ZARR_DTYPES[part.dtype.str]
    codecs: list[dict[str, Any]] = [{"name": "bytes"}]
    if part.dtype.itemsize > 1:
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if layout.codec == ARCHIVE_CODEC:
        settings = {"cname": "zstd", "clevel": ARCHIVE_LEVEL, "shuffle": "bitshuffle", "blocksize": 0}
        codecs.append({"name": "blosc", "configuration": {"typesize": part.dtype.itemsize, **settings}})
    sharding = {
        "chunk_shape": [1, *part.shape],
        "codecs": codecs,
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    attributes: dict[str, Any] = {
        "format": STORE_FORMAT,
        "fingerprint": spec.fingerprint,
        "stored_dtype": spec.stored_dtype,
    }
    if not part.name:
        attributes |= {"spec": json.loads(spec_text), "spec_crc32c": google_crc32c.value(spec_text)}
    return json_file(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [num_rows, *part.shape],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [layout.shard_rows, *part.shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {"featurecache": attributes},
            "storage_transformers": [],
        }
    )
