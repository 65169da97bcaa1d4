"""Scores of folds: per fold and pooled, with intervals over groups of clips, and paired comparisons.

A figure of one fold describes few clips, and not all labels may occur there; the mean and the standard deviation over
folds are what papers print. The pooled figure is computed once from the answers about all clips, each given by a run
that did not train on the clip. Its interval is a jackknife over the groups that folds keep together (speakers), and so
is that of a difference of two sets of answers on the same clips. The runs of different folds share most of their
training clips; no interval over clips contains the variation that other training clips would bring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from featurecache.errors import suggest
from fusion_train.errors import DataError
from fusion_train.evaluation.append_only import read_lines
from fusion_train.folds.running import LINEAR, pooled_file, read_about
from fusion_train.metrics.metric_result import MetricResult, MetricSettings
from fusion_train.metrics.registry import score
from fusion_train.statistics.comparison import Comparison, compare_all, holm, two_sided_p
from fusion_train.statistics.intervals import MIN_CLUSTERS, Interval, difference_interval, interval_of, jackknife

FIGURES = ("UAR", "WAR", "weighted F1")
METRIC = "classification"
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answers:
    """Answers about all clips of some folds, each by a model that was not trained on the clip."""

    name: str
    rows: Rows
    """Sorted by clip id."""

    @cached_property
    def pooled(self) -> dict[str, MetricResult]:
        """Figure -> result over all clips."""
        return {figure: _scored(self.rows, figure) for figure in FIGURES}

    @cached_property
    def by_fold(self) -> dict[str, dict[str, float]]:
        """Fold -> figure -> value; a fold without some label has figures over the others."""
        folds: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.rows:
            folds.setdefault(row["fold"], []).append(row)
        return {fold: dict(_scored(rows, FIGURES[0]).figures) for fold, rows in folds.items()}

    def mean_and_sd(self, figure: str) -> tuple[float, float]:
        """Return mean and standard deviation of a figure over the folds."""
        values = [figures[figure] for figures in self.by_fold.values()]
        return fmean(values), stdev(values)

    def interval(self, figure: str, clusters: Mapping[str, str]) -> Interval | None:
        """Return the interval of the pooled figure; None if there are too few clusters."""
        result = self.pooled[figure]
        return interval_of(jackknife(result.resample, [clusters[clip] for clip in result.clip_ids], result.per_clip))


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two sets of answers about the same clips, in shares."""

    name: str
    reference: str
    figure: str
    value: float
    interval: Interval | None
    p: float | None
    p_holm: float | None
    """p corrected for all comparisons of the same figure."""

    @property
    def verdict(self) -> str:
        """The verdict in words, in points."""
        points = f"{self.value * 100:+.2f} points of {self.figure}"
        if self.interval is None or self.p_holm is None:
            return f"{points}; no verdict is possible below {MIN_CLUSTERS} groups of clips"
        low, high = (bound * 100 for bound in (self.interval.low, self.interval.high))
        clear = self.p_holm < 1 - self.interval.level and not self.interval.low <= 0 <= self.interval.high
        word = ("better" if self.value > 0 else "worse") if clear else "not distinguishable"
        corrected = "" if self.p == self.p_holm else " (Holm)"
        return f"{word}: {points}, 95 % interval {low:+.2f} to {high:+.2f}, p = {self.p_holm:.3g}{corrected}"


@dataclass(frozen=True)
class FoldResults:
    """The answers in a folder of folds."""

    folder: Path
    about: Mapping[str, Any]
    seeds: Mapping[int, Answers]
    linear: Answers

    @property
    def name(self) -> str:
        return str(self.about["config"]["stage"])

    @cached_property
    def main(self) -> Answers:
        """The answers that stand for the folder: of the only seed, or of all seeds averaged."""
        if len(self.seeds) == 1:
            return Answers(self.name, next(iter(self.seeds.values())).rows)
        return Answers(
            f"{self.name}, {len(self.seeds)} seeds averaged", averaged([a.rows for a in self.seeds.values()])
        )

    @property
    def clusters(self) -> Mapping[str, str]:
        """Clip id -> the group that intervals leave out together."""
        clusters: Mapping[str, str] = self.about["clusters"]
        return clusters

    @property
    def shown(self) -> list[Answers]:
        """All answers, as tables show them: the single seeds, the main ones, the baseline."""
        single = [*self.seeds.values()] if len(self.seeds) > 1 else []
        return [*single, self.main, self.linear]


def read_results(folder: Path) -> FoldResults:
    """Read the pooled answers of a folder.

    Raises:
        DataError: not all folds are trained and asked, or a damaged file.
    """
    about = read_about(folder)
    files = {seed: pooled_file(folder, f"seed-{seed}") for seed in about["seeds"]}
    lacking = [path.name for path in (*files.values(), pooled_file(folder, LINEAR)) if not path.is_file()]
    if lacking:
        raise DataError(
            str(folder),
            expected="folds that are all trained and asked",
            got=f"no {', '.join(lacking)}",
            next_step=f"Go on with the command that began them (--folds {about['by']} --out {folder}).",
        )
    seeds = {seed: Answers(f"seed {seed}", read_lines(path)) for seed, path in files.items()}
    asked = {row["id"] for answers in seeds.values() for row in answers.rows}
    linear = [row for row in read_lines(pooled_file(folder, LINEAR)) if row["id"] in asked]
    return FoldResults(folder, about, seeds, Answers("linear baseline", linear))


def averaged(answers: Sequence[Rows]) -> list[dict[str, Any]]:
    """Return rows whose prediction is the label with the highest mean probability over several sets of answers.

    Raises:
        DataError: answers about different clips, or without probabilities.
    """
    first = answers[0]
    for rows in answers:
        if [row["id"] for row in rows] != [row["id"] for row in first]:
            raise DataError("seeds", expected="answers about the same clips", got="others", next_step="Run them again.")
    without = [row["id"] for rows in answers for row in rows if not row.get("probabilities")]
    if without:
        raise DataError(
            "seeds",
            expected="answers chosen among labels, whose probabilities are averaged",
            got=f"{len(without)} without probabilities",
            next_step="Set evaluation.answer=choose, or train one seed.",
        )
    mean = []
    for rows in zip(*answers, strict=True):
        labels = list(rows[0]["probabilities"])
        means = {label: fmean(row["probabilities"].get(label, 0.0) for row in rows) for label in labels}
        mean.append(dict(rows[0]) | {"probabilities": means, "prediction": max(labels, key=means.__getitem__)})
    return mean


def paired_difference(
    answers: Answers, reference: Answers, figure: str, clusters: Mapping[str, str]
) -> PairedDifference:
    """Compare two sets of answers about the same clips; `p_holm` is that of a single comparison.

    Raises:
        DataError: other clips.
    """
    results = [side.pooled[figure] for side in (answers, reference)]
    if results[0].clip_ids != results[1].clip_ids:
        other = sorted(set(results[0].clip_ids) ^ set(results[1].clip_ids))
        raise DataError(
            answers.name,
            expected=f"answers about the clips of {reference.name}",
            got=f"{len(other)} others",
            next_step=suggest(other[0], results[1].clip_ids).strip() or None,
            problems=other,
        )
    groups = [clusters[clip] for clip in results[0].clip_ids]
    sides = [jackknife(result.resample, groups, result.per_clip) for result in results]
    gap = sides[0].minus(sides[1])
    interval = difference_interval(gap)
    value = round(gap.value, 12) + 0.0
    p = None
    if interval is not None:
        p = two_sided_p(value, gap.standard_error, len(gap.without) - 1, gap.num_clusters)
    return PairedDifference(answers.name, reference.name, figure, value, interval, p, p)


def compare_folders(results: Sequence[FoldResults], figure: str) -> list[PairedDifference]:
    """Compare the main answers of folders with those of the first, with Holm's correction.

    Raises:
        DataError: fewer than two folders, or other folds or clips than those of the first.
    """
    if len(results) < 2:
        raise DataError("contrast", expected="two or more folders", got=str(len(results)))
    names = _names(results)
    first = results[0]
    differences = []
    for name, other in zip(names[1:], results[1:], strict=True):
        if other.clusters != first.clusters or other.about["folds"] != first.about["folds"]:
            raise DataError(
                str(other.folder),
                expected=f"the folds of {first.folder}",
                got="other clips or folds",
                next_step="Train both with the same clip list and the same --folds.",
            )
        pair = (Answers(name, other.main.rows), Answers(names[0], first.main.rows))
        differences.append(paired_difference(*pair, figure, first.clusters))
    return corrected(differences)


def compare_seeds(results: Sequence[FoldResults], figure: str) -> list[Comparison]:
    """Compare the seeds of folders with those of the first, over clips and seeds; empty if some has one seed."""
    if any(len(result.seeds) < 2 for result in results):
        return []
    names = _names(results)
    scores = [[answers.pooled[figure] for answers in result.seeds.values()] for result in results]
    sides = {name: (own, scores[0]) for name, own in zip(names[1:], scores[1:], strict=True)}
    return compare_all(names[0], sides, results[0].clusters)


def corrected(differences: Sequence[PairedDifference]) -> list[PairedDifference]:
    """Return the differences with Holm's correction for all of them."""
    tested = [number for number, difference in enumerate(differences) if difference.p is not None]
    p_values = holm([differences[number].p or 0.0 for number in tested])
    by_number = dict(zip(tested, p_values, strict=True))
    return [
        PairedDifference(**{**vars(difference), "p_holm": by_number.get(number)})
        for number, difference in enumerate(differences)
    ]


def _names(results: Sequence[FoldResults]) -> list[str]:
    names = [result.folder.name for result in results]
    return names if len(set(names)) == len(names) else [str(result.folder) for result in results]


def _scored(rows: Rows, main: str) -> MetricResult:
    references = {row["id"]: row["reference"] for row in rows}
    return score(METRIC, references, {row["id"]: row["prediction"] for row in rows}, MetricSettings(), main)
