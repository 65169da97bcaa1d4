"""Make lost rows anew: what a recomputation of a clip gives, and where it can come from.

`Recompute` is the seam between repair, which knows no encoder, and what makes tokens: an extraction (`retry`), a copy
of the store (`taken_from`), or the files it was imported from (`importers.npy`).
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
class Outcome:
    """What recomputing one clip gave: tokens (K, D), or why there are none."""

    clip_id: str
    status: Status
    source: str
    tokens: np.ndarray | None = None
    reason: str = ""
    rows: Sequence[np.ndarray] = ()
    """Instead of tokens: an array for each part, as another store holds them."""
    stated: Mapping[str, float] = field(default_factory=dict)
    """With rows: their absmax and measured errors."""
    tried: bool = True
    """False where there was nothing to compute from (no such clip, no encoder): this says nothing about the media."""

    def write(self, shard_writer: StoredShardWriter, slot: int) -> None:
        """Decide one slot."""
        if self.status is Status.FAILED:
            shard_writer.fail(slot, self.reason, self.source)
        elif self.status is Status.ABSENT:
            shard_writer.absent(slot, self.reason, self.source)
        elif self.tokens is None:
            shard_writer.put_rows(slot, self.rows, self.source, self.stated)
        else:
            shard_writer.put(slot, self.tokens, self.source)


def outcome_of(feature: StoredFeature, clip_id: str) -> Outcome:
    """What another feature of the same spec holds of a clip."""
    clip = feature.record(clip_id)
    if clip is None:
        return Outcome(clip_id, Status.FAILED, "", reason="the copy does not have it", tried=False)
    rows, stated = feature.disk_rows(clip_id) if clip.status is Status.OK else ((), {})
    return Outcome(clip_id, clip.status, clip.source, reason=clip.reason, rows=rows, stated=stated)


Recompute = Callable[[str, Sequence[str]], Iterable[Outcome]]
"""Called with a feature's name and clip ids; gives one outcome a clip, in any order."""


def taken_from(other: LocalStore, store: LocalStore) -> Recompute:
    """A `Recompute` that takes the rows of `store` from a copy of it, in whatever format.

    Raises (when called):
        StoreNotFoundError: the copy does not have the feature.
        FingerprintError: it has it under another spec.
    """

    def take(name: str, ids: Sequence[str]) -> Iterable[Outcome]:
        copy, spec = other[name], store.spec(name)  # mended by now
        if copy.fingerprint != spec.fingerprint:
            raise FingerprintError(
                copy.subject,
                expected=f"the spec of {store.location}/{name}",
                got="another; stored != found",
                next_step="Name a copy of this store.",
                problems=spec.differences(copy.spec),
            )
        return [outcome_of(copy, clip_id) for clip_id in ids]

    return take
