"""Fusion with a linear head and no language model: a quick test of how much the cached features reveal.

    features, averaged to few tokens and normalised if configured -> fusion -> (B, K, out) -> mean over tokens
    -> Linear(out → C)

One head serves all closed label sets: C counts the labels of every dataset and task, and the softmax of a sample runs
only over the labels of its own set. Behind the classes stand R outputs for labels that are numbers, such as the valence
of one dataset, each in units of the standard deviation of its training clips: number = mean + deviation · output.
Losses of a number: 1 − CCC over the clips of a micro-batch that have it, which is no mean over clips, so that the size
of micro-batches matters; or the squared error in those units, which is also the validation loss of both.
Shapes: B clips, K tokens, M modalities, C classes, R numbers. Knows no label and no store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn

from fusion_train.models.emotion_llama import ModelOutput, TokenLoss, checked_losses, cross_entropy
from fusion_train.models.fusion_inputs import fusion_inputs
from fusion_train.models.normalisation import Normalisation

NumberLoss = Literal["ccc", "mse"]
TINY = 1e-8


@dataclass(frozen=True)
class NumberTargets:
    """Which clips of a batch are asked for a number, and which for a label."""

    label_rows: Tensor
    """(Bl,) int64, rows of the batch that are asked for a label."""
    rows: Tensor
    """(Bn,) int64, the other rows."""
    outputs: Tensor
    """(Bn,) int64, which of the R numbers is asked."""
    values: Tensor
    """(Bn,) float32, in the unit of the label."""

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


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
        number_scales: tuple[tuple[float, float], ...] = (),
        number_loss: NumberLoss = "ccc",
    ) -> None:
        """Args:
        fusion_width: width of the fusion's tokens.
        normalised: modality -> width, of the features that are normalised; None: none are.
        number_scales: R pairs of mean and standard deviation of the training clips' numbers.
        """
        super().__init__()
        self.fusion = fusion
        self.fusion_tokens = fusion_tokens
        self.num_classes = num_classes
        self.number_loss = number_loss
        self.head = nn.Linear(fusion_width, num_classes + len(number_scales))
        if number_scales:
            # Parameters, so that they are in checkpoints; they do not learn.
            scales = nn.Parameter(torch.tensor(number_scales), requires_grad=False)  # [r, 2]
            self.head.register_parameter("number_scales", scales)
        self.token_loss: TokenLoss = cross_entropy
        """Loss of the class of a clip in training; a callback may put another one here."""
        self.normalisation = Normalisation(normalised) if normalised else None

    @property
    def number_scales(self) -> Tensor:
        """(R, 2) mean and standard deviation of each number over the training clips."""
        return self.head.get_parameter("number_scales")

    def logits(self, features: Mapping[str, Tensor], present: Tensor, allowed: Tensor) -> Tensor:
        """Compute the score of every class.

        Args:
            features: modality -> (B, K_m, D_m) of any float dtype, in the order that the fusion takes them.
            present: (B, M) bool; an absent row may hold anything.
            allowed: (B, C) bool, the classes of each clip's own set.

        Returns:
            (B, C), minus infinity for classes that are not allowed.
        """
        scores, _ = self._outputs(features, present)
        return scores[:, : self.num_classes].masked_fill(~allowed, float("-inf"))

    def numbers(self, features: Mapping[str, Tensor], present: Tensor, outputs: Tensor) -> Tensor:
        """Compute the number `outputs` (B,) int64 of each clip, in the unit of its label; the rest as in `logits`."""
        scores, _ = self._outputs(features, present)
        mean, deviation = self.number_scales[outputs].unbind(dim=1)
        return mean + deviation * self._number(scores, outputs)

    def _number(self, scores: Tensor, outputs: Tensor) -> Tensor:
        """(B, C + R) and (B,) -> (B,), in units of the standard deviation."""
        return scores.gather(1, self.num_classes + outputs[:, None])[:, 0]

    def _outputs(self, features: Mapping[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the outputs (B, C + R) float32 of the head, and in training the fusion's own loss, if it has one."""
        tokens = fusion_inputs(self.shown(features, present), self.fusion_tokens)
        with_loss = getattr(self.fusion, "with_loss", None) if self.training else None
        fused, own_loss = (self.fusion(tokens, present), None) if with_loss is None else with_loss(tokens, present)
        return self.head(fused.mean(dim=1)).float(), own_loss

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

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Tensor,
        allowed: Tensor,
        targets: Tensor,
        numbers: NumberTargets | None = None,
    ) -> ModelOutput:
        """Compute the loss of the class `targets` (B,) of each clip, or of its number; the rest as in `logits`."""
        scores, own_loss = self._outputs(features, present)
        logits = scores[:, : self.num_classes].masked_fill(~allowed, float("-inf"))
        if numbers is None:
            losses = checked_losses(self.token_loss, logits, targets)
        else:
            losses = scores.new_zeros(len(scores))
            if len(numbers.label_rows):
                rows = numbers.label_rows
                losses = losses.index_copy(0, rows, checked_losses(self.token_loss, logits[rows], targets[rows]))
            if len(numbers.rows):
                losses = losses.index_copy(0, numbers.rows, self._number_losses(scores[numbers.rows], numbers))
        if own_loss is not None:
            losses = losses + own_loss
        return ModelOutput(losses.sum(), losses)

    def _number_losses(self, scores: Tensor, numbers: NumberTargets) -> Tensor:
        """Return the loss (Bn,) of each number, of outputs (Bn, C + R)."""
        mean, deviation = self.number_scales[numbers.outputs].unbind(dim=1)
        predicted, true = self._number(scores, numbers.outputs), (numbers.values - mean) / deviation
        if self.number_loss == "mse" or not self.training:
            return (predicted - true).square()
        losses = torch.zeros_like(predicted)
        for output in range(len(self.number_scales)):
            weights = (numbers.outputs == output).float()
            losses = losses + weights * (1 - concordance(predicted, true, weights))
        return losses


def concordance(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Return the CCC, as `metrics.regression` defines it, of (n,) numbers with weights; 0 for fewer than two clips."""
    total = weights.sum().clamp(min=1)
    mean_x, mean_y = weights @ x / total, weights @ y / total
    dx, dy = x - mean_x, y - mean_y
    var_x, var_y, cov = (weights @ product / total for product in (dx * dx, dy * dy, dx * dy))
    return 2 * cov / (var_x + var_y + (mean_x - mean_y).square() + TINY)
