"""Compare two stores: specs, clips, statuses, and the largest difference of a token value.

Rows with equal checksums count as equal and are not read. Tokens of unequal shape are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from featurecache.outside_text import first_ids
from featurecache.store.feature import StoredFeature
from featurecache.store.local import LocalStore
from featurecache.store.protocols import ClipRecord, Status


@dataclass
class FeatureDifference:
    """Differences of one feature between two stores."""

    name: str
    only_in: str = ""
    """Location of the store that has the feature, if only one has it."""
    spec: list[str] = field(default_factory=list)
    """`field: left != right`."""
    only_left: list[str] = field(default_factory=list)
    only_right: list[str] = field(default_factory=list)
    status: list[str] = field(default_factory=list)
    """`clip: left, right` for clips whose statuses or reasons differ."""
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
        sentences = [f"spec differs in {line}" for line in self.spec]
        for label, clips in (
            ("only left", self.only_left),
            ("only right", self.only_right),
            ("status differs", self.status),
            ("media differ", self.source),
        ):
            if clips:
                sentences.append(f"{label}: {len(clips)} ({first_ids(clips)})")
        if self.unequal:
            sentences.append(f"tokens differ: {len(self.unequal)}, by at most {self.largest:.3g} ({self.largest_clip})")
        return f"{self.name}: " + ("; ".join([*sentences, f"{self.num_equal} clips equal"]))


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
    difference = FeatureDifference(left.name, spec=left.spec.differences(right.spec))
    right_clips = {clip.id: clip for clip in right.records()}
    for clip in left.records():
        other = right_clips.pop(clip.id, None)
        if other is None:
            difference.only_left.append(clip.id)
            continue
        if (clip.status, clip.reason) != (other.status, other.reason):
            difference.status.append(f"{clip.id}: {clip.status.name.lower()}, {other.status.name.lower()}")
        if clip.source != other.source:
            difference.source.append(clip.id)
        if clip.status is not Status.OK or other.status is not Status.OK:
            continue
        if left.dtype == right.dtype and left.shape == right.shape and _same_row(left, right, clip, other):
            difference.num_equal += 1
            continue
        _compare_tokens(difference, left, right, clip.id)
    difference.only_right = list(right_clips)
    return difference


def _same_row(left: StoredFeature, right: StoredFeature, clip: ClipRecord, other: ClipRecord) -> bool:
    """Whether two clips have equal stored bytes; a checksum covers only the first part of a row."""
    if left.spec.stored_dtype != right.spec.stored_dtype or clip.crc32c != other.crc32c:
        return False
    return len(left.parts) == 1 or all(
        np.array_equal(left_row, right_row)
        for left_row, right_row in zip(left.disk_rows(clip.id)[0], right.disk_rows(clip.id)[0], strict=True)
    )


def _compare_tokens(difference: FeatureDifference, left: StoredFeature, right: StoredFeature, clip_id: str) -> None:
    if left.shape != right.shape:
        difference.unequal.append(clip_id)
        difference.largest, difference.largest_clip = float("inf"), clip_id
        return
    largest = np.abs(left[clip_id].astype(np.float64) - right[clip_id].astype(np.float64)).max()
    if largest == 0:
        difference.num_equal += 1
        return
    difference.unequal.append(clip_id)
    if largest > difference.largest:
        difference.largest, difference.largest_clip = float(largest), clip_id
