"""Zarr v3 shards: slot i at byte i × row_bytes, then Zarr's shard index, so that any Zarr reader opens the store.

    shard file = S slots (holes where a clip has no tokens) · index: (offset, length) u64 × S · crc32c u32

The array is (N, K, D) with chunks (1, K, D) inside shards (S, K, D), no codec, and a NaN fill value, so that a foreign
reader cannot take a gap for zeros. bfloat16 is declared as uint16, float8 as uint8; attributes name the real dtype.
Source: Zarr v3 core and sharding-indexed codec specifications. Which slots have tokens is the commit record's to say.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from featurecache.spec import Spec
from featurecache.store.formats import Part
from featurecache.store.layout import SCALES_ENDING, STORE_FORMAT, FeatureFolder
from featurecache.store.plan import Plan
from featurecache.store.protocols import Status
from featurecache.store.publish import TemporaryFile, make_folder
from featurecache.store.records import Record, RecordBuilder

MISSING = 2**64 - 1
INDEX_ENTRY_BYTES = 16
CRC_BYTES = 4

_ZARR_DTYPES: dict[str, tuple[str, Any]] = {
    "<f2": ("float16", "NaN"),
    "<f4": ("float32", "NaN"),
    "|i1": ("int8", 0),
}
_BFLOAT16 = ("uint16", 0x7FC0)  # its NaN
_FLOAT8 = ("uint8", 0x7F)  # the NaN of e4m3


class ZarrFormat:
    """`ShardFormat` of Zarr v3."""

    name = "zarr"
    codecs = ("none",)

    def array_folder(self, folder: FeatureFolder, part: Part) -> Path:
        return folder.root if not part.name else folder.root.with_name(folder.root.name + SCALES_ENDING)

    def paths(self, folder: FeatureFolder, shard: int, parts: Sequence[Part]) -> list[Path]:
        return [self.array_folder(folder, part) / "c" / str(shard) / "0" / "0" for part in parts]

    def sink(
        self,
        folder: FeatureFolder,
        shard: int,
        encoded_ids: list[bytes],
        parts: Sequence[Part],
        shard_rows: int,
        codec: str,
    ) -> ZarrSink:
        return ZarrSink(folder, self.paths(folder, shard, parts), parts, shard_rows)

    def offsets(self, record: Record, part: int) -> np.ndarray | None:
        return None

    def root_files(self) -> dict[str, bytes]:
        attributes = {"featurecache": {"format": STORE_FORMAT}}
        return {"zarr.json": _json({"zarr_format": 3, "node_type": "group", "attributes": attributes})}

    def derived_files(
        self,
        folder: FeatureFolder,
        spec: Spec,
        spec_text: bytes,
        parts: Sequence[Part],
        plan: Plan,
        shard_rows: int,
        codec: str,
    ) -> dict[Path, bytes]:
        return {
            self.array_folder(folder, part) / "zarr.json": _array_json(spec, spec_text, part, plan.num_rows, shard_rows)
            for part in parts
        }

    def file_problems(self, data: np.ndarray, record: Record, part: Part) -> list[str]:
        problems = []
        status = record.columns["status"]
        index = data[len(record) * part.row_bytes :].tobytes()
        if index != shard_index(status == Status.OK, part.row_bytes, record.shard_rows):
            problems.append("the shard index is not what the record gives")
        for slot in np.flatnonzero(status != Status.OK).tolist():
            if data[slot * part.row_bytes : (slot + 1) * part.row_bytes].any():
                problems.append(f"slot {slot} has no tokens but is not a hole")
        return problems


class ZarrSink:
    """`ShardSink` of uncompressed Zarr shards: every row goes straight to its place."""

    def __init__(self, folder: FeatureFolder, paths: list[Path], parts: Sequence[Part], shard_rows: int) -> None:
        self._paths = paths
        self._parts = parts
        self._shard_rows = shard_rows
        self._files: list[TemporaryFile] = []
        for _ in parts:
            self._files.append(TemporaryFile(folder.temporary))

    def put(self, slot: int, rows: Sequence[np.ndarray]) -> None:
        for file, part, row in zip(self._files, self._parts, rows, strict=True):
            file.write_at(row.reshape(-1).view(np.uint8).data, slot * part.row_bytes)

    def finish(self, builder: RecordBuilder) -> list[tuple[TemporaryFile, Path]]:
        ok = builder.column("status") == Status.OK
        for file, part in zip(self._files, self._parts, strict=True):
            file.write_at(shard_index(ok, part.row_bytes, self._shard_rows), ok.size * part.row_bytes)
        for path in self._paths:
            make_folder(path.parent)
        return list(zip(self._files, self._paths, strict=True))

    def close(self) -> None:
        for file in self._files:
            file.close()


def shard_index(ok: np.ndarray, row_bytes: int, shard_rows: int) -> bytes:
    """Zarr's index of a shard whose slots `ok` (n,) have rows, n ≤ S; crc32c included."""
    index = np.full((shard_rows, 2), MISSING, "<u8")
    slots = np.flatnonzero(ok)
    index[slots, 0] = slots * row_bytes
    index[slots, 1] = row_bytes
    data = index.tobytes()
    return data + struct.pack("<I", google_crc32c.value(data))


def shard_file_bytes(count: int, row_bytes: int, shard_rows: int) -> int:
    """Size of an uncompressed shard file of `count` slots."""
    return count * row_bytes + shard_rows * INDEX_ENTRY_BYTES + CRC_BYTES


def _array_json(spec: Spec, spec_text: bytes, part: Part, num_rows: int, shard_rows: int) -> bytes:
    declared = {"bfloat16": _BFLOAT16, "float8": _FLOAT8}
    dtype, fill = (not part.name and declared.get(spec.stored_dtype)) or _ZARR_DTYPES[part.dtype.str]
    little = {"name": "bytes", "configuration": {"endian": "little"}} if part.dtype.itemsize > 1 else {"name": "bytes"}
    index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [1, *part.shape],
        "codecs": [little],
        "index_codecs": index_codecs,
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
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *part.shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": fill,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": {"featurecache": ours},
            "storage_transformers": [],
        }
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")
