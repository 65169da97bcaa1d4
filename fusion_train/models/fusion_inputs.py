"""Bring the cached tokens of all modalities to one count, as the fusion reads them.

The CLS token of the image is repeated; a modality cached with more or fewer tokens is averaged, or repeated, evenly,
so that the token count of each can be varied alone. Shapes: B clips, K_m tokens of width D_m.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F


def fusion_inputs(features: Mapping[str, Tensor], count: int) -> list[Tensor]:
    """Modality -> (B, K_m, D_m), in the order that the fusion takes them -> a list of (B, count, D_m)."""
    return [
        tokens[:, :1].expand(-1, count, -1) if modality == "image" else resample(tokens, count)
        for modality, tokens in features.items()
    ]


def resample(tokens: Tensor, count: int) -> Tensor:
    """(B, K, D) -> (B, count, D): output i averages rows floor(i·K/count) … ceil((i+1)·K/count)."""
    if tokens.shape[1] == count:
        return tokens
    return F.adaptive_avg_pool1d(tokens.transpose(1, 2), count).transpose(1, 2)
