"""One extraction in plain values, which can be sent to another machine, and how its encoders are opened.

All processes of one extraction share the plan of its store and take leases on shards from each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featurecache.clips.clip_list import ClipList, load_clips
from featurecache.encoders import Encoder, open_encoder
from featurecache.errors import FingerprintError
from featurecache.extract.prepare import CLIP_LIMIT_S
from featurecache.spec import Spec


@dataclass(frozen=True)
class EncoderSettings:
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
class ExtractionJob:
    """One extraction, in plain values."""

    store: str
    clips: str
    features: Mapping[str, EncoderSettings]
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


OpenEncoder = Callable[[Spec], Encoder]


def opener(weights: Mapping[str, str | None], options: Mapping[str, Mapping[str, Any]], device: str) -> OpenEncoder:
    """How to open the encoder of a spec: checkpoint and options by encoder name."""

    def open_for(spec: Spec) -> Encoder:
        encoder = open_encoder(
            spec.encoder,
            weights=weights.get(spec.encoder),
            device=device,
            compute_dtype=spec.compute_dtype,
            options=options.get(spec.encoder),
        )
        offered = encoder.spec(spec.stored_dtype)
        if offered.fingerprint != spec.fingerprint:
            raise FingerprintError(
                f"encoder {spec.encoder}",
                expected="the one that the feature was made with",
                got="another; stored != opened",
                next_step="Give the same --weights and --option as then.",
                problems=spec.differences(offered),
            )
        return encoder

    return open_for
