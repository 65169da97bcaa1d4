"""Bring every modality to one width, and blank those that a clip does not have.

Per modality: Linear(D→512), ReLU, dropout, Linear(512→128), ReLU, dropout. (B, K, D_m) -> H_m (B, K, 128).
Source: arXiv 2601.16449, feature preparation of the pre-fusion module; `feats_prep` in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def mlp(in_dim: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Return Linear, ReLU, dropout for each width in `hidden`."""
    layers: list[nn.Module] = []
    for out_dim in hidden:
        layers += [nn.Linear(in_dim, out_dim), nn.ReLU(), nn.Dropout(dropout)]
        in_dim = out_dim
    return nn.Sequential(*layers)


class ModalityMLPs(nn.ModuleList):
    """One MLP a modality: sequence of (B, K, D_m) -> list of (B, K, hidden[-1])."""

    def __init__(self, dims: Sequence[int], hidden: Sequence[int], dropout: float) -> None:
        super().__init__([mlp(dim, hidden, dropout) for dim in dims])

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> list[Tensor]:
        """Map each modality; where `present` (B, M) is False the result is zero, whatever the input holds.

        The mask lies behind the MLP and not before it: a blanked input would still leave the biases' constant.
        """
        prepared = [net(tokens) for net, tokens in zip(self, features, strict=True)]  # [b, k, h] each
        if present is None:
            return prepared
        return [torch.where(present[:, m, None, None], tokens, 0) for m, tokens in enumerate(prepared)]
