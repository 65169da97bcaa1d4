"""What a shard format decides: the bytes of a shard around its rows. Zarr and WebDataset each implement `ShardFormat`.

A feature has one part, its tokens (K, D), or two: quantised tokens and their scales (G, D). A row is one part of one
clip; every row of a part has the same number of bytes on disk unless it is compressed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from featurecache.spec import Spec
from featurecache.store.layout import DISK_DTYPES, FeatureFolder
from featurecache.store.plan import Plan
from featurecache.store.publish import TemporaryFile
from featurecache.store.records import Record, RecordBuilder


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


def parts_of(spec: Spec) -> tuple[Part, ...]:
    """The parts that a spec's tokens are stored in."""
    tokens = Part("", spec.shape, DISK_DTYPES[spec.stored_dtype])
    return (tokens,)


class ShardSink(Protocol):
    """Takes rows in any order and makes the files of one shard."""

    def put(self, slot: int, rows: Sequence[np.ndarray]) -> None:
        """Write one clip: a C-contiguous array for each part."""
        ...

    def finish(self, builder: RecordBuilder) -> list[tuple[TemporaryFile, Path]]:
        """Complete the files; where they go; offsets, if the format has any, are set in the record's columns."""
        ...

    def close(self) -> None:
        """Remove whatever is not published."""
        ...


class ShardFormat(Protocol):
    """One way to lay out shards."""

    name: str
    codecs: tuple[str, ...]

    def paths(self, folder: FeatureFolder, shard: int, parts: Sequence[Part]) -> list[Path]:
        """File of each part of a shard; one file may hold both."""
        ...

    def sink(
        self,
        folder: FeatureFolder,
        shard: int,
        encoded_ids: list[bytes],
        parts: Sequence[Part],
        shard_rows: int,
        codec: str,
    ) -> ShardSink: ...

    def offsets(self, record: Record, part: int) -> np.ndarray | None:
        """(n,) byte offset of each slot's row, or None where slot i lies at i × row_bytes."""
        ...

    def root_files(self) -> dict[str, bytes]:
        """Files at the root of a store, by name."""
        ...

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
        """Files that follow from spec and plan and are rewritten when the feature grows."""
        ...

    def file_problems(self, data: np.ndarray, record: Record, part: Part) -> list[str]:
        """What is wrong around the rows of a shard file: index, headers, padding."""
        ...
