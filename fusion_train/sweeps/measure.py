"""What a sweep compares by: one figure of a metric, formed of the answers that trials gave.

A trial's figures come from its predictions alone, so that a finished sweep can be compared by another metric of the
same task. Two variants are compared over the seeds that both finished and the clips that all of those answered: for
every seed both sets of answers are scored as one, and an answer counts as often as `comparison` asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fusion_train.comparison import Difference, OfSet, PerClip
from fusion_train.data.prompts import find_task
from fusion_train.errors import ConfigError
from fusion_train.evaluation.benches import BY_TASK
from fusion_train.metrics.registry import METRICS, main_figure, score
from fusion_train.metrics.scored import Resample, Scored

Rows = Sequence[Mapping[str, Any]]
"""Predictions, with `id`, `prediction` and `reference`."""


@dataclass(frozen=True)
class Measure:
    """A figure of a metric of the registry."""

    metric: str
    main: str

    def scored(self, rows: Rows) -> Scored:
        """Score one trial's answers.

        Raises:
            DataError: references that the metric cannot take.
        """
        references = {row["id"]: row["reference"] for row in rows}
        return score(self.metric, references, {row["id"]: row["prediction"] for row in rows}, main=self.main)

    def difference(self, mine: Mapping[int, Rows], theirs: Mapping[int, Rows]) -> Difference | None:
        """Of two variants, given their answers by seed; None without a seed and a clip in common.

        Raises:
            DataError: references that the metric cannot take.
        """
        pairs = [[{row["id"]: row for row in side[seed]} for side in (mine, theirs)] for seed in mine if seed in theirs]
        common = set.intersection(*(set(rows) for pair in pairs for rows in pair)) if pairs else set()
        if not common:
            return None
        scored = [self.scored([{**rows[clip], "id": f"{side}/{clip}"} for side, rows in enumerate(pair)
                               for clip in common]) for pair in pairs]  # fmt: skip
        # Sorted ids: all of side 0, then all of side 1; which clips enter a figure is told by their references.
        clips = [clip_id[2:] for clip_id in scored[0].clip_ids[: len(scored[0].clip_ids) // 2]]
        scores = [each.per_clip.reshape(2, -1) for each in scored if each.per_clip is not None]
        if scores:
            return PerClip(clips, np.mean([own - other for own, other in scores], axis=0))
        alike = [all(one[clip]["prediction"] == other[clip]["prediction"] for one, other in pairs) for clip in clips]
        return OfSet(clips, [_flat(each.resample) for each in scored], np.array(alike))


def choose_measure(task: str, metric: str | None = None, main: str | None = None) -> Measure:
    """The metric named or the task's own, by the figure named or the metric's own.

    Raises:
        ConfigError: no such task, metric or figure, or a task that has no metric of its own.
    """
    chosen = metric or BY_TASK.get(find_task(task).name)
    if chosen is None:
        raise ConfigError(
            f'task "{task}"', expected="a metric", got="none of its own",
            next_step="Name one with metric: " + ", ".join(METRICS) + ".",
        )  # fmt: skip
    return Measure(chosen, main_figure(chosen, main))


def _flat(resample: Resample) -> Callable[[np.ndarray], float]:
    return lambda counts: resample(counts.ravel())
