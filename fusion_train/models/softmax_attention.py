"""Fusion with one softmax weight per modality and token, as MERBench states the baseline of the MER challenges.

H_m = MLP_m (B, K, 128); concatenation (B, K, 384) -> MLP {384→512→128} -> Linear(128→M) -> softmax over the present
modalities = weights (B, K, M); sum_m weights_m · H_m -> Linear(128→256).
Source: MERBench (arXiv 2401.03429), attention mechanism: α = softmax(W h + b), z = Σ α_m h_m, for one vector per
modality and clip (`num_tokens: 1`). It was not compared with the released code (MERTools); `attention` and
`conv-attention` have no softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion_train.models.fusion_inputs import ModalityMLPs, mlp


class SoftmaxAttention(nn.Module):
    """Modality weights that are positive, sum to one and are zero for an absent modality."""

    def __init__(
        self, dims: Sequence[int], hidden: Sequence[int] = (512, 128), out_dim: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        dim = hidden[-1]
        self.prepare = ModalityMLPs(dims, hidden, dropout)
        self.attention_mlp = mlp(len(dims) * dim, hidden, dropout)
        self.attention_weights = nn.Linear(dim, len(dims))
        self.output = nn.Linear(dim, out_dim)

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Sequence of (B, K, D_m), `present` (B, M) bool -> (B, K, out_dim)."""
        prepared = self.prepare(features, present)
        weights = self._weigh(prepared, present)  # [b, k, m]
        return self.output((torch.stack(prepared, dim=-1) @ weights.unsqueeze(-1)).squeeze(-1))  # [b, k, out]

    def modality_weights(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Return the weights (B, K, M) of `forward`; they sum to one over the modalities."""
        return self._weigh(self.prepare(features, present), present)

    def _weigh(self, prepared: Sequence[Tensor], present: Tensor | None) -> Tensor:
        scores = self.attention_weights(self.attention_mlp(torch.cat(list(prepared), dim=-1)))  # [b, k, m]
        if present is not None:
            # A clip without any modality keeps finite weights; its values are zeros.
            readable = present | ~present.any(dim=1, keepdim=True)
            scores = scores.masked_fill(~readable[:, None], float("-inf"))
        return scores.softmax(dim=-1)
