"""Conv-Attention pre-fusion: per-token modality weights plus convolution over the token axis.

Inputs in the order audio (B, 64, 1280), image CLS repeated (B, 64, 1408), video (B, 64, 1408).
1. One MLP per modality -> H_m (B, 64, 128).
2. F_d = channel concatenation (B, 64, 384); F_s = stack (B, 64, 128, 3).
3. Attention branch: weights = Linear(128→3)(MLP_{384→512→128}(F_d)), no softmax and no scaling; F_attn = F_s @ weights.
4. Conv branch: see `conv.py`.
5. Linear(128→256)(F_attn + F_conv) -> (B, 64, 256). 2,838,275 parameters.
Source: arXiv 2601.16449; `conv_pro_module` of the released code. 78.91 / 66.05 on MER-UniBench / MMEVerse-Bench.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion_train.models.conv import ConvBranch
from fusion_train.models.fusion_inputs import ModalityMLPs, mlp


class ConvAttention(nn.Module):
    """The published pre-fusion module."""

    def __init__(
        self,
        dims: Sequence[int] = (1280, 1408, 1408),
        hidden: Sequence[int] = (512, 128),
        out_dim: int = 256,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        dim, num_modalities = hidden[-1], len(dims)
        self.prepare = ModalityMLPs(dims, hidden, dropout)
        self.attention_mlp = mlp(num_modalities * dim, hidden, dropout)
        self.attention_weights = nn.Linear(dim, num_modalities)
        self.conv_branch = ConvBranch(num_modalities * dim, dim)
        self.output = nn.Linear(dim, out_dim)

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Sequence of (B, K, D_m), `present` (B, M) bool -> (B, K, out_dim)."""
        prepared = self.prepare(features, present)
        joined = torch.cat(prepared, dim=-1)  # [b, k, m * h]
        stacked = torch.stack(prepared, dim=-1)  # [b, k, h, m]
        weights = self._weigh(joined)  # [b, k, m]
        attended = (stacked @ weights.unsqueeze(-1)).squeeze(-1)  # [b, k, h]
        return self.output(attended + self.conv_branch(joined))  # [b, k, out]

    def modality_weights(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Return the weights (B, K, M) of the modalities in the attention branch, per token.

        There is no softmax: weights may be negative and do not sum to one.
        """
        return self._weigh(torch.cat(self.prepare(features, present), dim=-1))

    def _weigh(self, joined: Tensor) -> Tensor:
        """(B, K, M · H) -> (B, K, M)."""
        return self.attention_weights(self.attention_mlp(joined))
