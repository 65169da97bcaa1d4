"""Low-rank fusion (LMF): the layer behind TFN's outer product, as a sum of `RANK` products of one factor per modality.

z_m = [1, H_m] (B, K, H + 1); per rank r: Π_m z_m W_m^r (B, K, O); weighted sum over r, plus a bias -> Linear(O→256).
O is half of H, as in the released code. Its cost grows with M · H and not with H^M.
Source: Liu et al., ACL 2018 (arXiv 1806.00064) section 3.3; released code Justin1904/Low-rank-Multimodal-Fusion, and
MERTools at fb8dda0, toolkit/models/lmf.py; one vector per modality and clip: `num_tokens: 1`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion_train.models.fusion_inputs import ModalityMLPs
from fusion_train.models.tensor_fusion import with_one

RANK = 4


class LowRankFusion(nn.Module):
    """Products of all modalities by low-rank factors."""

    def __init__(
        self, dims: Sequence[int], hidden: Sequence[int] = (512, 128), out_dim: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        dim, width = hidden[-1], max(hidden[-1] // 2, 1)
        self.prepare = ModalityMLPs(dims, hidden, dropout)
        self.factors = nn.ParameterList(torch.empty(RANK, dim + 1, width) for _ in dims)
        self.rank_weights = nn.Parameter(torch.empty(RANK))
        self.bias = nn.Parameter(torch.zeros(width))
        self.output = nn.Linear(width, out_dim)
        for factor in self.factors:
            nn.init.xavier_normal_(factor)
        nn.init.normal_(self.rank_weights, std=math.sqrt(2 / (1 + RANK)))  # Xavier's, of a matrix of one row

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Sequence of (B, K, D_m), `present` (B, M) bool -> (B, K, out_dim)."""
        product: Tensor | None = None
        for tokens, factor in zip(self.prepare(features, present), self.factors, strict=True):
            projected = torch.einsum("bkh,rho->rbko", with_one(tokens), factor)
            product = projected if product is None else product * projected
        assert product is not None  # a fusion has a modality
        return self.output(torch.einsum("rbko,r->bko", product, self.rank_weights) + self.bias)
