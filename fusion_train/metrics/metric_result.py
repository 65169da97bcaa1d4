"""Result of any metric on one set of clips, and the settings that metrics share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fusion_train.metrics.overlap import Judge, LexicalJudge
from fusion_train.metrics.wheels import EmotionWheels

Resample = Callable[[np.ndarray], float]
"""(clips,) weight of each clip, in the order of `MetricResult.clip_ids` -> the main figure."""


@dataclass(frozen=True)
class MetricResult:
    """Figures of one metric over one set of clips."""

    main: str
    """Name of the main figure, which stands for the set in summaries and comparisons."""
    figures: Mapping[str, float]
    clip_ids: tuple[str, ...]
    """Clips that enter the main figure."""
    resample: Resample = field(repr=False, compare=False)
    """Computes the main figure with other weights per clip, for intervals; weights of 1 give the figure itself."""
    per_clip: np.ndarray | None = field(default=None, compare=False)
    """(clips,) values whose mean is the main figure; None if it is no mean over clips (F1, UAR, mAP)."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of clips and labels, for the report."""
    per_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Label -> figure -> value."""
    confusion: np.ndarray | None = field(default=None, compare=False)
    """(C, C + 1) counts: references by predictions, in the order of `labels`; the last column counts other answers."""
    labels: tuple[str, ...] = ()
    outcomes: np.ndarray | None = field(default=None, compare=False)
    """(clips, 2) indices of reference and answer in `labels`; C for an answer outside them. None without classes."""
    notes: tuple[str, ...] = ()
    comparable: bool = True
    """Whether the figures are comparable with published scores."""
    lowest: float = 0.0
    """The lowest possible value of the main figure; 0 for a share."""
    highest: float = 1.0
    """The highest possible value of the main figure; 1 for a share, infinity for an error in the unit of labels."""

    @property
    def is_share(self) -> bool:
        """Whether the main figure lies between 0 and 1; shares are shown in per cent."""
        return (self.lowest, self.highest) == (0, 1)

    @property
    def is_error(self) -> bool:
        """Whether less of the main figure is better."""
        return self.highest == math.inf

    @property
    def value(self) -> float:
        """The main figure."""
        return self.figures[self.main]


def mean_of(per_clip: np.ndarray) -> dict[str, Any]:
    """Return the fields of a `MetricResult` whose main figure is the mean of `per_clip`."""
    return {"per_clip": per_clip, "resample": lambda counts: float(np.average(per_clip, weights=counts))}


@dataclass(frozen=True)
class MetricSettings:
    """Settings of metrics, from the user or the benchmark."""

    wheels: EmotionWheels = field(default_factory=EmotionWheels.small)
    judge: Judge = field(default_factory=LexicalJudge)
    vocabulary: Sequence[str] | None = None
    """Label space of the dataset; None takes the labels of the references."""
