"""Bring the cached tokens of all modalities to one token count, as the fusion reads them.

The CLS token of the image is repeated. Tokens of a modality that was cached with another count are averaged or repeated
evenly, so that the token count of each modality can be varied without the others. Shapes: B clips, K_m tokens of width
D_m.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fusion_inputs(features: Mapping[str, Tensor], count: int) -> list[Tensor]:
    """Return a list of (B, count, D_m) from modality -> (B, K_m, D_m), in the order of the modalities."""
    return [
        tokens[:, :1].expand(-1, count, -1) if modality == "image" else resample(tokens, count)
        for modality, tokens in features.items()
    ]


def resample(tokens: Tensor, count: int) -> Tensor:
    """Resample (B, K, D) -> (B, count, D): output i averages rows floor(i·K/count) … ceil((i+1)·K/count)."""
    if tokens.shape[1] == count:
        return tokens
    return F.adaptive_avg_pool1d(tokens.transpose(1, 2), count).transpose(1, 2)


def mlp(in_dim: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Return Linear, ReLU, dropout for each width in `hidden`."""
    layers: list[nn.Module] = []
    for out_dim in hidden:
        layers += [nn.Linear(in_dim, out_dim), nn.ReLU(), nn.Dropout(dropout)]
        in_dim = out_dim
    return nn.Sequential(*layers)


class ModalityMLPs(nn.ModuleList):
    """One MLP per modality: sequence of (B, K, D_m) -> list of (B, K, hidden[-1])."""

    def __init__(self, dims: Sequence[int], hidden: Sequence[int], dropout: float) -> None:
        super().__init__([mlp(dim, hidden, dropout) for dim in dims])

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> list[Tensor]:
        """Map each modality; where `present` (B, M) is False the result is zero, whatever the input holds.

        The mask is applied after the MLP: from an input of zeros, the biases would still make a constant.
        """
        prepared = [net(tokens) for net, tokens in zip(self, features, strict=True)]  # [b, k, h] each
        if present is None:
            return prepared
        return [torch.where(present[:, m, None, None], tokens, 0) for m, tokens in enumerate(prepared)]
