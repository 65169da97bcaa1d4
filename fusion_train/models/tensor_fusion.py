"""Tensor fusion (TFN): the outer product of all modalities, each with a constant 1, through two layers.

z_m = [1, H_m] (B, K, H + 1); z_1 ⊗ … ⊗ z_M (B, K, (H + 1)^M) -> Linear((H + 1)^M → H), ReLU -> Linear(H → H), ReLU ->
Linear(H→256). The 1s keep every product of fewer modalities; those with an absent modality are zero.
The tensor has 35,937 entries for three modalities of width 32, 2,146,689 for width 128: `model.fusion.hidden` ends in a
small number, as in the paper (32 for sound and picture). More than `MAX_WEIGHTS` weights are refused.
Source: Zadeh et al., EMNLP 2017 (arXiv 1707.07250) section 4; released code of MERTools at fb8dda0,
toolkit/models/tfn.py, one vector per modality and clip: `num_tokens: 1`. With more tokens the product is per token.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fusion_train.errors import ConfigError
from fusion_train.models.fusion_inputs import ModalityMLPs

MAX_WEIGHTS = 1 << 26
"""Weights of the first layer behind the tensor: 67 million, 268 MB, and three times as much while they train."""


class TensorFusion(nn.Module):
    """Products of all modalities, explicitly."""

    def __init__(
        self, dims: Sequence[int], hidden: Sequence[int] = (512, 32), out_dim: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        dim = hidden[-1]
        entries = (dim + 1) ** len(dims)
        if entries * dim > MAX_WEIGHTS:
            raise ConfigError(
                'model.fusion "tfn"',
                expected=f"at most {MAX_WEIGHTS:,} weights behind the outer product",
                got=f"{entries * dim:,}: {entries:,} products of {len(dims)} modalities of width {dim}, times {dim}",
                next_step=f"Set model.fusion.hidden=[{', '.join(map(str, [*hidden[:-1], 32]))}], or name=lmf.",
            )
        self.prepare = ModalityMLPs(dims, hidden, dropout)
        self.dropout = nn.Dropout(dropout)
        self.products = nn.Linear(entries, dim)
        self.mixed = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, out_dim)

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Sequence of (B, K, D_m), `present` (B, M) bool -> (B, K, out_dim)."""
        first, *others = (with_one(tokens) for tokens in self.prepare(features, present))
        tensor = first
        for tokens in others:
            tensor = (tensor.unsqueeze(-1) * tokens.unsqueeze(-2)).flatten(2)  # [b, k, (h + 1) ** m]
        mixed = F.relu(self.mixed(F.relu(self.products(self.dropout(tensor)))))
        return self.output(mixed)


def with_one(tokens: Tensor) -> Tensor:
    """Return (B, K, H + 1): a constant 1, then the tokens (B, K, H)."""
    return F.pad(tokens, (1, 0), value=1.0)
