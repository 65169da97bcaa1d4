"""`gated-sum`: a fusion variant that weighs the modalities of each token and adds them.

Shapes: B clips, K tokens, M modalities of width D_m -> MLPs (B, K, H) -> softmax over modalities of a linear gate
(B, K, M) -> weighted sum (B, K, H) -> (B, K, out_dim).

An export copies this module into the exported folder, so it imports torch and modules of fusion_train only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion_train.models.fusion_inputs import ModalityMLPs


class GatedSum(nn.Module):
    """A gate per token and modality; an absent modality has weight zero."""

    def __init__(
        self, dims: Sequence[int], hidden: Sequence[int] = (512, 128), out_dim: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.prepare = ModalityMLPs(dims, hidden, dropout)
        self.gate = nn.Linear(len(dims) * hidden[-1], len(dims))
        self.output = nn.Linear(hidden[-1], out_dim)

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Sequence of (B, K, D_m), `present` (B, M) bool -> (B, K, out_dim)."""
        prepared = self.prepare(features, present)  # [b, k, h] each, zero where absent
        scores = self.gate(torch.cat(prepared, dim=-1))  # [b, k, m]
        if present is not None:
            # The lowest finite number and not -inf: a clip without any modality must not become NaN.
            scores = scores.masked_fill(~present[:, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        mixed = sum(weights[..., m, None] * tokens for m, tokens in enumerate(prepared))  # [b, k, h]
        return self.output(mixed)
