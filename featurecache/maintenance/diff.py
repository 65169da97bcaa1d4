"""Say how two stores differ: specs, clips, statuses, and the largest numeric difference of the tokens.

Rows with equal checksums are equal and are not read. Tokens of unequal shape are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from featurecache.store.feature import StoredFeature
from featurecache.store.local import LocalStore
from featurecache.store.protocols import Status


@dataclass
class FeatureDifference:
    """How one feature differs between two stores."""

    name: str
    only_in: str = ""
    """Location of the one store that has the feature."""
    spec: list[str] = field(default_factory=list)
    """`field: left != right`."""
    only_left: list[str] = field(default_factory=list)
    only_right: list[str] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    """`clip: left, right` where one has tokens and the other none, or the reasons differ."""
    source: list[str] = field(default_factory=list)
    """Clips made from different media."""
    unequal: list[str] = field(default_factory=list)
    """Clips whose tokens differ."""
    largest: float = 0.0
    """Largest absolute difference of any value."""
    largest_clip: str = ""
    num_equal: int = 0

    @property
    def same(self) -> bool:
        parts = (self.only_in, self.spec, self.only_left, self.only_right, self.status, self.source, self.unequal)
        return not any(parts)

    def __str__(self) -> str:
        if self.only_in:
            return f"{self.name}: only in {self.only_in}"
        said = [f"spec differs in {line}" for line in self.spec]
        for label, clips in (
            ("only left", self.only_left),
            ("only right", self.only_right),
            ("status differs", self.status),
            ("media differ", self.source),
        ):
            if clips:
                said.append(f"{label}: {len(clips)} ({', '.join(clips[:3])}{', …' if len(clips) > 3 else ''})")
        if self.unequal:
            said.append(f"tokens differ: {len(self.unequal)}, by at most {self.largest:.3g} ({self.largest_clip})")
        return f"{self.name}: " + ("; ".join([*said, f"{self.num_equal} clips equal"]))


def compare_stores(left: LocalStore, right: LocalStore, names: list[str] | None = None) -> list[FeatureDifference]:
    """Compare every feature of either store, or the named ones."""
    results = []
    for name in names or sorted({*left.names, *right.names}):
        if name in left and name in right:
            results.append(compare_features(left[name], right[name]))
        else:
            results.append(FeatureDifference(name, only_in=left.location if name in left else right.location))
    return results


def compare_features(left: StoredFeature, right: StoredFeature) -> FeatureDifference:
    """Compare two features clip by clip."""
    found = FeatureDifference(left.name, spec=left.spec.differences(right.spec))
    theirs = {clip.id: clip for clip in right.records()}
    for clip in left.records():
        other = theirs.pop(clip.id, None)
        if other is None:
            found.only_left.append(clip.id)
            continue
        if (clip.status, clip.reason) != (other.status, other.reason):
            found.status.append(f"{clip.id}: {clip.status.name.lower()}, {other.status.name.lower()}")
        if clip.source != other.source:
            found.source.append(clip.id)
        if clip.status is not Status.OK or other.status is not Status.OK:
            continue
        if left.dtype == right.dtype and left.shape == right.shape and _same_row(left, right, clip.id, clip, other):
            found.num_equal += 1
            continue
        _compare_tokens(found, left, right, clip.id)
    found.only_right = list(theirs)
    return found


def _same_row(left: StoredFeature, right: StoredFeature, clip_id: str, clip, other) -> bool:  # type: ignore[no-untyped-def]
    if left.spec.stored_dtype != right.spec.stored_dtype or clip.crc32c != other.crc32c:
        return False
    return len(left.parts) == 1 or all(
        np.array_equal(mine, theirs)
        for mine, theirs in zip(left.disk_rows(clip_id)[0], right.disk_rows(clip_id)[0], strict=True)
    )


def _compare_tokens(found: FeatureDifference, left: StoredFeature, right: StoredFeature, clip_id: str) -> None:
    if left.shape != right.shape:
        found.unequal.append(clip_id)
        found.largest, found.largest_clip = float("inf"), clip_id
        return
    difference = np.abs(left[clip_id].astype(np.float64) - right[clip_id].astype(np.float64)).max()
    if difference == 0:
        found.num_equal += 1
        return
    found.unequal.append(clip_id)
    if difference > found.largest:
        found.largest, found.largest_clip = float(difference), clip_id
