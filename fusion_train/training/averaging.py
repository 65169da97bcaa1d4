"""An exponential moving average of the learning parameters; it is scored, exported, and the start of the next stage.

After step t (from 0): average ← average + (1 - d)·(parameter - average), d = min(decay, (1 + t) / (10 + t)), so that
the first steps lose weight soon. It depends only on the steps, so a resumed run has the same average to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fusion_train.models.parts import learning_parameters, trained_parameters


class Averaged:
    """The moving average of a model's learning parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay, self._model = decay, model
        self._parameters = learning_parameters(model)
        self._average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def update(self, step: int) -> None:
        """Update the average after optimizer step `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(self._average.values()), [p.detach() for p in self._parameters.values()], weight=1 - decay
        )

    def tensors(self) -> dict[str, Tensor]:
        """Averaged parameters by name; frozen ones unchanged."""
        return {
            name: self._average.get(name, parameter.detach())
            for name, parameter in trained_parameters(self._model).items()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a saved average."""
        for name, average in self._average.items():
            average.copy_(tensors[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average into the model; on leaving, the parameters are back bit for bit."""
        parameters = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(parameters)

    @torch.no_grad()
    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])
