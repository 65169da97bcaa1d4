"""Metrics accumulated between two log lines: counts and sums that processes can add up.

Losses stay on the device until the line is written, so that counting never waits for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fusion_train.data.samples import SampleStats


@dataclass
class Counts:
    """Sums over samples of one process, or of several."""

    samples: int = 0
    tokens: int = 0
    supervised: int = 0
    flops: float = 0.0
    losses: Counter[str] = field(default_factory=Counter)
    """Sum of token losses by `dataset/NAME` and `task/NAME`."""
    loss_tokens: Counter[str] = field(default_factory=Counter)
    """Supervised tokens by the same keys."""
    absent: Counter[str] = field(default_factory=Counter)
    """Samples by `missing/MODALITY` and `hidden/MODALITY`."""

    def add(self, other: Counts) -> None:
        self.samples += other.samples
        self.tokens += other.tokens
        self.supervised += other.supervised
        self.flops += other.flops
        self.losses.update(other.losses)
        self.loss_tokens.update(other.loss_tokens)
        self.absent.update(other.absent)


class MetricsAccumulator:
    """Accumulates micro-batches until `take` returns the counts and resets them."""

    def __init__(self, work: Callable[[SampleStats], float]) -> None:
        """`work`: floating-point operations of training on a sample."""
        self._work = work
        self._samples: list[SampleStats] = []
        self._losses: list[Tensor] = []

    def count(self, samples: Sequence[SampleStats], sample_losses: Tensor) -> None:
        """Add a micro-batch: its samples and their summed losses (samples,)."""
        self._samples += samples
        self._losses.append(sample_losses.detach())

    def take(self) -> Counts:
        """Return the counts since the last call."""
        counts = Counts()
        losses = torch.cat(self._losses).tolist() if self._losses else []
        for sample, loss in zip(self._samples, losses, strict=True):
            counts.samples += 1
            counts.tokens += sample.num_tokens
            counts.supervised += sample.num_supervised
            counts.flops += self._work(sample)
            for key in (f"dataset/{sample.dataset or 'none'}", f"task/{sample.task}"):
                counts.losses[key] += loss
                counts.loss_tokens[key] += sample.num_supervised
            counts.absent.update([f"missing/{name}" for name in sample.missing])
            counts.absent.update([f"hidden/{name}" for name in sample.hidden])
        self._samples, self._losses = [], []
        return counts
