"""Scores of a run beside those of its floor, with the paired difference of each method to the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusion_train.evaluation.benchmarks import BenchmarkSet
from fusion_train.evaluation.comparison import difference
from fusion_train.evaluation.score_report import interval_text, scale_of
from fusion_train.evaluation.scoring import SetScore, score_set
from fusion_train.metrics.metric_result import MetricSettings
from fusion_train.prompts.prompt import find_task
from fusion_train.report.tables import Table

THE_RUN = "this run"


def score_floor(rows: Mapping[str, Sequence[Mapping[str, Any]]], task_name: str) -> dict[str, SetScore]:
    """Score the rows of the run and of every method; labels by UAR, numbers by CCC.

    Raises:
        DataError: answers that the metric does not take.
    """
    main = "CCC" if find_task(task_name).answer == "number" else "UAR"
    metric = "regression" if main == "CCC" else "classification"
    return {
        name: score_set(name, BenchmarkSet(title=name, metric=metric, main=main), of_method, MetricSettings())
        for name, of_method in rows.items()
    }


def floor_table(scores: Mapping[str, SetScore]) -> Table:
    """Return one row per method: the main figure, its interval, the difference to the run, and the other figures."""
    run = scores[THE_RUN]
    others = [name for name in run.scored.figures if name not in (run.scored.main, "WAR")]  # WAR is the accuracy
    table = Table(["method", run.scored.main, "interval 95 %", "minus the run", *others])
    for name, score in scores.items():
        scale = scale_of(score.scored)
        figures = [score.scored.figures[other] * scale for other in others]
        table.add(
            [name, score.scored.value * scale, interval_text(score), _difference_text(run, score, scale), *figures]
        )
    table.note = f"{len(run.scored.clip_ids)} clips, clustered by {run.clustered_by}"
    return table


def _difference_text(run: SetScore, score: SetScore, scale: int) -> str | None:
    if score is run:
        return None
    gap = difference(run, score, score.title)
    text = f"{gap.value * scale:+.2f}"
    if gap.interval is None:
        return text
    return f"{text} ({gap.interval.low * scale:+.2f} to {gap.interval.high * scale:+.2f})"


def floor_json(scores: Mapping[str, SetScore]) -> dict[str, Any]:
    """Return figures and intervals by method as JSON values; figures are shares."""
    return {
        name: {
            "main": score.scored.main,
            "figures": dict(score.scored.figures),
            "interval": score.interval and [score.interval.low, score.interval.high],
            "clustered_by": score.clustered_by,
        }
        for name, score in scores.items()
    }
