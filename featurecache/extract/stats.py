"""What an extraction did, and where its time went.

A part's share is the time it was busy over the time it could have been: threads × wall for what decode workers do,
devices × wall for the encoder, wall for the writer. The part nearest to 1 is the bottleneck.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from featurecache.store.protocols import Status


@dataclass
class Tally:
    """What happened to the clips of one feature."""

    ok: int = 0
    failed: int = 0
    absent: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Failed clips by reason."""
    earlier: Counter[Status] = field(default_factory=Counter)
    """Clips of the list that were decided before this run, by status."""
    earlier_reasons: Counter[str] = field(default_factory=Counter)
    """Those that failed, by reason."""

    def since(self, before: Tally) -> Tally:
        """What was decided between two countings of everything decided, as of a run of its own."""
        new = self.earlier - before.earlier
        reasons = self.earlier_reasons - before.earlier_reasons
        counts = (new[Status.OK], new[Status.FAILED], new[Status.ABSENT])
        return Tally(*counts, reasons, before.earlier, before.earlier_reasons)


@dataclass
class Part:
    """One part of the work."""

    name: str
    busy_s: float
    capacity_s: float
    capacity: str
    """What could have been busy, for a person."""

    @property
    def share(self) -> float:
        """Busy over capacity, 0 to 1."""
        return min(1.0, self.busy_s / max(self.capacity_s, 1e-9))


@dataclass
class Summary:
    """What one extraction did."""

    by_feature: dict[str, Tally]
    num_clips: int = 0
    """Clips prepared in this run, each counted once however many features it has."""
    hash_s: float = 0.0
    """Summed over threads, as are decode_s and preprocess_s."""
    decode_s: float = 0.0
    preprocess_s: float = 0.0
    encode_s: float = 0.0
    """Summed over devices; includes waiting for the device to finish."""
    write_s: float = 0.0
    wall_s: float = 0.0
    workers: int = 0
    lanes: int = 0
    """Devices at work."""
    writers: int = 0
    num_forwards: int = 0
    """Batches that ran through a network; features that share one count once."""
    input_bytes: int = 0
    """Of all features' inputs together, the most that one clip had."""
    max_clips_held: int = 0
    """Clips that were in memory at once, at most; together with `input_bytes`, the bound of memory."""
    notices: dict[str, str] = field(default_factory=dict)
    """What a person should know of a clip although it has tokens, by clip id."""
    left: int = 0
    """Clips that are still to be done, by other ranks or other runs at work now."""

    @property
    def failed(self) -> int:
        """Clips of the list without tokens though they should have them, counted once a feature."""
        return sum(tally.failed + tally.earlier[Status.FAILED] for tally in self.by_feature.values())

    @property
    def clips_per_s(self) -> float:
        return self.num_clips / max(self.wall_s, 1e-9)

    def parts(self) -> list[Part]:
        """Where the time went."""
        threads_s, threads = self.workers * self.wall_s, _counted(self.workers, "decode thread")
        devices_s, devices = self.lanes * self.wall_s, _counted(self.lanes, "device")
        writers_s, writers = self.writers * self.wall_s, _counted(self.writers, "writer")
        return [
            Part("hash", self.hash_s, threads_s, threads),
            Part("decode", self.decode_s, threads_s, threads),
            Part("preprocess", self.preprocess_s, threads_s, threads),
            Part("encode", self.encode_s, devices_s, devices),
            Part("write", self.write_s, writers_s, writers),
        ]

    @property
    def bottleneck(self) -> str:
        """decode workers, encoder or writer: whichever was busy the largest share of its time."""
        parts = self.parts()
        shares = {
            "decode workers": sum(part.share for part in parts[:3]),
            "encoder": parts[3].share,
            "writer": parts[4].share,
        }
        return max(shares, key=shares.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "clips": self.num_clips,
            "wall_s": round(self.wall_s, 3),
            "clips_per_s": round(self.clips_per_s, 3),
            "bottleneck": self.bottleneck if self.num_clips else None,
            "parts": {
                part.name: {"seconds": round(part.busy_s, 3), "share": round(part.share, 4)} for part in self.parts()
            },
            "workers": self.workers,
            "devices": self.lanes,
            "forwards": self.num_forwards,
            "memory_bound_bytes": self.input_bytes * self.max_clips_held,
            "left": self.left,
            "notices": self.notices,
            "features": {
                name: {
                    "ok": tally.ok,
                    "failed": tally.failed,
                    "absent": tally.absent,
                    "earlier": sum(tally.earlier.values()),
                    "reasons": dict(tally.reasons),
                }
                for name, tally in self.by_feature.items()
            },
        }


def merged(summaries: Sequence[Summary]) -> Summary:
    """What several processes did together; who ran when is lost, so the wall time is that of the longest."""
    whole = Summary({})
    for each in summaries:
        for field_name in SUMS:
            setattr(whole, field_name, getattr(whole, field_name) + getattr(each, field_name))
        whole.input_bytes = max(whole.input_bytes, each.input_bytes)
        whole.notices |= each.notices
        whole.wall_s = max(whole.wall_s, each.wall_s)
    return whole


SUMS = ("num_clips", "hash_s", "decode_s", "preprocess_s", "encode_s", "write_s", "num_forwards", "max_clips_held")
SUMS += ("workers", "lanes", "writers")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number > 1 else ''}"
