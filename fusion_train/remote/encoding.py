"""Build encoders around loaded networks, and round their tokens as a feature store does.

Training read tokens from the store, so the exported model applies the same rounding, or quantisation and restoring. On
the device of the extraction its features equal those of the store, bit for bit.

Shapes: B clips, K tokens of width D, G groups of tokens that share a scale per channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from featurecache.encoders import ExportableEncoder
from featurecache.encoders.network import FrozenNetwork, resolve_device
from featurecache.errors import FingerprintError, suggest
from featurecache.spec import Spec
from fusion_train.remote.chosen_encoders import chosen_encoder

INPUTS = {"audio": "input_features", "image": "image_frames", "video": "video_frames", "text": "text_tokens"}
"""Modality -> name of its input of the model."""
READ_AS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.float16,
    "float8": torch.float16,
}
"""Stored dtype -> dtype of the tokens that a reader of the store gets."""
LARGEST = {"int8": 127.0, "float8": 448.0}
"""Quantised dtype -> its largest value."""
GROUP_TOKENS = 32
"""Tokens that share a scale in a quantised store; a test holds it equal to that of featurecache.store.quantize."""


def rebuild_encoder(spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None = None) -> ExportableEncoder:
    """Return the encoder of a spec, around a loaded network, or around none if it only preprocesses."""
    return chosen_encoder(spec.encoder).from_spec(spec, settings, network)


def open_trained(spec: Spec, place: str | None, modality: str, device: str = "cpu") -> ExportableEncoder:
    """Open the encoder of a spec with its weights.

    Args:
        place: checkpoint folder or hub id; None for an encoder without weights.

    Raises:
        EncoderError: no such encoder is installed, or it cannot be exported.
        WeightsError: the weights are missing or of another architecture.
        FingerprintError: another encoder than the one that made the features; every differing field is listed.
    """
    kind = chosen_encoder(spec.encoder)
    encoder = kind.open(place, str(resolve_device(device)), spec.compute_dtype, kind.options_of(spec))
    refuse_other_encoder(encoder.spec(spec.stored_dtype), spec, modality)
    return encoder


def place_of(weights: Mapping[str, str], modality: str, spec: Spec) -> str | None:
    """Return the named place of an encoder's weights, by modality or by name; else the hub id in its spec, or None."""
    return weights.get(modality) or weights.get(spec.encoder) or spec.provenance.get("hub")


def unknown_weights(weights: Mapping[str, str], specs: Mapping[str, Spec]) -> tuple[str, str, str | None] | None:
    """Return a name in `weights` that is neither a modality nor an encoder, what is, and advice; None if all are."""
    encoders = sorted({spec.encoder for spec in specs.values()})
    for name in weights:
        if name not in (*encoders, *specs):
            expected = f"one of the encoders {', '.join(encoders)}, or of the modalities {', '.join(specs)}"
            return name, expected, suggest(name, [*encoders, *specs]).strip() or None
    return None


def encode(
    encoder: ExportableEncoder, spec: Spec, inputs: torch.Tensor, valid: Sequence[int] | None = None
) -> torch.Tensor:
    """Encode preprocessed inputs (B, …); return tokens (B, K, D) as a store of this spec returns them.

    Args:
        valid: number of encoder tokens that each clip fills, for an encoder with `needs_valid`.
    """
    tokens = encoder.forward(inputs)
    pooled = encoder.pool(tokens, valid) if encoder.needs_valid else encoder.pool(tokens)
    return as_stored(pooled, spec.stored_dtype)


def refuse_other_encoder(opened: Spec, trained: Spec, modality: str) -> None:
    """Raise FingerprintError if the opened encoder is not the one that made the features."""
    if opened.fingerprint != trained.fingerprint:
        raise FingerprintError(
            f"{modality} encoder ({trained.encoder})",
            expected=f"fingerprint {trained.fingerprint[:12]}…, which the run was trained on",
            got=f"{opened.fingerprint[:12]}…",
            next_step=f"Name the weights that made the features with --weights {trained.encoder}=FOLDER (or "
            f"{modality}=FOLDER). Opened != trained on:",
            problems=opened.differences(trained),
        )


def as_stored(tokens: torch.Tensor, stored_dtype: str) -> torch.Tensor:
    """Return tokens (B, K, D) float32 as they are read back after storing them."""
    if stored_dtype in LARGEST:
        tokens = torch.cat([_restored(group, stored_dtype) for group in tokens.split(GROUP_TOKENS, dim=1)], dim=1)
    # A copy: a tensor made in inference mode cannot take part in a backward pass.
    return tokens.to(READ_AS[stored_dtype], copy=True)


def _restored(group: torch.Tensor, stored_dtype: str) -> torch.Tensor:
    """Quantise and restore one group (B, up to GROUP_TOKENS, D), with one float16 scale per channel."""
    exact_scales = group.abs().amax(dim=1, keepdim=True) / LARGEST[stored_dtype]  # [b, 1, d]
    scales = exact_scales.to(torch.float16)
    following = (scales.view(torch.int16) + 1).view(torch.float16)  # the next larger float16
    scales = torch.where(scales.float() < exact_scales, following, scales).float()
    scaled = group / torch.where(scales == 0, 1.0, scales)
    steps = scaled.round() if stored_dtype == "int8" else scaled.to(torch.float8_e4m3fn).float()
    return steps * scales
