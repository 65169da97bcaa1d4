"""From predictions to the scores of a bench: figures, intervals, subsets by tag, means as the paper forms them.

Scores come from the prediction rows alone (`prediction_rows`), so that they can be formed again without a model. A mean
is formed only where every set of it is scored; otherwise it says which are missing. Figures are shares here, per cent
in reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from featurecache.clips.clip_list import NO_VALUES
from fusion_train.errors import DataError
from fusion_train.evaluation.benchmarks import Benchmark, BenchmarkSet
from fusion_train.evaluation.wording import NOT_STATED, instructions_of, said_of
from fusion_train.metrics.registry import score
from fusion_train.metrics.scored import Scored, Settings
from fusion_train.statistics.intervals import Interval, interval_of, jackknife
from fusion_train.statistics.selection import Selection

THE_REST = "the rest"


@dataclass(frozen=True)
class SetScore:
    """One set of a bench."""

    name: str
    title: str
    scored: Scored
    interval: Interval | None
    """Of the main figure, clustered where the clips say what belongs together; None with too few clusters."""
    clustered_by: str
    """`dialogue`, `speaker` or `clip`."""
    clusters: tuple[str, ...]
    """The cluster of each clip of `scored.clip_ids`."""
    also: Mapping[str, Scored] = field(default_factory=dict)
    """Further metrics of the same answers."""
    subsets: Mapping[str, Scored | str] = field(default_factory=dict)
    """Tag -> the main metric over its clips, and over the rest; a text where they have no score."""
    answered: str = NOT_STATED
    """`choose`, `generate`, or that the rows do not say it."""
    wording: str = NOT_STATED
    """Whose wording was asked."""
    instructions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What must be known of the clips."""
    selection: Selection | None = None
    """Of a set whose best answers were chosen on its own clips."""


@dataclass(frozen=True)
class Mean:
    """An unweighted mean of main figures, or the sets it lacks."""

    value: float | None
    missing: tuple[str, ...] = ()
    corrected: float | None = None
    """The same mean of scores that are corrected for selection; None where one is not."""


@dataclass(frozen=True)
class BenchmarkScores:
    """Everything that a report shows."""

    benchmark: Benchmark
    sets: Mapping[str, SetScore]
    means: Mapping[str, Mean]
    comparable: bool
    """Whether every set's score may stand beside published ones."""


def score_set(name: str, asked: BenchmarkSet, rows: Sequence[Mapping[str, Any]], settings: Settings) -> SetScore:
    """Score one set from its rows.

    Raises:
        DataError: rows without a reference, a reference outside the vocabulary, or nothing to score.
        ConfigError: a task without a metric.
    """
    without = [row["id"] for row in rows if _is_nothing(row.get("reference"))]
    if without:
        raise DataError(
            asked.title or name,
            expected="a reference in every row",
            got=f"none for {len(without)} clips",
            next_step="Name the clip list with --clips.",
            problems=without,
        )
    metric = asked.chosen_metric
    if metric is None:
        raise DataError(f'task "{asked.task}"', expected="a metric", got="none", next_step="Name one with --metric.")
    settings = replace(settings, vocabulary=asked.vocabulary)
    scored = _score(metric, rows, settings, asked.main)
    clustered_by, clusters = _clusters(rows, scored.clip_ids)
    answered, wording = said_of(rows)
    return SetScore(
        name=name,
        title=asked.title or name,
        scored=scored,
        interval=interval_of(jackknife(scored.resample, clusters, scored.per_clip), share=scored.highest == 1),
        clustered_by=clustered_by,
        clusters=tuple(clusters),
        also={other: _score(other, rows, settings, None) for other in asked.also},
        subsets=_subsets(metric, rows, settings, asked.main),
        answered=answered,
        wording=wording,
        instructions=tuple(instructions_of(rows)),
        notes=tuple(_other_counts(asked, rows)),
    )


def score_benchmark(
    benchmark: Benchmark, rows: Mapping[str, Sequence[Mapping[str, Any]]], settings: Settings
) -> BenchmarkScores:
    """Score the sets that have rows; the means need all of theirs."""
    sets = {
        name: score_set(name, benchmark.sets[name], rows[name], settings) for name in benchmark.sets if name in rows
    }
    means = {}
    for name, members in benchmark.means.items():
        missing = tuple(member for member in members if member not in sets)
        value = None if missing else sum(sets[member].scored.value for member in members) / len(members)
        means[name] = Mean(value, missing)
    return BenchmarkScores(benchmark, sets, means, all(each.scored.comparable for each in sets.values()))


def _score(metric: str, rows: Sequence[Mapping[str, Any]], settings: Settings, main: str | None) -> Scored:
    return score(
        metric,
        {row["id"]: row["reference"] for row in rows},
        {row["id"]: row["prediction"] for row in rows},
        settings,
        main,
    )


def _other_counts(asked: BenchmarkSet, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the labels of the references differ in number from those that others scored."""
    if not asked.counts:
        return []
    here = Counter(str(row["reference"]) for row in rows)
    if {label: here[label] for label in sorted(here)} == dict(sorted(asked.counts.items())):
        return []
    both = (f"{label} {here[label]} of {count}" for label, count in asked.counts.items())
    return [f"{len(rows):,} clips, where {sum(asked.counts.values()):,} were scored by others: {', '.join(both)}"]


def _is_nothing(reference: Any) -> bool:
    """What files have where there is no reference: null, NaN, and the texts that programs write for these."""
    if isinstance(reference, str):
        return not reference.strip() or reference in NO_VALUES
    return reference is None or reference != reference


def _clusters(rows: Sequence[Mapping[str, Any]], clip_ids: Sequence[str]) -> tuple[str, list[str]]:
    """What clips of one cluster have in common, and the cluster of each clip: a dialogue, or else a speaker."""
    by_id = {row["id"]: row for row in rows}
    for key in ("dialogue", "speaker"):
        if all(by_id[clip].get(key) for clip in clip_ids):
            return key, [f"{by_id[clip].get('dataset')}/{by_id[clip][key]}" for clip in clip_ids]
    return "clip", list(clip_ids)


def _subsets(
    metric: str, rows: Sequence[Mapping[str, Any]], settings: Settings, main: str | None
) -> dict[str, Scored | str]:
    tags = sorted({tag for row in rows for tag in row.get("tags") or ()})
    subsets: dict[str, Scored | str] = {}
    for tag in tags:
        tagged = [row for row in rows if tag in (row.get("tags") or ())]
        rest = [row for row in rows if tag not in (row.get("tags") or ())]
        for name, part in ((tag, tagged), (f"{THE_REST}, without {tag}", rest)):
            try:
                subsets[name] = _score(metric, part, settings, main)
            except DataError as error:
                subsets[name] = f"not scored: {error}"
    return subsets
