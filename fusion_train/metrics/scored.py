"""The common form of a score, whatever metric it is of, and what metrics need besides references and predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusion_train.metrics.overlap import Judge, LexicalJudge
from fusion_train.metrics.wheels import EmotionWheels

Resample = Callable[[np.ndarray], float]
"""(clips,) how often each clip counts, in the order of `Scored.clip_ids` -> the main figure."""


@dataclass(frozen=True)
class Scored:
    """What a metric says of one set of clips."""

    main: str
    """Which of the figures stands for the set."""
    figures: Mapping[str, float]
    clip_ids: tuple[str, ...]
    """Those that enter the main figure."""
    resample: Resample = field(repr=False, compare=False)
    """The main figure again, for an interval; counting every clip once gives the figure itself."""
    per_clip: np.ndarray | None = field(default=None, compare=False)
    """(clips,) what the main figure is the mean of; None where it belongs to the set alone (F1, UAR, mAP)."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of clips and labels, by which the reader judges the figures."""
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    confusion: np.ndarray | None = field(default=None, compare=False)
    """(C, C + 1) reference by prediction in the order of `labels`, other answers last."""
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    comparable: bool = True
    """Whether it may stand beside published scores."""
    highest: float = 1.0
    """The best value of a figure; 1 for a share."""

    @property
    def value(self) -> float:
        return self.figures[self.main]


def mean_of(per_clip: np.ndarray) -> dict[str, Any]:
    """The fields of a `Scored` whose main figure is the mean of these."""
    return {"per_clip": per_clip, "resample": lambda counts: float(np.average(per_clip, weights=counts))}


@dataclass(frozen=True)
class Settings:
    """Chosen by the user or the bench."""

    wheels: EmotionWheels = field(default_factory=EmotionWheels.small)
    judge: Judge = field(default_factory=LexicalJudge)
    vocabulary: Sequence[str] | None = None
    """The dataset's label space; None takes the labels of the references."""
