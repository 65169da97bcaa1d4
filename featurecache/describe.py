"""Describe a store and a clip: counts, bytes, failures by reason; provenance, statistics, a heat map of the tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featurecache.errors import MissingFeatureError
from featurecache.store.feature import StoredFeature
from featurecache.store.local import LocalStore
from featurecache.store.protocols import ClipRecord, Status

HEAT_MAP_PIXELS = 512
CLIPPED_AT = 3.0
"""Standard deviations at which the colours of a heat map end."""


@dataclass(frozen=True)
class FeatureInfo:
    """One feature in numbers."""

    name: str
    fingerprint: str
    encoder: str
    shape: tuple[int, int]
    stored_dtype: str
    num_ok: int
    num_failed: int
    num_absent: int
    num_shards: int
    num_bytes: int
    """Bytes of its shard files."""
    failures: dict[str, int]
    """Clips by reason, most frequent first."""


def feature_info(feature: StoredFeature) -> FeatureInfo:
    """Sum up one feature from its commit records."""
    counts = feature.counts
    failures: Counter[str] = Counter()
    if counts[Status.FAILED]:
        failures.update(clip.reason for clip in feature.records() if clip.status is Status.FAILED)
    return FeatureInfo(
        name=feature.name,
        fingerprint=feature.fingerprint,
        encoder=feature.spec.encoder,
        shape=feature.shape,
        stored_dtype=feature.spec.stored_dtype,
        num_ok=counts[Status.OK],
        num_failed=counts[Status.FAILED],
        num_absent=counts[Status.ABSENT],
        num_shards=len(feature.committed),
        num_bytes=sum(sum(record.file_bytes) for record in feature.committed),
        failures=dict(failures.most_common()),
    )


def store_info(store: LocalStore) -> list[FeatureInfo]:
    """Sum up every feature."""
    return [feature_info(store[name]) for name in store.names]


@dataclass(frozen=True)
class ClipDescription:
    """One clip in one feature."""

    feature: str
    fingerprint: str
    record: ClipRecord
    provenance: dict[str, object]
    statistics: dict[str, float]
    """Of the tokens; empty where there are none. Token norms are over the width D."""


def describe_clip(store: LocalStore, clip_id: str) -> list[ClipDescription]:
    """What every feature knows of a clip.

    Raises:
        MissingFeatureError: no feature has heard of it.
        CorruptStoreError: its bytes contradict its checksum.
    """
    found = []
    for name in store.names:
        feature = store[name]
        record = feature.record(clip_id)
        if record is not None:
            numbers = statistics(feature[clip_id]) if record.status is Status.OK else {}
            found.append(ClipDescription(name, feature.fingerprint, record, dict(feature.spec.provenance), numbers))
    if not found:
        raise MissingFeatureError(
            clip_id,
            expected="a clip of this store",
            got="an id that no feature has",
            next_step="`fcache info` lists the features.",
            clip_ids=[clip_id],
        )
    return found


def statistics(tokens: np.ndarray) -> dict[str, float]:
    """Mean, spread and extremes of (K, D) tokens, and how alike neighbouring tokens are."""
    values = tokens.astype(np.float64)
    norms = np.linalg.norm(values, axis=1)
    products = (values[1:] * values[:-1]).sum(1)
    lengths = norms[1:] * norms[:-1]
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
        "token_norm_min": float(norms.min()),
        "token_norm_mean": float(norms.mean()),
        "token_norm_max": float(norms.max()),
        "zero_tokens": float((norms == 0).sum()),
        "neighbour_cosine": float((products[lengths > 0] / lengths[lengths > 0]).mean())
        if (lengths > 0).any()
        else 0.0,
    }


def heat_map(tokens: np.ndarray, path: Path) -> None:
    """Draw (K, D) tokens as a PNG: tokens down, channels across, each channel in its own standard deviations.

    Blue is below the channel's mean, red above; averaged where there are more channels than pixels.
    """
    values = tokens.astype(np.float32)
    spread = values.std(0)
    values = (values - values.mean(0)) / np.where(spread > 0, spread, 1) / CLIPPED_AT
    columns = np.array_split(np.arange(values.shape[1]), min(HEAT_MAP_PIXELS, values.shape[1]))
    values = np.clip(np.stack([values[:, group].mean(1) for group in columns], 1), -1, 1)
    strength = (255 * (1 - np.abs(values))).astype(np.uint8)
    full = np.full_like(strength, 255)
    red, blue = np.where(values >= 0, full, strength), np.where(values <= 0, full, strength)
    picture = np.stack([red, strength, blue], -1)
    scale = (max(1, HEAT_MAP_PIXELS // picture.shape[1]), max(1, HEAT_MAP_PIXELS // picture.shape[0]))
    Image.fromarray(np.repeat(np.repeat(picture, scale[1], 0), scale[0], 1)).save(path, "PNG")


def draw_clip(feature: StoredFeature, clip_id: str, folder: str | Path) -> Path:
    """Draw one clip's tokens into a folder; returns the picture's path."""
    path = Path(folder) / f"{clip_id.replace('/', '_')}.{feature.name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    heat_map(feature[clip_id], path)
    return path
