"""Recomputation of lost rows: the interface between repair and the sources of tokens.

Repair knows no encoder. A `Recompute` function gives it a `RecomputedClip` per lost row, from an extraction
(`retry.recompute_by_extraction`), a copy of the store (`recompute_from_copy`), or imported files (`importers.npy`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from featurecache.errors import FingerprintError
from featurecache.store.feature import StoredFeature
from featurecache.store.local import LocalStore
from featurecache.store.protocols import Status
from featurecache.store.writer import StoredShardWriter


@dataclass(frozen=True)
class RecomputedClip:
    """Result of recomputing one clip: tokens (K, D), or rows in stored form, or the reason why there are none."""

    clip_id: str
    status: Status
    source: str
    tokens: np.ndarray | None = None
    reason: str = ""
    rows: Sequence[np.ndarray] = ()
    """Instead of tokens: one array per part of the stored row, copied from another store."""
    statistics: Mapping[str, float] = field(default_factory=dict)
    """Of copied rows: absmax and quantisation errors, by name of the record's column."""
    tried: bool = True
    """False if nothing could be computed from (no such clip, no encoder); such a result is never recorded."""

    def write(self, shard_writer: StoredShardWriter, slot: int) -> None:
        """Write the result into one slot."""
        if self.status is Status.FAILED:
            shard_writer.fail(slot, self.reason, self.source)
        elif self.status is Status.ABSENT:
            shard_writer.absent(slot, self.reason, self.source)
        elif self.tokens is None:
            shard_writer.put_rows(slot, self.rows, self.source, self.statistics)
        else:
            shard_writer.put(slot, self.tokens, self.source)


def copied_clip(feature: StoredFeature, clip_id: str) -> RecomputedClip:
    """Return a clip as another feature of the same spec holds it."""
    clip = feature.record(clip_id)
    if clip is None:
        return RecomputedClip(clip_id, Status.FAILED, "", reason="the copy does not have it", tried=False)
    rows, statistics = feature.disk_rows(clip_id) if clip.status is Status.OK else ((), {})
    return RecomputedClip(clip_id, clip.status, clip.source, reason=clip.reason, rows=rows, statistics=statistics)


Recompute = Callable[[str, Sequence[str]], Iterable[RecomputedClip]]
"""Receives a feature's name and clip ids; yields one result per clip, in any order."""


def recompute_from_copy(copy: LocalStore, store: LocalStore) -> Recompute:
    """Return a `Recompute` that reads the rows of `store` from a copy of it, in any format.

    Raises (when called):
        StoreNotFoundError: the copy does not have the feature.
        FingerprintError: the copy has the feature under another spec.
    """

    def recompute(name: str, ids: Sequence[str]) -> Iterable[RecomputedClip]:
        feature, spec = copy[name], store.spec(name)  # read here, because repair may have rewritten the spec
        if feature.fingerprint != spec.fingerprint:
            raise FingerprintError(
                feature.subject,
                expected=f"the spec of {store.location}/{name}",
                got="another; stored != found",
                next_step="Name a copy of this store.",
                problems=spec.differences(feature.spec),
            )
        return [copied_clip(feature, clip_id) for clip_id in ids]

    return recompute
