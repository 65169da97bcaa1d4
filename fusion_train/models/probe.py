"""Fusion with a linear head and no language model: a quick test of how much the cached features reveal.

    features, averaged to few tokens and normalised if configured -> fusion -> (B, K, out) -> mean over tokens
    -> Linear(out → C)

One head serves all closed label sets: C counts the labels of every dataset and task, and the softmax of a sample runs
only over the labels of its own set. Shapes: B clips, K tokens, M modalities, C classes. Knows no label and no store.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusion_train.models.emotion_llama import ModelOutput, TokenLoss, checked_losses, cross_entropy
from fusion_train.models.fusion_inputs import fusion_inputs
from fusion_train.models.normalisation import Normalisation


class Probe(nn.Module):
    """A fusion variant and a linear head."""

    def __init__(
        self,
        fusion: nn.Module,
        *,
        fusion_width: int,
        fusion_tokens: int,
        num_classes: int,
        normalised: Mapping[str, int] | None = None,
    ) -> None:
        """Args:
        normalised: modality -> width, of the features that are normalised; None: none are.
        """
        super().__init__()
        self.fusion = fusion
        self.fusion_tokens = fusion_tokens
        self.head = nn.Linear(fusion_width, num_classes)
        self.token_loss: TokenLoss = cross_entropy
        """Loss of the class of a clip in training; a callback may put another one here."""
        self.normalisation = Normalisation(normalised) if normalised else None

    def logits(self, features: Mapping[str, Tensor], present: Tensor, allowed: Tensor) -> Tensor:
        """Compute the score of every class.

        Args:
            features: modality -> (B, K_m, D_m) of any float dtype, in the order that the fusion takes them.
            present: (B, M) bool; an absent row may hold anything.
            allowed: (B, C) bool, the classes of each clip's own set.

        Returns:
            (B, C), minus infinity for classes that are not allowed.
        """
        inputs = fusion_inputs(self.shown(features, present), self.fusion_tokens)
        fused = self.fusion(inputs, present)  # [b, k, out]
        return self.head(fused.mean(dim=1)).float().masked_fill(~allowed, float("-inf"))

    def shown(self, features: Mapping[str, Tensor], present: Tensor) -> dict[str, Tensor]:
        """Return modality -> (B, K_m, D_m) as the fusion takes them: normalised if configured, 0 where absent."""
        dtype = self.head.weight.dtype
        inputs = {
            name: torch.where(present[:, m, None, None], tokens, 0).to(dtype)
            for m, (name, tokens) in enumerate(features.items())
        }
        if self.normalisation is None:
            return inputs
        normalised = self.normalisation(inputs)
        return {
            name: torch.where(present[:, m, None, None], tokens, 0)
            for m, (name, tokens) in enumerate(normalised.items())
        }

    def forward(self, features: Mapping[str, Tensor], present: Tensor, allowed: Tensor, targets: Tensor) -> ModelOutput:
        """Compute the loss of the class `targets` (B,) of each clip; other arguments as in `logits`."""
        losses = checked_losses(self.token_loss, self.logits(features, present, allowed), targets)
        return ModelOutput(losses.sum(), losses)
