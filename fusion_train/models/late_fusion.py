"""Late fusion: one network per modality, and the mean of their outputs over the modalities that a clip has.

MLP_m (B, K, 128) -> Linear_m(128→256); mean over the present modalities (B, K, 256). The linear head of a probe comes
behind the mean; because it is linear, the logits are the mean of the logits of each modality.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fusion_train.models.fusion_inputs import ModalityMLPs


class LateFusion(nn.Module):
    """Mean of separate outputs per modality."""

    def __init__(
        self, dims: Sequence[int], hidden: Sequence[int] = (512, 128), out_dim: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.prepare = ModalityMLPs(dims, hidden, dropout)
        self.outputs = nn.ModuleList(nn.Linear(hidden[-1], out_dim) for _ in dims)

    def forward(self, features: Sequence[Tensor], present: Tensor | None = None) -> Tensor:
        """Sequence of (B, K, D_m), `present` (B, M) bool -> (B, K, out_dim)."""
        prepared = self.prepare(features)
        outputs = torch.stack(
            [layer(x) for layer, x in zip(self.outputs, prepared, strict=True)], dim=1
        )  # [b, m, k, o]
        if present is None:
            return outputs.mean(dim=1)
        outputs = torch.where(present[:, :, None, None], outputs, 0)
        return outputs.sum(dim=1) / present.sum(dim=1).clamp(min=1)[:, None, None]
