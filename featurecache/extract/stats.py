"""Statistics of one extraction: clips per status, and how busy each part of the pipeline was.

The share of a part is its busy time divided by the time in which it could have been busy: workers × wall time for
hashing, decoding and preprocessing, devices × wall time for the encoder, wall time for the writer. The part whose
share is nearest to 1 is the bottleneck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from featurecache.store.protocols import Status


@dataclass
class ClipCounts:
    """Number of clips of one feature, by status."""

    ok: int = 0
    failed: int = 0
    absent: int = 0
    failed_ids: dict[str, list[str]] = field(default_factory=dict)
    """Ids of failed clips, by reason."""
    prior: Counter[Status] = field(default_factory=Counter)
    """Clips of the list that earlier runs decided, by status."""
    prior_failed_ids: dict[str, list[str]] = field(default_factory=dict)
    """Ids of failed clips of earlier runs, by reason."""

    def since(self, before: ClipCounts) -> ClipCounts:
        """Return what was decided between two counts of prior records: `before`, and this one."""
        new = self.prior - before.prior
        known = {clip_id for ids in before.prior_failed_ids.values() for clip_id in ids}
        by_reason = {
            reason: [clip_id for clip_id in ids if clip_id not in known]
            for reason, ids in self.prior_failed_ids.items()
        }
        failed_ids = {reason: ids for reason, ids in by_reason.items() if ids}
        counts = (new[Status.OK], new[Status.FAILED], new[Status.ABSENT])
        return ClipCounts(*counts, failed_ids, before.prior, before.prior_failed_ids)

    def most_common(self) -> list[tuple[str, list[str]]]:
        """Return (reason, ids of failed clips), the most frequent reason first."""
        return sorted(self.failed_ids.items(), key=lambda item: -len(item[1]))


@dataclass
class Utilization:
    """Busy time of one part of the pipeline."""

    name: str
    busy_s: float
    capacity_s: float
    capacity: str
    """The workers or devices that could have been busy, as text."""

    @property
    def share(self) -> float:
        """Busy time divided by capacity, 0 to 1."""
        return min(1.0, self.busy_s / max(self.capacity_s, 1e-9))


@dataclass
class ExtractionStats:
    """Counts and times of one extraction."""

    by_feature: dict[str, ClipCounts]
    num_clips: int = 0
    """Clips prepared in this run; a clip counts once, for any number of features."""
    hash_s: float = 0.0
    """Summed over workers, like decode_s and preprocess_s."""
    decode_s: float = 0.0
    preprocess_s: float = 0.0
    encode_s: float = 0.0
    """Summed over devices; includes the wait until the device has finished."""
    write_s: float = 0.0
    wall_s: float = 0.0
    workers: int = 0
    """Threads or processes that decode."""
    decode_in: str = "threads"
    """What the workers are: threads or processes."""
    devices: int = 0
    writers: int = 0
    num_forwards: int = 0
    """Forward passes; features that share a forward count it once."""
    input_bytes: int = 0
    """Largest size of one clip's inputs, over all features together."""
    max_clips_held: int = 0
    """Upper bound of the clips in memory at once. `max_clips_held * input_bytes` bounds the memory of inputs."""
    notices: dict[str, str] = field(default_factory=dict)
    """Remarks about clips that have tokens, by clip id."""
    num_left: int = 0
    """Clips that other ranks or other current runs still have to do."""

    @property
    def failed(self) -> int:
        """Failed clips of the list, of this run and of earlier ones; a clip counts once per feature."""
        return sum(counts.failed + counts.prior[Status.FAILED] for counts in self.by_feature.values())

    @property
    def clips_per_s(self) -> float:
        return self.num_clips / max(self.wall_s, 1e-9)

    def utilizations(self) -> list[Utilization]:
        """Busy time of each part, in the order of the pipeline."""
        worker = "decode process" if self.decode_in == "processes" else "decode thread"
        workers_s, workers = self.workers * self.wall_s, _counted(self.workers, worker)
        devices_s, devices = self.devices * self.wall_s, _counted(self.devices, "device")
        writers_s, writers = self.writers * self.wall_s, _counted(self.writers, "writer")
        return [
            Utilization("hash", self.hash_s, workers_s, workers),
            Utilization("decode", self.decode_s, workers_s, workers),
            Utilization("preprocess", self.preprocess_s, workers_s, workers),
            Utilization("encode", self.encode_s, devices_s, devices),
            Utilization("write", self.write_s, writers_s, writers),
        ]

    @property
    def bottleneck(self) -> str:
        """The one of decode workers, encoder and writer with the largest share of busy time."""
        hashing, decoding, preprocessing, encoding, writing = self.utilizations()
        shares = {
            "decode workers": hashing.share + decoding.share + preprocessing.share,
            "encoder": encoding.share,
            "writer": writing.share,
        }
        return max(shares, key=shares.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Return all statistics as JSON values."""
        return {
            "clips": self.num_clips,
            "wall_s": round(self.wall_s, 3),
            "clips_per_s": round(self.clips_per_s, 3),
            "bottleneck": self.bottleneck if self.num_clips else None,
            "parts": {
                part.name: {"seconds": round(part.busy_s, 3), "share": round(part.share, 4)}
                for part in self.utilizations()
            },
            "workers": self.workers,
            "decode_in": self.decode_in,
            "devices": self.devices,
            "forwards": self.num_forwards,
            "memory_bound_bytes": self.input_bytes * self.max_clips_held,
            "left": self.num_left,
            "notices": self.notices,
            "features": {
                name: {
                    "ok": counts.ok,
                    "failed": counts.failed,
                    "absent": counts.absent,
                    "earlier": sum(counts.prior.values()),
                    "reasons": {reason: len(ids) for reason, ids in counts.most_common()},
                    "failed_ids": counts.failed_ids,
                }
                for name, counts in self.by_feature.items()
            },
        }


def merge_stats(runs: Sequence[ExtractionStats]) -> ExtractionStats:
    """Return the statistics of several processes together, without `by_feature`.

    The processes may or may not have run at the same time, so the wall time is that of the longest run.
    """
    merged = ExtractionStats({})
    for stats in runs:
        for field_name in SUMMED_FIELDS:
            setattr(merged, field_name, getattr(merged, field_name) + getattr(stats, field_name))
        merged.input_bytes = max(merged.input_bytes, stats.input_bytes)
        merged.notices |= stats.notices
        merged.decode_in = stats.decode_in
        merged.wall_s = max(merged.wall_s, stats.wall_s)
    return merged


SUMMED_FIELDS = (
    "num_clips",
    "hash_s",
    "decode_s",
    "preprocess_s",
    "encode_s",
    "write_s",
    "num_forwards",
    "max_clips_held",
    "workers",
    "devices",
    "writers",
)


def _counted(number: int, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural if number > 1 else ''}"
