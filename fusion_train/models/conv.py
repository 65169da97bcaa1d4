"""Fusion by convolution over the token axis: only the conv branch of Conv-Attention.

F_d (B, K, 384) -> Conv1d(384→128, k=1) -> four times x + SiLU(Conv1d(128→128, k=3)(x)), no norm -> Linear(128→256).
Source: arXiv 2601.16449, ablation "Conv"; 77.93 / 65.92 on MER-UniBench / MMEVerse-Bench.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fusion_train.models.fusion_inputs import ModalityMLPs

NUM_CONV_BLOCKS = 4


class ConvBranch(nn.Module):
    """(B, K, in_dim) -> (B, K, dim), mixing neighbouring tokens."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.entry = nn.Conv1d(in_dim, dim, kernel_size=1)
        self.blocks = nn.ModuleList(nn.Conv1d(dim, dim, kernel_size=3, padding=1) for _ in range(NUM_CONV_BLOCKS))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.entry(tokens.transpose(1, 2))  # [b, h, k]
        for conv in self.blocks:
            x = x + F.silu(conv(x))
        return x.transpose(1, 2)  # [b, k, h]


class Conv(nn.Module):
    """Modality MLPs, channel concatenation, conv branch."""

    def __init__(
        self, dims: Sequence[int], hidden: Sequence[int] = (512, 128), out_dim: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.prepare = ModalityMLPs(dims, hidden, dropout)
        self.conv_branch = ConvBranch(len(dims) * hidden[-1], hidden[-1])
        self.output = nn.Linear(hidden[-1], out_dim)

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Sequence of (B, K, D_m), `present` (B, M) bool -> (B, K, out_dim)."""
        prepared = self.prepare(features, present)
        return self.output(self.conv_branch(torch.cat(prepared, dim=-1)))  # [b, k, out]
