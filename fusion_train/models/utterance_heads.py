"""Heads on utterance vectors, one averaged vector per clip and modality: the challenge's attention head, and one MLP.

A head is an `nn.Module` whose `forward` takes a sequence of (B, D_m), one per modality, and returns the scores
(B, C). Dropout is by `nn.Dropout` modules, so that a search can give each of many stacked models its own stream.
Any registered fusion variant is a head too: it reads one token per modality, as in the probe.
Source of the attention head: the baseline of the MER challenges, github.com/zeroQiaoba/MERTools.
Shapes: B clips, M modalities, D_m width of modality m, H hidden width, C classes. Knows no label and no store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fusion_train.models.fusion_inputs import mlp
from fusion_train.models.fusions import build_fusion


class MerAttention(nn.Module):
    """An MLP per modality, one weight per modality from all of them, the weighted sum, and a linear layer."""

    def __init__(self, dims: Sequence[int], *, num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(nn.Sequential(nn.Dropout(dropout), mlp(dim, (hidden,), 0.0)) for dim in dims)
        self.weights = nn.Sequential(
            nn.Dropout(dropout), mlp(hidden * len(dims), (hidden,), 0.0), nn.Linear(hidden, len(dims))
        )
        self.classes = nn.Linear(hidden, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map one (B, D_m) per modality to the scores (B, C)."""
        encoded = [encode(vectors) for encode, vectors in zip(self.encoders, features, strict=True)]  # [b, h] each
        weights = self.weights(torch.cat(encoded, dim=1))  # [b, m]; not normalised, as in the challenge
        fused = (torch.stack(encoded, dim=1) * weights[:, :, None]).sum(dim=1)  # [b, h]
        return self.classes(fused)


class Concatenation(nn.Module):
    """All vectors side by side, two hidden layers, and a linear layer."""

    def __init__(self, dims: Sequence[int], *, num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = mlp(sum(dims), (hidden, hidden), dropout)
        self.classes = nn.Linear(hidden, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map one (B, D_m) per modality to the scores (B, C)."""
        return self.classes(self.layers(torch.cat(list(features), dim=1)))


class FusionHead(nn.Module):
    """A registered fusion variant over one token per modality, and a linear layer."""

    def __init__(self, name: str, dims: Sequence[int], *, num_classes: int, hidden: int, dropout: float) -> None:
        super().__init__()
        fusion = build_fusion(name, dims, hidden=(hidden,), out_dim=hidden, dropout=dropout, num_tokens=1)
        assert fusion is not None, "the variant `none` has no fusion"
        self.fusion, self.num_modalities = fusion, len(dims)
        self.classes = nn.Linear(hidden, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map one (B, D_m) per modality to the scores (B, C)."""
        present = torch.ones(len(features[0]), self.num_modalities, dtype=torch.bool, device=features[0].device)
        fused = self.fusion([vectors[:, None] for vectors in features], present)  # [b, 1, h]
        return self.classes(fused.mean(dim=1))


HEADS: dict[str, Callable[..., nn.Module]] = {"mer-attention": MerAttention, "concatenation": Concatenation}
"""Heads that are no fusion variant, by name."""


def build_head(name: str, dims: Sequence[int], *, num_classes: int, hidden: int, dropout: float) -> nn.Module:
    """Build a head of `HEADS`, or of the fusion variant of this name.

    Raises:
        ConfigError: no fusion variant of this name.
    """
    if name in HEADS:
        return HEADS[name](dims, num_classes=num_classes, hidden=hidden, dropout=dropout)
    return FusionHead(name, dims, num_classes=num_classes, hidden=hidden, dropout=dropout)
