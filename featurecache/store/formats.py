"""What a shard format decides: the bytes of a shard around its rows. Zarr and WebDataset each implement `ShardFormat`.

A feature has one part, its tokens (K, D), or two: quantised tokens and their scales (G, D). A row is one part of one
clip; every row of a part has the same number of bytes unless it is compressed on disk.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from featurecache.errors import CorruptStoreError
from featurecache.files.publish import TemporaryFile
from featurecache.spec import Spec
from featurecache.store.layout import DISK_DTYPES, FeatureFolder
from featurecache.store.plan import Plan
from featurecache.store.quantize import scales_shape
from featurecache.store.records import NEXT_STEP, Record, RecordBuilder


@dataclass(frozen=True)
class Part:
    """Rows of one kind: tokens, or the scales of quantised tokens."""

    name: str
    """"" for tokens, "scales" for scales."""
    shape: tuple[int, int]
    dtype: np.dtype

    @property
    def row_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def column(self, name: str) -> str:
        """Name of this part's column in a commit record."""
        return f"{self.name}_{name}" if self.name else name


def parts_of(spec: Spec) -> tuple[Part, ...]:
    """The parts that a spec's tokens are stored in."""
    tokens = Part("", spec.shape, DISK_DTYPES[spec.stored_dtype])
    if spec.stored_dtype in ("int8", "float8"):
        return tokens, Part("scales", scales_shape(spec.shape), np.dtype("<f2"))
    return (tokens,)


@dataclass(frozen=True)
class Geometry:
    """What a sink must know of the feature it writes for."""

    folder: FeatureFolder
    name: str
    spec: Spec
    parts: tuple[Part, ...]
    shard_rows: int
    codec: str


class ShardSink(Protocol):
    """Takes rows in any order and makes the files of one shard."""

    def put(self, slot: int, rows: Sequence[np.ndarray]) -> None:
        """Write one clip: a C-contiguous array for each part."""
        ...

    def holds(self, slot: int, checksums: Sequence[int]) -> bool:
        """Whether the rows of a slot are there whole; `checksums` are the crc32c of each part's, uncompressed."""
        ...

    def renumber(self, shard: int, encoded_ids: list[bytes], slots: Sequence[int]) -> None:
        """Go on as another shard, with what was in these slots, which ascend, in slots 0, 1, …; drop the rest."""
        ...

    def finish(self, builder: RecordBuilder) -> list[tuple[TemporaryFile, Path]]:
        """Complete the files; where they go; offsets, if the format has any, are set in the record's columns.

        May be called again, where the shard could not be committed.
        """
        ...

    def close(self) -> None:
        """Remove whatever is not published."""
        ...


class ShardFormat(Protocol):
    """One way to lay out shards."""

    name: str
    codecs: tuple[str, ...]
    spec_copy: str
    """Derived file, inside the feature's folder, that keeps a second copy of the spec."""

    def root_files(self) -> dict[str, bytes]:
        """Files at the root of a store, by name."""
        ...

    def folders(self, folder: FeatureFolder, parts: Sequence[Part]) -> list[Path]:
        """Every folder that belongs to a feature."""
        ...

    def columns(self, geometry: Geometry) -> list[str]:
        """Columns of a commit record that say where rows lie; none where slot i lies at i × row_bytes."""
        ...

    def paths(self, folder: FeatureFolder, shard: int, parts: Sequence[Part]) -> list[Path]:
        """Files of one shard, in the order of a record's `file_bytes`."""
        ...

    def is_shard(self, relative: str) -> bool:
        """Whether a path inside a feature's folder is a shard's, planned or not."""
        ...

    def file_of(self, part: int) -> int:
        """Which of a shard's files holds a part."""
        ...

    def sink(self, geometry: Geometry, shard: int, encoded_ids: list[bytes]) -> ShardSink: ...

    def begin(self, record: Record, slot: int, part: Part) -> int | None:
        """Byte of its file at which a row begins; None where rows are compressed."""
        ...

    def row(self, data: np.ndarray, record: Record, slot: int, part: Part) -> np.ndarray:
        """(row_bytes,) uint8 of one row, out of its mapped file: a view, or what was unpacked.

        Raises:
            CorruptStoreError: the row does not lie inside the file, or cannot be unpacked.
        """
        ...

    def derived_files(self, geometry: Geometry, spec_text: bytes, plan: Plan) -> dict[Path, bytes]:
        """Files that follow from spec and plan and are rewritten when the feature grows."""
        ...

    def file_problems(
        self, data: np.ndarray, record: Record, geometry: Geometry, number: int, quick: bool
    ) -> list[str]:
        """What is wrong around the rows of a shard's file: index, headers, gaps."""
        ...


def row_at(data: np.ndarray, record: Record, slot: int, begin: int, length: int) -> np.ndarray:
    """Bytes [begin, begin + length) of a shard file.

    Raises:
        CorruptStoreError: they do not lie inside.
    """
    if begin + length > data.size:
        raise CorruptStoreError(
            f"shard {record.shard}, slot {slot}",
            expected=f"a row inside its {data.size} bytes",
            got=f"{length} bytes at {begin}",
            next_step=NEXT_STEP,
        )
    return data[begin : begin + length]


COPY_BYTES = 1 << 20


class Spool:
    """Pieces of bytes in one temporary file, by key."""

    def __init__(self, folder: Path) -> None:
        self._file = TemporaryFile(folder)
        self._places: dict[Hashable, tuple[int, int]] = {}
        self._end = 0

    def put(self, key: Hashable, data: bytes | memoryview) -> None:
        """Keep one piece."""
        length = memoryview(data).nbytes
        self._file.write_at(data, self._end)
        self._places[key] = (self._end, length)
        self._end += length

    def copy(self, key: Hashable, target: TemporaryFile) -> int:
        """Append one piece to `target`; returns its length."""
        self._file.flush()
        begin, length = self._places[key]
        for offset in range(begin, begin + length, COPY_BYTES):
            target.write(os.pread(self._file.fd, min(COPY_BYTES, begin + length - offset), offset))
        return length

    def read(self, key: Hashable) -> bytes | None:
        """One piece; None where it was not put."""
        self._file.flush()
        begin, length = self._places.get(key, (0, -1))
        return None if length < 0 else os.pread(self._file.fd, length, begin)

    def rename(self, keys: Mapping[Hashable, Hashable]) -> None:
        """Give pieces other keys, and forget those that have none in `keys`."""
        self._places = {keys[key]: place for key, place in self._places.items() if key in keys}

    def close(self) -> None:
        self._file.close()
