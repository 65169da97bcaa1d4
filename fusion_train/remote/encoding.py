"""Encoders by name, built around loaded networks, and the rounding that their stored tokens went through.

Training read tokens rounded to the store's dtype, so the exported model rounds alike: on the same device its features
are those of the store, bit for bit. A quantised store (int8, float8) cannot be imitated so; there the difference is
the quantisation error that the store records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from featurecache.encoders import Encoder
from featurecache.encoders.eva import EvaGlobalEncoder, EvaTemporalEncoder
from featurecache.encoders.network import FrozenNetwork
from featurecache.encoders.whisper import WhisperEncoder
from featurecache.spec import Spec

EXPORTABLE = {encoder.name: encoder for encoder in (WhisperEncoder, EvaGlobalEncoder, EvaTemporalEncoder)}
INPUTS = {"audio": "input_features", "image": "image_frames", "video": "video_frames"}
"""Modality -> name of the model's input for it."""
ROUNDED_TO = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def rebuild_encoder(spec: Spec, settings: Mapping[str, Any], network: FrozenNetwork | None = None) -> Encoder:
    """The encoder of a spec, around a loaded network or, for preprocessing, around none."""
    return EXPORTABLE[spec.encoder].from_spec(spec, settings, network)


def encode(encoder: Encoder, spec: Spec, inputs: torch.Tensor) -> torch.Tensor:
    """(B, …) preprocessed inputs -> (B, K, D) tokens in the dtype they were stored in (float32 where quantised)."""
    tokens = encoder.pool(encoder.forward(inputs))
    # A copy, because what inference mode gave may not take part in a backward pass.
    return tokens.to(ROUNDED_TO.get(spec.stored_dtype, torch.float32), copy=True)
