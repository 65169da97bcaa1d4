"""What a store offers, whatever its format. Zarr and WebDataset stores implement these; nothing else is relied on.

Shapes: N clips, K tokens a clip, D encoder width. A store holds features by name; a feature holds the tokens of many
clips under one spec. A clip in a feature is `ok` (it has tokens), `failed` (with the reason), or `absent` (the clip
does not have the modality). Absence and failure are records; they are never zeros.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from featurecache.spec import Spec


class Status(enum.IntEnum):
    """What a commit record says of a clip."""

    OK = 0
    FAILED = 1
    ABSENT = 2


@dataclass(frozen=True)
class ClipRecord:
    """What is known of one clip in one feature."""

    id: str
    status: Status
    shard: int
    slot: int
    """Place inside the shard, from 0; the row is shard × rows a shard + slot."""
    source: str
    """Hash of the media bytes and the part of them used, 64 hex digits; empty where the media could not be read."""
    reason: str = ""
    """Why it failed or is absent, for a person."""
    crc32c: int = 0
    absmax: float = 0.0
    nan_count: int = 0
    errors: Mapping[str, float] = field(default_factory=dict)
    """Measured loss of a quantised feature: error_rms (relative), error_max (absolute), error_cosine."""


@dataclass(frozen=True)
class Shard:
    """A planned shard: its number and the clips of its slots, in order."""

    number: int
    ids: tuple[str, ...]


@runtime_checkable
class Feature(Protocol):
    """The tokens of many clips under one spec, for reading."""

    name: str
    spec: Spec
    fingerprint: str
    shape: tuple[int, int]
    dtype: np.dtype

    @property
    def ids(self) -> Sequence[str]:
        """Clips that have tokens, in row order."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, clip_id: str) -> bool: ...

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """(K, D) of one clip, a view of the file where the format allows; MissingFeatureError without tokens."""
        ...

    def read(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """(B, K, D) of these clips, into `out` where given; MissingFeatureError lists every clip without tokens."""
        ...

    def record(self, clip_id: str) -> ClipRecord | None:
        """What the commit record says of a clip, or None where no shard holds it."""
        ...

    def statuses(self, ids: Sequence[str]) -> np.ndarray:
        """(ids,) int8: the `Status` of each clip, -1 where no shard holds it; of a million clips in seconds."""
        ...

    def records(self) -> Iterator[ClipRecord]:
        """Every clip's record, in row order."""
        ...


class NotFiniteError(ValueError):
    """Tokens that hold NaN or infinity, perhaps only after rounding to the stored dtype: the fault of one clip."""


class ShardWriter(Protocol):
    """Writes one shard; nothing of it is visible before `commit` returns, and all of it afterwards.

    Slots may be written in any order, each once. `abort` (also on leaving the `with` block without `commit`) removes
    what was written.
    """

    shard: Shard

    def put(self, slot: int, tokens: np.ndarray, source: str) -> None:
        """Write (K, D) tokens (float32 or the stored dtype); NaN or infinity is refused with NotFiniteError."""
        ...

    def fail(self, slot: int, reason: str, source: str = "") -> None: ...

    def absent(self, slot: int, reason: str, source: str = "") -> None: ...

    def decided_later(self, slot: int) -> None:
        """Decide a slot whose clip a later shard holds, as `FeatureWriter.decided_later` says."""
        ...

    def commit(self) -> None: ...

    def commit_decided(self, *, failed: bool = True) -> list[str]:
        """Commit the decided slots as a shard of their own, and give up the rest; returns their clips."""
        ...

    def abort(self) -> None: ...

    def __enter__(self) -> ShardWriter: ...

    def __exit__(self, *error: object) -> None: ...


class FeatureWriter(Feature, Protocol):
    """A feature open for extraction."""

    @property
    def work_folder(self) -> Path:
        """Where processes note what they are at; no part of what is stored."""
        ...

    def plan(self, ids: Sequence[str]) -> None:
        """Plan every clip of `ids` that is not planned yet, in this order, on fresh shards.

        Deterministic: every worker that calls it with the same list sees the same plan, whoever comes first.
        """
        ...

    def retry(self, ids: Sequence[str]) -> None:
        """Plan these clips anew on fresh shards, except where they are pending already.

        The old records stay true until the new shards are committed; then the highest shard that holds a clip is.
        """
        ...

    def shards(self) -> list[Shard]:
        """Every planned shard, committed or not, by number; ranks divide the work by these."""
        ...

    def pending(self) -> list[Shard]:
        """Planned shards without a commit record, by number."""
        ...

    def decided_later(self, shard: Shard) -> frozenset[str]:
        """Clips of a pending shard that are decided, in a later shard: a run was stopped in the midst of this one."""
        ...

    def begin(self, shard: Shard) -> ShardWriter:
        """Start writing one pending shard."""
        ...

    def claim(self, shard: Shard) -> ShardWriter | None:
        """Like `begin`, but None where the shard is committed or another process holds its lease."""
        ...


class Store(Protocol):
    """Features by name."""

    location: str

    @property
    def names(self) -> list[str]:
        """Feature names, sorted."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> Feature:
        """StoreNotFoundError where there is no such feature; the near name is suggested."""
        ...

    def writer(self, name: str, spec: Spec) -> FeatureWriter:
        """Open a feature for extraction, creating it where there is none.

        Raises:
            FingerprintError: the feature exists under another spec; every differing field is named.
        """
        ...
