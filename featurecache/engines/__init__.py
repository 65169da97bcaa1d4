"""Where an extraction runs: in this process (`local`) or on a Ray cluster (`ray`). Both run the same `extract`.

A `Work` says everything that a process needs to take part, in plain values, so that it can be sent to another machine.
All processes at work on one store share its plan, and lease shards from each other; none of them is special.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featurecache.clips import ClipList, load_clips
from featurecache.encoders import Encoder, open_encoder
from featurecache.preparation import CLIP_LIMIT_S


@dataclass(frozen=True)
class Opening:
    """How to open one encoder."""

    encoder: str
    """Registered name, or name:checkpoint."""
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    compute_dtype: str = "auto"
    batch_size: int | None = None
    """None leaves it to the encoder and the kind of device."""

    def open(self, device: str) -> Encoder:
        """Load strictly. Raises what `open_encoder` raises."""
        encoder = open_encoder(
            self.encoder,
            weights=self.weights,
            device=device,
            compute_dtype=self.compute_dtype,
            options=self.options,
        )
        encoder.batch_size = self.batch_size or encoder.batch_size
        return encoder


@dataclass(frozen=True)
class Work:
    """One extraction, in plain values."""

    store: str
    clips: str
    features: Mapping[str, Opening]
    """By feature name."""
    media_root: str | None = None
    stored_dtype: str = "float16"
    workers: int = 4
    """Decode threads a process."""
    shard_clips: int | None = None
    clip_limit_s: float | None = CLIP_LIMIT_S
    max_failures: int | None = None

    def load_clips(self) -> ClipList:
        return load_clips(self.clips, self.media_root)

    def open_encoders(self, devices: Sequence[str]) -> list[dict[str, Encoder]]:
        """The encoders by feature name, once for each device."""
        return [{name: opening.open(device) for name, opening in self.features.items()} for device in devices]

    @property
    def extract_options(self) -> dict[str, Any]:
        """What `extract` takes beside store, clips and encoders."""
        return {
            "stored_dtype": self.stored_dtype,
            "workers": self.workers,
            "shard_clips": self.shard_clips,
            "clip_limit_s": self.clip_limit_s,
        }
