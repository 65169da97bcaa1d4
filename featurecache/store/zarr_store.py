"""Zarr v3 shards: slot i at byte i × row_bytes, then Zarr's shard index, so that any Zarr reader opens the store.

    shard file = S slots (holes where a clip has no tokens) · index: (offset, length) u64 × S · crc32c u32

The array is (N, K, D) with chunks (1, K, D) inside shards (S, K, D) and a NaN fill value, so that a foreign reader
cannot take a gap for zeros. bfloat16 is declared as uint16, float8 as uint8; attributes name the real dtype. In an
archive the rows are compressed (Blosc: zstd after a bit shuffle) and lie in slot order without gaps.
Source: Zarr v3 core and sharding-indexed codec specifications. Which slots have tokens is the commit record's to say.
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
from featurecache.store.formats import Geometry, Part, ShardSink, Spool, row_at
from featurecache.store.layout import SCALES_ENDING, STORE_FORMAT, FeatureFolder
from featurecache.store.plan import Plan
from featurecache.store.protocols import Status
from featurecache.store.records import NEXT_STEP, Record, RecordBuilder

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
    codecs = ("none", ARCHIVE_CODEC)
    spec_copy = "zarr.json"

    def root_files(self) -> dict[str, bytes]:
        attributes = {"featurecache": {"format": STORE_FORMAT}}
        return {"zarr.json": _json({"zarr_format": 3, "node_type": "group", "attributes": attributes})}

    def folders(self, folder: FeatureFolder, parts: Sequence[Part]) -> list[Path]:
        return [_array_folder(folder, part) for part in parts]

    def columns(self, geometry: Geometry) -> list[str]:
        if geometry.codec == "none":
            return []
        return [part.column(name) for part in geometry.parts for name in ("offset", "length", "packed_crc32c")]

    def paths(self, folder: FeatureFolder, shard: int, parts: Sequence[Part]) -> list[Path]:
        return shard_paths(folder, shard, parts)

    def is_shard(self, relative: str) -> bool:
        return _SHARD.fullmatch(relative) is not None

    def file_of(self, part: int) -> int:
        return part

    def sink(self, geometry: Geometry, shard: int, encoded_ids: list[bytes]) -> ShardSink:
        paths = self.paths(geometry.folder, shard, geometry.parts)
        return (ZarrSink if geometry.codec == "none" else ArchiveSink)(geometry, paths, len(encoded_ids))

    def begin(self, record: Record, slot: int, part: Part) -> int | None:
        return slot * part.row_bytes if part.column("length") not in record.columns else None

    def row(self, data: np.ndarray, record: Record, slot: int, part: Part) -> np.ndarray:
        if part.column("length") not in record.columns:
            return row_at(data, record, slot, slot * part.row_bytes, part.row_bytes)
        begin, length = (int(record.columns[part.column(name)][slot]) for name in ("offset", "length"))
        return _unpack(row_at(data, record, slot, begin, length), part, f"shard {record.shard}, slot {slot}")

    def derived_files(self, geometry: Geometry, spec_text: bytes, plan: Plan) -> dict[Path, bytes]:
        return {
            _array_folder(geometry.folder, part) / "zarr.json": _array_json(geometry, spec_text, part, plan.num_rows)
            for part in geometry.parts
        }

    def file_problems(
        self, data: np.ndarray, record: Record, geometry: Geometry, number: int, quick: bool
    ) -> list[str]:
        part = geometry.parts[number]
        index_bytes = record.shard_rows * INDEX_ENTRY_BYTES + CRC_BYTES
        offsets, lengths = _places(record, part)
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
    """`ShardSink` of uncompressed shards: every row goes straight to its place."""

    def __init__(self, geometry: Geometry, paths: list[Path], num_slots: int) -> None:
        self._paths = paths
        self._geometry = geometry
        self._files: list[TemporaryFile] = []
        for _ in geometry.parts:
            self._files.append(TemporaryFile(geometry.folder.temporary))

    def put(self, slot: int, rows: Sequence[np.ndarray]) -> None:
        for file, part, row in zip(self._files, self._geometry.parts, rows, strict=True):
            file.write_at(row.reshape(-1).view(np.uint8).data, slot * part.row_bytes)

    def holds(self, slot: int, checksums: Sequence[int]) -> bool:
        for file, part, crc in zip(self._files, self._geometry.parts, checksums, strict=True):
            file.flush()
            if google_crc32c.value(os.pread(file.fd, part.row_bytes, slot * part.row_bytes)) != crc:
                return False
        return True

    def renumber(self, shard: int, encoded_ids: list[bytes], slots: Sequence[int]) -> None:
        # In place: rows only move down, so that this also works on a disk that is full.
        for file, part in zip(self._files, self._geometry.parts, strict=True):
            file.flush()
            size = part.row_bytes
            for new, old in enumerate(slots):
                if new != old:
                    os.pwrite(file.fd, os.pread(file.fd, size, old * size).ljust(size, b"\0"), new * size)
            os.ftruncate(file.fd, len(slots) * size)
        self._paths = shard_paths(self._geometry.folder, shard, self._geometry.parts)

    def finish(self, builder: RecordBuilder) -> list[tuple[TemporaryFile, Path]]:
        status = builder.column("status")
        for file, part in zip(self._files, self._geometry.parts, strict=True):
            offsets = np.arange(status.size, dtype="<u8") * np.uint64(part.row_bytes)
            lengths = np.full(status.size, part.row_bytes, "<u8")
            index = shard_index(status, offsets, lengths, self._geometry.shard_rows)
            file.write_at(index, status.size * part.row_bytes)
            file.flush()
        return list(zip(self._files, self._paths, strict=True))

    def close(self) -> None:
        for file in self._files:
            file.close()


class ArchiveSink:
    """`ShardSink` of compressed shards: rows are spooled and laid down in slot order, whatever order they came in."""

    def __init__(self, geometry: Geometry, paths: list[Path], num_slots: int) -> None:
        self._paths = paths
        self._geometry = geometry
        self._spool = Spool(geometry.folder.temporary)
        self._checksums: dict[tuple[int, int], int] = {}
        self._files: list[TemporaryFile] = []

    def put(self, slot: int, rows: Sequence[np.ndarray]) -> None:
        for number, row in enumerate(rows):
            packed = blosc.compress(row, b"zstd", ARCHIVE_LEVEL, blosc.BITSHUFFLE, 0)
            self._spool.put((number, slot), packed)
            self._checksums[number, slot] = google_crc32c.value(packed)

    def holds(self, slot: int, checksums: Sequence[int]) -> bool:
        keys = [(number, slot) for number in range(len(checksums))]
        rows = {key: self._spool.read(key) for key in keys}
        return all(row is not None and google_crc32c.value(row) == self._checksums[key] for key, row in rows.items())

    def renumber(self, shard: int, encoded_ids: list[bytes], slots: Sequence[int]) -> None:
        parts = range(len(self._geometry.parts))
        keys = {(number, old): (number, new) for new, old in enumerate(slots) for number in parts}
        self._spool.rename(keys)
        self._checksums = {keys[key]: crc for key, crc in self._checksums.items() if key in keys}
        self._paths = shard_paths(self._geometry.folder, shard, self._geometry.parts)

    def finish(self, builder: RecordBuilder) -> list[tuple[TemporaryFile, Path]]:
        status = builder.column("status")
        while self._files:  # of a commit that was refused
            self._files.pop().close()
        for number, part in enumerate(self._geometry.parts):
            file = TemporaryFile(self._geometry.folder.temporary)
            self._files.append(file)
            offsets, lengths = builder.column(part.column("offset")), builder.column(part.column("length"))
            end = 0
            for slot in np.flatnonzero(status == Status.OK).tolist():
                lengths[slot] = self._spool.copy((number, slot), file)
                offsets[slot] = end
                builder.column(part.column("packed_crc32c"))[slot] = self._checksums[number, slot]
                end += int(lengths[slot])
            file.write(shard_index(status, offsets, lengths, self._geometry.shard_rows))
        return list(zip(self._files, self._paths, strict=True))

    def close(self) -> None:
        for file in [self._spool, *self._files]:
            file.close()


def shard_paths(folder: FeatureFolder, shard: int, parts: Sequence[Part]) -> list[Path]:
    """The file of each part of a shard."""
    return [_array_folder(folder, part) / "c" / str(shard) / "0" / "0" for part in parts]


def shard_index(status: np.ndarray, offsets: np.ndarray, lengths: np.ndarray, shard_rows: int) -> bytes:
    """Zarr's index of a shard: where the rows of ok slots lie, n ≤ S; crc32c included."""
    index = np.full((shard_rows, 2), MISSING, "<u8")
    slots = np.flatnonzero(status == Status.OK)
    index[slots, 0] = offsets[slots]
    index[slots, 1] = lengths[slots]
    data = index.tobytes()
    return data + struct.pack("<I", google_crc32c.value(data))


def _array_folder(folder: FeatureFolder, part: Part) -> Path:
    return folder.root if not part.name else folder.root.with_name(folder.root.name + SCALES_ENDING)


def _packed_problems(data: np.ndarray, record: Record, part: Part) -> list[str]:
    """Compressed rows whose bytes changed; some changes leave what is unpacked as it was."""
    offsets, lengths, checksums = (record.columns[part.column(name)] for name in ("offset", "length", "packed_crc32c"))
    return [
        f"slot {slot}: compressed bytes contradict their checksum"
        for slot in np.flatnonzero(record.columns["status"] == Status.OK).tolist()
        if google_crc32c.value(data[int(offsets[slot]) : int(offsets[slot] + lengths[slot])]) != checksums[slot]
    ]


def _places(record: Record, part: Part) -> tuple[np.ndarray, np.ndarray]:
    if part.column("length") in record.columns:
        return record.columns[part.column("offset")], record.columns[part.column("length")]
    slots = np.arange(len(record), dtype="<u8")
    return slots * np.uint64(part.row_bytes), np.full(len(record), part.row_bytes, "<u8")


def _unpack(packed: np.ndarray, part: Part, subject: str) -> np.ndarray:
    stated = int.from_bytes(packed[4:8].tobytes(), "little") if packed.size >= 16 else -1
    if stated != part.row_bytes:  # before anything of that size is allocated
        raise CorruptStoreError(
            subject, expected=f"a compressed row of {part.row_bytes} bytes", got=str(stated), next_step=NEXT_STEP
        )
    row = np.empty(part.row_bytes, np.uint8)
    try:
        blosc.decompress(packed, row)
    except (RuntimeError, ValueError) as error:
        raise CorruptStoreError(subject, expected="a compressed row", got=str(error), next_step=NEXT_STEP) from error
    return row


def _array_json(geometry: Geometry, spec_text: bytes, part: Part, num_rows: int) -> bytes:
    spec = geometry.spec
    dtype, fill = _ZARR_DTYPES[part.dtype.str]
    codecs: list[dict[str, Any]] = [{"name": "bytes"}]
    if part.dtype.itemsize > 1:
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    if geometry.codec == ARCHIVE_CODEC:
        settings = {"cname": "zstd", "clevel": ARCHIVE_LEVEL, "shuffle": "bitshuffle", "blocksize": 0}
        codecs.append({"name": "blosc", "configuration": {"typesize": part.dtype.itemsize, **settings}})
    sharding = {
        "chunk_shape": [1, *part.shape],
        "codecs": codecs,
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    ours: dict[str, Any] = {"format": STORE_FORMAT, "fingerprint": spec.fingerprint, "stored_dtype": spec.stored_dtype}
    if not part.name:
        ours |= {"spec": json.loads(spec_text), "spec_crc32c": google_crc32c.value(spec_text)}
    return _json(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [num_rows, *part.shape],
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [geometry.shard_rows, *part.shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {"featurecache": ours},
            "storage_transformers": [],
        }
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")
