"""Description of one extraction in plain values, which can be sent to another machine, and opening its encoders.

All processes of one extraction share the plan of the store and coordinate by leases on shards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featurecache.clips.clip_list import ClipList, load_clips
from featurecache.encoders import Encoder, encoder_class, open_encoder
from featurecache.errors import FingerprintError
from featurecache.extract.prepare import CLIP_LIMIT_S, DecodeIn
from featurecache.spec import Spec


@dataclass(frozen=True)
class EncoderSettings:
    """Settings to open one encoder."""

    encoder: str
    """Registered name, or name:checkpoint."""
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    compute_dtype: str = "auto"
    batch_size: int | None = None
    """None: the encoder chooses for the kind of device."""

    def open(self, device: str) -> Encoder:
        """Load the encoder, weights strictly. Raises the errors of `open_encoder`."""
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
    """One extraction: store, clip list, encoder settings and options."""

    store: str
    clips: str
    features: Mapping[str, EncoderSettings]
    """By feature name."""
    media_root: str | None = None
    stored_dtype: str = "float16"
    workers: int = 4
    """Decode workers per process that encodes."""
    decode_in: DecodeIn = "auto"
    """Whether decode workers are threads or processes; see `extract`."""
    shard_clips: int | None = None
    clip_limit_s: float | None = CLIP_LIMIT_S
    max_failures: int | None = None

    def load_clips(self) -> ClipList:
        return load_clips(self.clips, self.media_root)

    def open_encoders(self, devices: Sequence[str]) -> list[dict[str, Encoder]]:
        """Return the encoders by feature name, once per device."""
        return [{name: settings.open(device) for name, settings in self.features.items()} for device in devices]

    def origins(self, encoders: Mapping[str, Encoder]) -> str:
        """Return the folder, hub id or file of the weights of each feature, without paths, as one line."""
        provenance = {name: encoder.spec(self.stored_dtype).provenance for name, encoder in encoders.items()}
        return ", ".join(f"{name} from {'; '.join(map(str, origin.values()))}" for name, origin in provenance.items())

    @property
    def extract_options(self) -> dict[str, Any]:
        """Keyword arguments of `extract` that every process of the extraction shares."""
        return {
            "stored_dtype": self.stored_dtype,
            "workers": self.workers,
            "decode_in": self.decode_in,
            "shard_clips": self.shard_clips,
            "clip_limit_s": self.clip_limit_s,
        }


def encoder_notices(encoders: Mapping[str, Encoder]) -> list[str]:
    """Return the notices of opened encoders, which a command shows before it extracts."""
    return [line for encoder in encoders.values() for line in encoder.notices]


OpenEncoder = Callable[[Spec], Encoder]


def opener(weights: Mapping[str, str | None], options: Mapping[str, Mapping[str, Any]], device: str) -> OpenEncoder:
    """Return a function that opens the encoder of a spec; `weights` and `options` by encoder name.

    An encoder without options here has those of the spec, if its class can tell them (`options_of`). The function
    raises FingerprintError if the opened encoder has another fingerprint than the spec.
    """

    def _options_of(spec: Spec) -> dict[str, Any]:
        kind: Any = encoder_class(spec.encoder)
        return dict(kind.options_of(spec)) if hasattr(kind, "options_of") else {}

    def open_for(spec: Spec) -> Encoder:
        encoder = open_encoder(
            spec.encoder,
            weights=weights.get(spec.encoder),
            device=device,
            compute_dtype=spec.compute_dtype,
            options=options.get(spec.encoder) or _options_of(spec),
        )
        opened = encoder.spec(spec.stored_dtype)
        if opened.fingerprint != spec.fingerprint:
            raise FingerprintError(
                f"encoder {spec.encoder}",
                expected="the one that the feature was made with",
                got="another; stored != opened",
                next_step="Give the same --weights and --option as then.",
                problems=spec.differences(opened),
            )
        return encoder

    return open_for
