"""Description of a store (counts, bytes, failures) and of a clip (provenance, statistics, heat map of the tokens)."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptStoreError, MissingFeatureError, SpecError, suggest
from featurecache.files.publish import replace_bytes
from featurecache.outside_text import file_name
from featurecache.store.feature import StoredFeature
from featurecache.store.local import LocalStore
from featurecache.store.plan import ShardPlan
from featurecache.store.protocols import ClipRecord, Status

HEAT_MAP_PIXELS = 512
MARGIN_PIXELS = 20
LEGEND_PIXELS = 120
CLIPPED_AT = 3.0
"""Largest distance from the mean that a heat map shows, in standard deviations."""


@dataclass(frozen=True)
class FeatureInfo:
    """Counts and sizes of one feature."""

    name: str
    fingerprint: str
    encoder: str
    shape: tuple[int, int]
    stored_dtype: str
    num_ok: int
    num_failed: int
    num_absent: int
    num_pending: int
    """Planned clips that no committed shard holds yet, and clips to be retried."""
    num_shards: int
    num_bytes: int
    """Bytes of the shard files."""
    failed_ids: dict[str, list[str]]
    """Ids of failed clips in row order, by reason; the most frequent reason first."""

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed clips by reason."""
        return {reason: len(ids) for reason, ids in self.failed_ids.items()}


def feature_info(feature: StoredFeature) -> FeatureInfo:
    """Count one feature from its plan and commit records.

    Raises:
        CorruptStoreError: the plan is damaged.
    """
    counts = feature.counts
    failed_ids: dict[str, list[str]] = {}
    for record in feature.records() if counts[Status.FAILED] else ():
        if record.status is Status.FAILED:
            failed_ids.setdefault(record.reason, []).append(record.id)
    committed = {shard.shard for shard in feature.committed}
    return FeatureInfo(
        name=feature.name,
        fingerprint=feature.fingerprint,
        encoder=feature.spec.encoder,
        shape=feature.shape,
        stored_dtype=feature.spec.stored_dtype,
        num_ok=counts[Status.OK],
        num_failed=counts[Status.FAILED],
        num_absent=counts[Status.ABSENT],
        num_pending=_num_pending(feature, committed),
        num_shards=len(committed),
        num_bytes=sum(sum(record.file_bytes) for record in feature.committed),
        failed_ids=dict(sorted(failed_ids.items(), key=lambda item: -len(item[1]))),
    )


def _num_pending(feature: StoredFeature, committed: set[int]) -> int:
    """Count the clips of planned shards without a record, without those that a later shard has decided."""
    num_pending = 0
    for segment, shard, begin, end in ShardPlan(feature.folder).shards():
        if shard not in committed:
            ids = [encoded.decode() for encoded in segment.encoded_ids(begin, end)]
            recorded = [clip_id for clip_id, status in zip(ids, feature.statuses(ids), strict=True) if status >= 0]
            decided = sum(record.shard > shard for record in map(feature.record, recorded) if record is not None)
            num_pending += len(ids) - decided
    return num_pending


@dataclass
class StoreInfo:
    """Every feature of a store, or the error of reading it."""

    features: list[FeatureInfo] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    """Error message by feature name."""


def store_info(store: LocalStore) -> StoreInfo:
    """Count every feature."""
    info = StoreInfo()
    for name in store.names:
        try:
            info.features.append(feature_info(store[name]))
        except (CorruptStoreError, SpecError) as error:
            info.damaged[name] = str(error)
    return info


@dataclass(frozen=True)
class ClipDescription:
    """Record and token statistics of one clip in one feature."""

    feature: StoredFeature
    record: ClipRecord
    statistics: dict[str, float]
    """See `statistics`; empty if the clip has no tokens."""


def describe_clip(store: LocalStore, clip_id: str) -> list[ClipDescription]:
    """Describe one clip in every feature that has a record of it.

    Raises:
        MissingFeatureError: no feature has a record of it.
        CorruptStoreError: its bytes contradict its checksum.
    """
    descriptions = []
    for name in store.names:
        feature = store[name]
        record = feature.record(clip_id)
        if record is not None:
            numbers = statistics(feature[clip_id]) if record.status is Status.OK else {}
            descriptions.append(ClipDescription(feature, record, numbers))
    if not descriptions:
        known = dict.fromkeys(known_id for name in store.names for known_id in store[name].ids)
        raise MissingFeatureError(
            f'clip "{clip_id}"',
            got=f"not in {store.location}",
            next_step="`fcache info` lists its features." + suggest(clip_id, known),
            clip_ids=[clip_id],
        )
    return descriptions


def statistics(tokens: np.ndarray) -> dict[str, float]:
    """Return mean, deviation and extremes of (K, D) tokens, norms over D, and the mean cosine of consecutive tokens."""
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


def heat_map(tokens: np.ndarray, path: Path, title: str = "") -> None:
    """Draw (K, D) tokens as a PNG: tokens downwards, channels rightwards, values in standard deviations of the channel.

    Blue is below the channel's mean, red above. Channels are averaged if they are more than the pixels.
    """
    from PIL import Image, ImageDraw  # of the extra `encode`; a store is described without it

    values = tokens.astype(np.float32)
    spread = values.std(0)
    values = (values - values.mean(0)) / np.where(spread > 0, spread, 1) / CLIPPED_AT
    channel_groups = np.array_split(np.arange(values.shape[1]), min(HEAT_MAP_PIXELS, values.shape[1]))
    values = np.stack([values[:, group].mean(1) for group in channel_groups], 1)
    picture = _colours(values)
    scale = (max(1, HEAT_MAP_PIXELS // picture.shape[1]), max(1, HEAT_MAP_PIXELS // picture.shape[0]))
    heat = Image.fromarray(np.repeat(np.repeat(picture, scale[1], 0), scale[0], 1))
    sheet = Image.new("RGB", (heat.width + 2 * MARGIN_PIXELS, heat.height + 4 * MARGIN_PIXELS), "white")
    sheet.paste(heat, (MARGIN_PIXELS, 2 * MARGIN_PIXELS))
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PIXELS, 4), title, fill="black")
    draw.text(
        (MARGIN_PIXELS, MARGIN_PIXELS + 3), f"{tokens.shape[0]} tokens down, {tokens.shape[1]} channels across", "black"
    )
    legend = Image.fromarray(_colours(np.linspace(-1, 1, LEGEND_PIXELS, dtype=np.float32)[None]))
    legend_top = heat.height + 2 * MARGIN_PIXELS + 6
    sheet.paste(legend.resize((LEGEND_PIXELS, MARGIN_PIXELS // 2)), (MARGIN_PIXELS, legend_top))
    caption = f"-{CLIPPED_AT:g} to +{CLIPPED_AT:g} standard deviations of the channel"
    draw.text((2 * MARGIN_PIXELS + LEGEND_PIXELS, legend_top - 1), caption, fill="black")
    png = io.BytesIO()
    sheet.save(png, "PNG")
    replace_bytes(path, png.getvalue())


def _colours(values: np.ndarray) -> np.ndarray:
    """Map (H, W) values from -1 to 1 to (H, W, 3) uint8 colours from blue over white to red."""
    values = np.clip(values, -1, 1)
    strength = (255 * (1 - np.abs(values))).astype(np.uint8)
    full = np.full_like(strength, 255)
    return np.stack([np.where(values >= 0, full, strength), strength, np.where(values <= 0, full, strength)], -1)


def draw_clip(feature: StoredFeature, clip_id: str, folder: str | Path) -> Path:
    """Draw one clip's tokens into a folder; return the path of the picture."""
    path = Path(folder) / file_name(clip_id, f".{feature.name}.png")
    heat_map(feature[clip_id], path, f"{feature.name}: {clip_id}")
    return path
