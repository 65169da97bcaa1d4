"""The results of a sweep, read from its folder: scores by variant, comparisons with the reference, curves."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from featurecache.clips.clip_list import load_clips
from featurecache.errors import ClipListError
from fusion_train.data.halves import clusters_in
from fusion_train.documents import read_document
from fusion_train.errors import DataError
from fusion_train.evaluation.append_only import read_lines
from fusion_train.metrics.metric_result import MetricResult
from fusion_train.metrics.registry import METRICS
from fusion_train.run import absolute
from fusion_train.statistics.comparison import Comparison, compare_all
from fusion_train.sweeps.compared_metric import ComparedMetric, Rows, choose_metric
from fusion_train.sweeps.early_stopping import rank_correlation
from fusion_train.sweeps.job import ABOUT, PREDICTIONS, PREDICTIONS_SHA256
from fusion_train.sweeps.scored_weights import BEST, CROSS_FITTED, optimism_notice
from fusion_train.sweeps.sweep_file import PROBE
from fusion_train.sweeps.trials import DONE, FILE, Outcome, TrialTable


@dataclass(frozen=True)
class Results:
    """The content of a sweep's folder."""

    folder: Path
    about: dict[str, Any]
    outcomes: list[Outcome]
    measure: ComparedMetric
    scored: dict[str, MetricResult]
    """Figures by trial, of finished trials."""
    comparisons: list[Comparison]
    clustered_by: str
    rungs: dict[str, dict[str, float]]
    """`probe`, or the step of a rung -> variant -> held-out accuracy there, mean over seeds."""
    correlations: dict[str, float | None]
    """Rank correlation of these early scores with the scores at the end, by rung."""

    def of(self, variant: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.variant == variant]

    @property
    def notes(self) -> list[str]:
        """Notes of the metric that belong beside its figures."""
        return list(dict.fromkeys(note for scored in self.scored.values() for note in scored.notes))

    @property
    def weights(self) -> str:
        """Which weights of each trial were scored, and what chose them."""
        chosen_on = self.about.get("chosen_on", [])
        name = str(self.about.get("weights", BEST))
        if name == CROSS_FITTED:
            return f"{name}, by halves of {self.about['split']}"
        return f"{name}, chosen on {', '.join(chosen_on)}" if name == BEST and chosen_on else name

    @property
    def how_scored(self) -> str:
        """One sentence for every table: which weights were scored, and why these."""
        sentence, why = f"Weights scored: {self.weights}", self.about.get("why_weights")
        if self.about.get("weights") == CROSS_FITTED:
            sentence += ": each half is scored with the weights that the other half chose"
        why = f" ({why})" if why else ""
        return f"{sentence}{why}.{f' {self.optimism[0].upper()}{self.optimism[1:]}.' if self.optimism else ''}"

    @property
    def optimism(self) -> str | None:
        """The notice beside every table where the scored clips also chose the weights."""
        return optimism_notice(self.about.get("weights", BEST), self.about["split"], self.about.get("chosen_on", []))

    @property
    def caveats(self) -> list[str]:
        """Limits of the verdicts of this sweep."""
        lacking = dict.fromkeys(comparison.lacking for comparison in self.comparisons if comparison.lacking)
        return [f"No verdict is possible from {lack}." for lack in lacking]

    @property
    def figures(self) -> list[str]:
        """Figures of the metric; the compared figure comes first."""
        twice = "accuracy" if self.measure.main == "WAR" else "WAR"  # WAR and accuracy are the same figure
        others = METRICS[self.measure.metric].figures
        return [self.measure.main, *(name for name in others if name not in (self.measure.main, twice))]

    def mean_and_spread(self, variant: str, figure: str) -> tuple[float, float | None] | None:
        """Mean over seeds and standard deviation between them."""
        values = [
            self.scored[outcome.name].figures[figure] for outcome in self.of(variant) if outcome.name in self.scored
        ]
        return (fmean(values), stdev(values) if len(values) > 1 else None) if values else None


def read_results(folder: Path) -> Results:
    """Read a sweep's folder, finished or not.

    Raises:
        DataError: no sweep lies there.
    """
    if not (folder / ABOUT).is_file() or not (folder / FILE).is_file():
        raise DataError(
            str(folder),
            expected="the folder of a sweep",
            got=f"no {ABOUT}, no {FILE}",
            next_step="Name the folder that fusion-train sweep wrote.",
        )
    about = read_document(folder / ABOUT, DataError, "the description of a sweep", "Run fusion-train sweep again.")
    table = TrialTable(folder)
    outcomes = [table.read(key) for key in about["keys"]]
    measure = choose_metric(about["task"], about["metric"], about["main"])
    by_variant: dict[str, dict[int, Rows]] = {}
    scored = {}
    for outcome in outcomes:
        path = folder / outcome.name / PREDICTIONS
        if outcome.state == DONE and path.is_file():
            refuse_damaged(path, outcome)
            rows = by_variant.setdefault(outcome.variant, {})[outcome.seed] = read_lines(path)
            scored[outcome.name] = measure.scored(rows)
    reference = by_variant.pop(about["reference"], {})
    sides = {variant: measure.paired(rows, reference) for variant, rows in by_variant.items()}
    clustered_by, clusters = _clusters(absolute(about["clips"], folder))
    comparisons = compare_all(about["reference"], {name: side for name, side in sides.items() if side}, clusters)
    finals = _means((outcome.variant, scored[outcome.name].value) for outcome in outcomes if outcome.name in scored)
    rungs = _rungs(table, about, outcomes)
    correlations = {rung: rank_correlation(early, finals) for rung, early in rungs.items()}
    return Results(folder, about, outcomes, measure, scored, comparisons, clustered_by, rungs, correlations)


def refuse_damaged(path: Path, outcome: Outcome) -> None:
    """Compare a trial's predictions with the hash in its row.

    Raises:
        DataError: the file is not as it was written.
    """
    written = (outcome.scores or {}).get(PREDICTIONS_SHA256)
    if written is not None and hashlib.sha256(path.read_bytes()).hexdigest() != written:
        raise DataError(
            str(path),
            expected="the answers that the trial gave",
            got="a file that was changed or damaged",
            next_step="Delete it and run the same fusion-train sweep: the trial is asked again, not trained again.",
        )


def _clusters(clips: str) -> tuple[str, dict[str, Hashable]]:
    """Clusters of the clip list; without the list, every clip is its own cluster."""
    try:
        return clusters_in(load_clips(clips))
    except ClipListError:
        return "clips (the clip list is not where it was)", {}


def _rungs(table: TrialTable, about: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Scores before the end, in their order: in the probe, then at the rungs of halving."""
    probes = [(variant, table.read(key)) for variant, keys in about.get("probes", {}).items() for key in keys]
    probe_means = _means((variant, outcome.scores["accuracy"]) for variant, outcome in probes if outcome.scores)
    steps = sorted({step for outcome in outcomes for step in outcome.rungs}, key=int)
    return ({PROBE: probe_means} if probe_means else {}) | {
        step: _means((outcome.variant, outcome.rungs[step]) for outcome in outcomes if step in outcome.rungs)
        for step in steps
    }


def _means(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """(variant, score) of trials -> variant -> mean."""
    scores_of: dict[str, list[float]] = {}
    for variant, score in scores:
        scores_of.setdefault(variant, []).append(score)
    return {variant: fmean(values) for variant, values in scores_of.items()}
