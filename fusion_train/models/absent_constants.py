"""What the model sees in place of a modality that a clip lacks, where a run makes absence visible (`features.absent`).

Shapes: B clips, M modalities in use, K tokens of width D. Knows no file; `data/absent` says what stands in.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusion_train.models.token_streams import FeatureShapes


class AbsentConstants(nn.Module):
    """One (K, D) constant a modality in use, kept beside the weights."""

    def __init__(self, shapes: FeatureShapes) -> None:
        super().__init__()
        self._used = shapes.used
        for name in self._used:
            self.register_buffer(name, torch.zeros(getattr(shapes, name)))

    def forward(self, features: Mapping[str, Tensor], present: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features (B, K, D) a modality and `present` (B, M) -> what is seen of them, and that all of it is there."""
        seen = {
            name: torch.where(present[:, m, None, None], features[name], getattr(self, name).to(features[name]))
            for m, name in enumerate(self._used)
        }
        return seen, torch.ones_like(present)
