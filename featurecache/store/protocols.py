"""The interfaces of a store, independent of its format. Extraction and training rely on these only.

Shapes: N clips, K tokens per clip, D encoder width. A store holds features by name; a feature holds the tokens of many
clips under one spec. The status of a clip in a feature is `ok` (it has tokens), `failed` (with a reason) or `absent`
(the clip lacks the modality). Absence and failure are records, never zeros. Commands that maintain a store use the
implementations, which offer more: `StoredFeature`, `StoredFeatureWriter`, `LocalStore`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from featurecache.files.lease import LEASE_S
from featurecache.spec import Spec


class Status(enum.IntEnum):
    """Status of a clip in a commit record."""

    OK = 0
    FAILED = 1
    ABSENT = 2


@dataclass(frozen=True)
class ClipRecord:
    """The record of one clip in one feature."""

    id: str
    status: Status
    shard: int
    slot: int
    """Position inside the shard, from 0. Row of the array: shard × rows per shard + slot."""
    source: str
    """Hash of the media bytes and of the part that was used, 64 hex digits; empty if the media could not be read."""
    reason: str
    """Why the clip failed or is absent, as text for a person; else empty."""
    crc32c: int
    absmax: float
    nan_count: int
    errors: Mapping[str, float]
    """Measured quantisation error: error_rms (relative), error_max (absolute), error_cosine."""


@dataclass(frozen=True)
class Shard:
    """A planned shard: its number and the ids of its clips in slot order."""

    number: int
    ids: tuple[str, ...]


@runtime_checkable
class Feature(Protocol):
    """The tokens of many clips under one spec, open for reading."""

    name: str
    spec: Spec
    fingerprint: str
    shape: tuple[int, int]
    dtype: np.dtype

    @property
    def ids(self) -> Sequence[str]:
        """Clips that have tokens, in row order."""
        ...

    @property
    def counts(self) -> Mapping[Status, int]:
        """Number of clips per status."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, clip_id: object) -> bool: ...

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """Return the (K, D) tokens of one clip, as a view of the file if the format allows.

        Raises:
            MissingFeatureError: the clip has no tokens.
        """
        ...

    def read(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Return the (B, K, D) tokens of these clips, in `out` if given.

        Raises:
            MissingFeatureError: some clips have no tokens; all of them are listed.
        """
        ...

    def record(self, clip_id: str) -> ClipRecord | None:
        """Return the record of a clip, or None if no shard holds the clip."""
        ...

    def statuses(self, ids: Sequence[str]) -> np.ndarray:
        """Return (ids,) int8: the `Status` of each clip, -1 if no shard holds it. A million clips take seconds."""
        ...

    def records(self) -> Iterator[ClipRecord]:
        """Iterate over the records of all clips in row order."""
        ...


class NotFiniteError(ValueError):
    """The tokens of a clip contain NaN or infinity, possibly only after rounding to the stored dtype."""


class ShardWriter(Protocol):
    """Writes one shard. The shard becomes visible as a whole, by `commit`.

    Every slot is decided once, in any order: by tokens, as failed, as absent or as superseded. `abort`, which also runs
    when the `with` block ends without a commit, removes the written data.
    """

    shard: Shard

    def put(self, slot: int, tokens: np.ndarray, source: str) -> None:
        """Write the (K, D) tokens of a clip, float32 or in the stored dtype.

        Raises:
            NotFiniteError: NaN or infinity.
        """
        ...

    def fail(self, slot: int, reason: str, source: str = "") -> None:
        """Record that the clip failed."""
        ...

    def absent(self, slot: int, reason: str, source: str = "") -> None:
        """Record that the clip lacks the modality."""
        ...

    def mark_superseded(self, slot: int) -> None:
        """Record that a later shard holds the clip (see `FeatureWriter.superseded`)."""
        ...

    def commit(self) -> None:
        """Publish the shard; every slot must be decided."""
        ...

    def commit_partial(self, *, failed: bool = True) -> list[str]:
        """Commit the decided slots as a new shard and drop the others; return the clips of the new shard."""
        ...

    def abort(self) -> None:
        """Remove the written data."""
        ...

    def __enter__(self) -> ShardWriter: ...

    def __exit__(self, *error: object) -> None: ...


class FeatureWriter(Feature, Protocol):
    """A feature open for extraction."""

    @property
    def work_folder(self) -> Path:
        """Folder for notes of running processes; not part of the stored data."""
        ...

    def plan(self, ids: Sequence[str]) -> None:
        """Assign every clip that has no planned slot to new shards, in this order.

        The plan is deterministic: all workers that pass the same list get the same plan, whichever is first.
        """
        ...

    def retry(self, ids: Sequence[str]) -> None:
        """Assign these clips to new shards, except clips that are pending already.

        The old record of a clip is valid until its new shard is committed: the highest committed shard is valid.
        """
        ...

    def shards(self) -> list[Shard]:
        """Return every planned shard, committed or not, by number; processes divide the work by these."""
        ...

    def pending(self) -> list[Shard]:
        """Return the planned shards without a commit record, by number."""
        ...

    def superseded(self, shard: Shard) -> frozenset[str]:
        """Return the clips of a pending shard that a later committed shard holds.

        An extraction that stops inside a shard commits the decided clips as a later shard (`commit_partial`).
        """
        ...

    def begin(self, shard: Shard) -> ShardWriter:
        """Start to write a pending shard."""
        ...

    def claim(self, shard: Shard, *, lease_s: float = LEASE_S) -> ShardWriter | None:
        """Like `begin`, but return None if the shard is committed or another process holds its lease.

        A lease whose holder wrote nothing for `lease_s` seconds is taken over.
        """
        ...


class Store(Protocol):
    """Features by name."""

    location: str

    @property
    def names(self) -> list[str]:
        """Feature names, sorted."""
        ...

    def __contains__(self, name: object) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, name: str) -> Feature:
        """Return a feature for reading; StoreNotFoundError for an unknown name suggests the nearest one."""
        ...

    def spec(self, name: str) -> Spec:
        """Return the spec of a feature without reading its commit records."""
        ...

    def writer(self, name: str, spec: Spec, *, shard_rows: int | None = None, codec: str = "none") -> FeatureWriter:
        """Open a feature for extraction; create it if the store does not have it.

        `shard_rows` (rows per shard) and `codec` (row compression) are used only at creation.

        Raises:
            FingerprintError: the feature exists under another spec; every differing field is named.
        """
        ...
