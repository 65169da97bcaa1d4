"""What happened in the steps between two lines of the journal: counts and sums that processes can add up.

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
    """Counts micro-batches in; gives and forgets what it counted."""

    def __init__(self, work: Callable[[SampleStats], float]) -> None:
        """`work`: floating-point operations that training on a sample takes."""
        self._work = work
        self._asked: list[SampleStats] = []
        self._losses: list[Tensor] = []

    def count(self, asked: Sequence[SampleStats], sample_losses: Tensor) -> None:
        """Add a micro-batch: its samples and their summed losses (samples,)."""
        self._asked += asked
        self._losses.append(sample_losses.detach())

    def take(self) -> Counts:
        """Return the counts since the last call."""
        counts = Counts()
        losses = torch.cat(self._losses).tolist() if self._losses else []
        for asked, loss in zip(self._asked, losses, strict=True):
            counts.samples += 1
            counts.tokens += asked.num_tokens
            counts.supervised += asked.num_supervised
            counts.flops += self._work(asked)
            for key in (f"dataset/{asked.dataset or 'none'}", f"task/{asked.task}"):
                counts.losses[key] += loss
                counts.loss_tokens[key] += asked.num_supervised
            counts.absent.update([f"missing/{name}" for name in asked.missing])
            counts.absent.update([f"hidden/{name}" for name in asked.hidden])
        self._asked, self._losses = [], []
        return counts
