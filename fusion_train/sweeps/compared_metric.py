"""The metric that a sweep compares variants by: one figure, computed from the predictions of the trials.

A trial's figures come only from its predictions, so that a finished sweep can be compared by another metric of the
same task. Two variants are compared over the seeds that each finished and the clips that all of those answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion_train.errors import ConfigError
from fusion_train.evaluation.benchmarks import metric_of
from fusion_train.metrics.metric_result import MetricResult
from fusion_train.metrics.registry import METRICS, choosing_figure, score
from fusion_train.prompts.prompt import find_task

Rows = Sequence[Mapping[str, Any]]
"""Predictions, with `id`, `prediction` and `reference`."""


@dataclass(frozen=True)
class ComparedMetric:
    """A figure of a metric of the registry."""

    metric: str
    main: str

    def scored(self, rows: Rows) -> MetricResult:
        """Score one trial's answers.

        Raises:
            DataError: references that the metric cannot take.
        """
        references = {row["id"]: row["reference"] for row in rows}
        return score(self.metric, references, {row["id"]: row["prediction"] for row in rows}, main=self.main)

    def paired(
        self, rows: Mapping[int, Rows], reference: Mapping[int, Rows]
    ) -> tuple[list[MetricResult], list[MetricResult]] | None:
        """Score two variants, given their answers by seed, on the clips that all of them answered.

        Returns one `MetricResult` per seed of each; None without a seed of each or a clip in common.

        Raises:
            DataError: references that the metric cannot take.
        """
        sides = [[{row["id"]: row for row in answers} for answers in side.values()] for side in (rows, reference)]
        if not all(sides):
            return None
        common = set.intersection(*(set(answers) for side in sides for answers in side))
        if not common:
            return None
        scored = [[self.scored([answers[clip] for clip in common]) for answers in side] for side in sides]
        return scored[0], scored[1]


def choose_metric(task: str, metric: str | None = None, main: str | None = None) -> ComparedMetric:
    """The metric named or the task's own, by the figure named or the metric's own.

    Raises:
        ConfigError: no such task, metric or figure, or a task that has no metric of its own.
    """
    chosen = metric or metric_of(find_task(task))
    if chosen is None:
        raise ConfigError(
            f'task "{task}"',
            expected="a metric",
            got="none of its own",
            next_step="Name one with metric: " + ", ".join(METRICS) + ".",
        )
    return ComparedMetric(chosen, choosing_figure(chosen, main))
