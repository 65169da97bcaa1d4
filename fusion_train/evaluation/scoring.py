"""Compute the scores of a benchmark from predictions: figures, intervals, subsets by tag, means as in the paper.

Scores depend only on the prediction rows (`prediction_rows`), so they can be computed again without a model. A mean is
computed only if all its sets are scored; otherwise it lists the missing ones. Figures are shares here and per cent in
reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from featurecache.clips.clip_list import NO_VALUES
from fusion_train.errors import DataError
from fusion_train.evaluation.benchmarks import Benchmark, BenchmarkSet
from fusion_train.evaluation.wording import NOT_STATED, instructions_in_rows, wording_in_rows
from fusion_train.evaluation.wrong_answers import WrongAnswer, wrong_answers
from fusion_train.metrics.labels import one_label
from fusion_train.metrics.metric_result import MetricResult, MetricSettings
from fusion_train.metrics.registry import score
from fusion_train.statistics.intervals import Interval, interval_between, jackknife
from fusion_train.statistics.selection import Selection

THE_REST = "the rest"


@dataclass(frozen=True)
class SetScore:
    """Scores of one set of a benchmark."""

    name: str
    title: str
    scored: MetricResult
    interval: Interval | None
    """Interval of the main figure, over clusters of clips; None if there are too few clusters."""
    clustered_by: str
    """`dialogue`, `speaker` or `clip`."""
    clusters: tuple[str, ...]
    """Cluster of each clip of `scored.clip_ids`."""
    also: Mapping[str, MetricResult] = field(default_factory=dict)
    """Further metrics of the same answers."""
    subsets: Mapping[str, MetricResult | str] = field(default_factory=dict)
    """Tag, and the rest without it -> main metric over these clips; a text if they cannot be scored."""
    answered: str = NOT_STATED
    """`choose`, `generate`, or `NOT_STATED`."""
    wording: str = NOT_STATED
    """Source of the wording, one of `wording.SOURCE_TEXTS`, or `NOT_STATED`."""
    instructions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Remarks on the clips that a reader of the score needs."""
    wrong: tuple[WrongAnswer, ...] = ()
    selection: Selection | None = None
    """Correction for choosing the best of several candidates on the same clips; None if none were chosen."""


@dataclass(frozen=True)
class BenchmarkMean:
    """Unweighted mean of the main figures of several sets, or the sets that are missing for it."""

    value: float | None
    missing: tuple[str, ...] = ()
    corrected: float | None = None
    """The same mean of scores corrected for selection; None unless all scores are corrected."""


@dataclass(frozen=True)
class BenchmarkScores:
    """All scores of a benchmark, as a report shows them."""

    benchmark: Benchmark
    sets: Mapping[str, SetScore]
    means: Mapping[str, BenchmarkMean]
    comparable: bool
    """Whether the score of every set may be compared with published ones."""


def score_set(
    name: str, benchmark_set: BenchmarkSet, rows: Sequence[Mapping[str, Any]], settings: MetricSettings
) -> SetScore:
    """Score one set from its rows.

    Raises:
        DataError: rows without a reference, a reference outside the vocabulary, or nothing to score.
        ConfigError: a task without a metric.
    """
    without_reference = [row["id"] for row in rows if _is_missing(row.get("reference"))]
    if without_reference:
        raise DataError(
            benchmark_set.title or name,
            expected="a reference in every row",
            got=f"none for {len(without_reference)} clips",
            next_step="Name the clip list with --clips.",
            problems=without_reference,
        )
    metric = benchmark_set.chosen_metric
    if metric is None:
        raise DataError(
            f'task "{benchmark_set.task}"', expected="a metric", got="none", next_step="Name one with --metric."
        )
    settings = replace(settings, vocabulary=benchmark_set.vocabulary)
    rows = [_with_answer_relabelled(row, benchmark_set.relabel_answers) for row in rows]
    scored = _score(metric, rows, settings, benchmark_set.main)
    clustered_by, clusters = _clusters(rows, scored.clip_ids)
    answered, wording = wording_in_rows(rows)
    return SetScore(
        name=name,
        title=benchmark_set.title or name,
        scored=scored,
        interval=interval_between(jackknife(scored.resample, clusters, scored.per_clip), scored.lowest, scored.highest),
        clustered_by=clustered_by,
        clusters=tuple(clusters),
        also={other: _score(other, rows, settings, None) for other in benchmark_set.also},
        subsets=_subsets(metric, rows, settings, benchmark_set.main),
        answered=answered,
        wording=wording,
        instructions=tuple(instructions_in_rows(rows)),
        notes=(*_label_count_notes(benchmark_set, rows), *_unmapped_notes(benchmark_set)),
        wrong=tuple(wrong_answers(rows, scored)),
    )


def score_benchmark(
    benchmark: Benchmark, rows: Mapping[str, Sequence[Mapping[str, Any]]], settings: MetricSettings
) -> BenchmarkScores:
    """Score every set that has rows, and compute the means whose sets are all scored."""
    sets = {
        name: score_set(name, benchmark.sets[name], rows[name], settings) for name in benchmark.sets if name in rows
    }
    means = {}
    for name, members in benchmark.means.items():
        missing = tuple(member for member in members if member not in sets)
        value = None if missing else sum(sets[member].scored.value for member in members) / len(members)
        means[name] = BenchmarkMean(value, missing)
    return BenchmarkScores(benchmark, sets, means, all(score.scored.comparable for score in sets.values()))


def _score(metric: str, rows: Sequence[Mapping[str, Any]], settings: MetricSettings, main: str | None) -> MetricResult:
    return score(
        metric,
        {row["id"]: row["reference"] for row in rows},
        {row["id"]: row["prediction"] for row in rows},
        settings,
        main,
    )


def _label_count_notes(benchmark_set: BenchmarkSet, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a note if the numbers of clips per label differ from those of the published ground truth."""
    if not benchmark_set.counts:
        return []
    counts = Counter(str(row["reference"]) for row in rows)
    if dict(sorted(counts.items())) == dict(sorted(benchmark_set.counts.items())):
        return []
    published = sum(benchmark_set.counts.values())
    per_label = ", ".join(f"{label} {counts[label]} of {count}" for label, count in benchmark_set.counts.items())
    return [f"{len(rows):,} clips, where {published:,} were scored by others: {per_label}"]


def _unmapped_notes(benchmark_set: BenchmarkSet) -> list[str]:
    """Return a note that names the labels of the dataset that no answer could match."""
    if not benchmark_set.unmapped:
        return []
    return [f"not asked: clips labelled {', '.join(benchmark_set.unmapped)}, which have no counterpart"]


def _with_answer_relabelled(row: Mapping[str, Any], labels: Mapping[str, str]) -> Mapping[str, Any]:
    prediction = row.get("prediction")
    if not labels or not isinstance(prediction, str):
        return row
    return {**row, "prediction": labels.get(one_label(prediction), prediction)}


def _is_missing(reference: Any) -> bool:
    """Whether a value of a file means "no reference": null, NaN, and the texts that programs write for these."""
    if isinstance(reference, str):
        return not reference.strip() or reference in NO_VALUES
    return reference is None or reference != reference  # NaN is not equal to itself


def _clusters(rows: Sequence[Mapping[str, Any]], clip_ids: Sequence[str]) -> tuple[str, list[str]]:
    """Return the kind of the clusters and the cluster of each clip.

    Clips are clustered by dialogue if every clip states one, or else by speaker; otherwise each clip is a cluster.
    """
    by_id = {row["id"]: row for row in rows}
    for key in ("dialogue", "speaker"):
        if all(by_id[clip].get(key) for clip in clip_ids):
            return key, [f"{by_id[clip].get('dataset')}/{by_id[clip][key]}" for clip in clip_ids]
    return "clip", list(clip_ids)


def _subsets(
    metric: str, rows: Sequence[Mapping[str, Any]], settings: MetricSettings, main: str | None
) -> dict[str, MetricResult | str]:
    tags = sorted({tag for row in rows for tag in row.get("tags") or ()})
    subsets: dict[str, MetricResult | str] = {}
    for tag in tags:
        tagged = [row for row in rows if tag in (row.get("tags") or ())]
        rest = [row for row in rows if tag not in (row.get("tags") or ())]
        for name, subset in ((tag, tagged), (f"{THE_REST}, without {tag}", rest)):
            try:
                subsets[name] = _score(metric, subset, settings, main)
            except DataError as error:
                subsets[name] = f"not scored: {error}"
    return subsets
