"""The interface of a shard format: how rows are laid out in the files of a shard.

Zarr and WebDataset implement `ShardFormat`; `formats` registers them. A feature is stored in one part, the tokens
(K, D), or in two: quantised tokens and their scales (G, D). A row is one part of one clip. All rows of a part have the
same number of bytes unless they are compressed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from featurecache.errors import CorruptStoreError
from featurecache.files.publish import TemporaryFile
from featurecache.spec import Spec
from featurecache.store.layout import DISK_DTYPES, FeatureFolder
from featurecache.store.plan import ShardPlan
from featurecache.store.quantize import scales_shape
from featurecache.store.records import NEXT_STEP, CommitRecord, RecordBuilder


@dataclass(frozen=True)
class RowPart:
    """One of the parts in which clips are stored: the tokens, or the scales of quantised tokens."""

    name: str
    """"" for tokens, "scales" for scales."""
    shape: tuple[int, int]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def column(self, name: str) -> str:
        """Return the name that a column of a commit record has for this part."""
        return f"{self.name}_{name}" if self.name else name


def row_parts(spec: Spec) -> tuple[RowPart, ...]:
    """Return the parts in which tokens of a spec are stored."""
    tokens = RowPart("", spec.shape, DISK_DTYPES[spec.stored_dtype])
    if spec.stored_dtype in ("int8", "float8"):
        return tokens, RowPart("scales", scales_shape(spec.shape), np.dtype("<f2"))
    return (tokens,)


@dataclass(frozen=True)
class FeatureLayout:
    """The properties of a feature that determine the bytes of its shards."""

    folder: FeatureFolder
    name: str
    spec: Spec
    parts: tuple[RowPart, ...]
    shard_rows: int
    codec: str


class ShardSink(Protocol):
    """Receives rows in any order and produces the files of one shard."""

    def put(self, slot: int, rows: Sequence[np.ndarray]) -> None:
        """Write the rows of one clip: a C-contiguous array per part."""
        ...

    def holds(self, slot: int, checksums: Sequence[int]) -> bool:
        """Return whether the rows of a slot are complete; `checksums` is the crc32c per part, uncompressed."""
        ...

    def renumber(self, shard: int, encoded_ids: list[bytes], slots: Sequence[int]) -> None:
        """Continue as another shard: move the rows of these ascending slots to slots 0, 1, …; drop the others."""
        ...

    def finish(self, builder: RecordBuilder) -> list[tuple[TemporaryFile, Path]]:
        """Complete the files; return each with its final path. Set the columns of row offsets, if the format has them.

        May be called again after a failed commit.
        """
        ...

    def close(self) -> None:
        """Remove all files that are not published."""
        ...


@runtime_checkable
class ShardFormat(Protocol):
    """A layout of shards on disk."""

    name: str
    endings: tuple[str, ...]
    """A new store whose name has one of these endings gets this format."""
    codecs: tuple[str, ...]
    """Supported compressions of rows, "none" first."""
    spec_copy: str
    """Name of the derived file, in the feature's folder, that holds a second copy of the spec."""

    def root_files(self) -> dict[str, bytes]:
        """Return the files at the root of a store, by name."""
        ...

    def folders(self, folder: FeatureFolder, parts: Sequence[RowPart]) -> list[Path]:
        """Return all folders of a feature."""
        ...

    def columns(self, layout: FeatureLayout) -> list[str]:
        """Return the columns of a commit record that give row positions; none if slot i begins at i × row_bytes."""
        ...

    def paths(self, folder: FeatureFolder, shard: int, parts: Sequence[RowPart]) -> list[Path]:
        """Return the files of one shard, in the order of a record's `file_bytes`."""
        ...

    def is_shard(self, relative: str) -> bool:
        """Return whether a path inside a feature's folder has the form of a shard file."""
        ...

    def file_of(self, part: int) -> int:
        """Return the index of the shard file that holds a part."""
        ...

    def sink(self, layout: FeatureLayout, shard: int, encoded_ids: list[bytes]) -> ShardSink:
        """Start to write a shard."""
        ...

    def begin(self, record: CommitRecord, slot: int, part: RowPart) -> int | None:
        """Return the byte offset of a row in its file; None if rows are compressed."""
        ...

    def row(self, data: np.ndarray, record: CommitRecord, slot: int, part: RowPart) -> np.ndarray:
        """Return (row_bytes,) uint8 of a row of a mapped file: a view, or a new array if rows are compressed.

        Raises:
            CorruptStoreError: the row lies outside the file, or cannot be decompressed.
        """
        ...

    def derived_files(self, layout: FeatureLayout, spec_text: bytes, plan: ShardPlan) -> dict[Path, bytes]:
        """Return the files that follow from spec and plan; they are rewritten when the feature grows."""
        ...

    def file_problems(
        self, data: np.ndarray, record: CommitRecord, layout: FeatureLayout, number: int, quick: bool
    ) -> list[str]:
        """Return the faults of a shard file outside its rows: in index, headers and gaps."""
        ...


def row_at(data: np.ndarray, record: CommitRecord, slot: int, begin: int, length: int) -> np.ndarray:
    """Return the bytes [begin, begin + length) of a shard file.

    Raises:
        CorruptStoreError: the range exceeds the file.
    """
    if begin + length > data.size:
        raise CorruptStoreError(
            f"shard {record.shard}, slot {slot}",
            expected=f"a row inside its {data.size} bytes",
            got=f"{length} bytes at {begin}",
            next_step=NEXT_STEP,
        )
    return data[begin : begin + length]


def json_file(value: Any) -> bytes:
    """Return the bytes of a JSON file of a store. Equal values give equal bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


COPY_BYTES = 1 << 20


Key = TypeVar("Key", bound=Hashable)


class SpillFile(Generic[Key]):
    """One temporary file that holds many byte strings, each under a key."""

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(folder)
        self._ranges: dict[Key, tuple[int, int]] = {}
        self._end = 0

    def put(self, key: Key, data: bytes | memoryview) -> None:
        """Store a byte string."""
        length = memoryview(data).nbytes
        self._file.write_at(data, self._end)
        self._ranges[key] = (self._end, length)
        self._end += length

    def copy(self, key: Key, target: TemporaryFile) -> int:
        """Append a byte string to `target`; return its length."""
        self._file.flush()
        begin, length = self._ranges[key]
        for offset in range(begin, begin + length, COPY_BYTES):
            target.write(os.pread(self._file.fd, min(COPY_BYTES, begin + length - offset), offset))
        return length

    def read(self, key: Key) -> bytes | None:
        """Return a byte string, or None for an unknown key."""
        self._file.flush()
        begin, length = self._ranges.get(key, (0, -1))
        return None if length < 0 else os.pread(self._file.fd, length, begin)

    def rename(self, keys: Mapping[Key, Key]) -> None:
        """Replace old keys by new ones (`keys` maps old to new); drop the byte strings of all other keys."""
        self._ranges = {keys[key]: byte_range for key, byte_range in self._ranges.items() if key in keys}

    def close(self) -> None:
        self._file.close()
