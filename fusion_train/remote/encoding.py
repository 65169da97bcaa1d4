"""Encoders by name, built around loaded networks, and the rounding that their stored tokens went through.

Training read tokens as the store keeps them, so the exported model rounds, or quantises and restores, alike: on the
device of the extraction its features are those of the store, bit for bit.

Shapes: B clips, K tokens of width D, G groups of tokens that share a scale, channel by channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from featurecache.encoders import Encoder
from featurecache.encoders.eva import EvaGlobalEncoder, EvaTemporalEncoder
from featurecache.encoders.network import FrozenNetwork
from featurecache.encoders.whisper import WhisperEncoder
from featurecache.errors import FingerprintError
from featurecache.spec import Spec

EXPORTABLE = {encoder.name: encoder for encoder in (WhisperEncoder, EvaGlobalEncoder, EvaTemporalEncoder)}
INPUTS = {"audio": "input_features", "image": "image_frames", "video": "video_frames"}
"""Modality -> name of the model's input for it."""
READ_AS = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.float16,
    "float8": torch.float16,
}
"""Stored dtype -> dtype of the tokens that a store gives."""
LARGEST = {"int8": 127.0, "float8": 448.0}
GROUP_TOKENS = 32
"""Tokens of one scale in a quantised store; as in featurecache.store.quantize, which a test holds this to."""


def rebuild_encoder(spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None = None) -> Encoder:
    """The encoder of a spec, around a loaded network or, for preprocessing, around none."""
    return EXPORTABLE[spec.encoder].from_spec(spec, settings, network)


def encode(encoder: Encoder, spec: Spec, inputs: torch.Tensor, valid: Sequence[int] | None = None) -> torch.Tensor:
    """(B, …) preprocessed inputs -> (B, K, D) tokens as a store of this spec gives them.

    Args:
        valid: encoder tokens that each clip fills, for an encoder that pools over a clip's own duration.
    """
    tokens = encoder.forward(inputs)
    pooled = encoder.pool(tokens, valid) if needs_valid(encoder) else encoder.pool(tokens)
    return as_stored(pooled, spec.stored_dtype)


def needs_valid(encoder: Encoder) -> bool:
    """Whether the encoder's pooling asks how many of its tokens a clip fills."""
    return getattr(encoder, "needs_valid", False)


def refuse_other_encoder(found: Spec, wanted: Spec, modality: str) -> None:
    """Raise FingerprintError where the encoder found is not the one that made the features."""
    if found.fingerprint != wanted.fingerprint:
        raise FingerprintError(
            f"{modality} encoder ({wanted.encoder})",
            expected=f"fingerprint {wanted.fingerprint[:12]}…, which the run was trained on",
            got=f"{found.fingerprint[:12]}…",
            next_step=f"Name the weights that made the features with --weights {wanted.encoder}=FOLDER. "
            "Found != trained on:",
            problems=found.differences(wanted),
        )


def as_stored(tokens: torch.Tensor, stored_dtype: str) -> torch.Tensor:
    """(B, K, D) float32 -> what is read back after storing them."""
    if stored_dtype in LARGEST:
        tokens = torch.cat([_restored(group, stored_dtype) for group in tokens.split(GROUP_TOKENS, dim=1)], dim=1)
    # A copy, because what inference mode gave may not take part in a backward pass.
    return tokens.to(READ_AS[stored_dtype], copy=True)


def _restored(group: torch.Tensor, stored_dtype: str) -> torch.Tensor:
    """(B, up to GROUP_TOKENS, D) -> the same quantised, one float16 scale a channel, and restored."""
    wanted = group.abs().amax(dim=1, keepdim=True) / LARGEST[stored_dtype]  # [b, 1, d]
    scales = wanted.to(torch.float16)
    following = (scales.view(torch.int16) + 1).view(torch.float16)  # the next larger number
    scales = torch.where(scales.float() < wanted, following, scales).float()
    scaled = group / torch.where(scales == 0, 1.0, scales)
    steps = scaled.round() if stored_dtype == "int8" else scaled.to(torch.float8_e4m3fn).float()
    return steps * scales
