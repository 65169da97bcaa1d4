"""What a sweep found, read back from its folder: scores by variant, comparisons with the reference, curves."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from featurecache.clips import load_clips
from featurecache.errors import ClipListError
from fusion_train.assemble import absolute
from fusion_train.comparison import Comparison, compare_all, mean_over_seeds
from fusion_train.errors import DataError
from fusion_train.metrics.labels import conclusion
from fusion_train.sweeps.halving import rank_correlation
from fusion_train.sweeps.running import ABOUT, PREDICTIONS
from fusion_train.sweeps.trials import DONE, FILE, Outcome, TrialTable


@dataclass(frozen=True)
class Results:
    """A sweep's folder, understood."""

    folder: Path
    about: dict[str, Any]
    outcomes: list[Outcome]
    scores: dict[str, dict[str, float]]
    """Variant -> clip -> share of its seeds that answered right; variants without a finished trial are not here."""
    comparisons: list[Comparison]
    clustered_by: str
    correlations: dict[int, float | None]
    """Step of a rung -> rank correlation of the scores there with those at the end."""

    def of(self, variant: str) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.variant == variant]

    def mean_and_spread(self, variant: str, metric: str = "accuracy") -> tuple[float, float | None] | None:
        """Mean over seeds and standard deviation between them."""
        values = [outcome.scores[metric] for outcome in self.of(variant)
                  if outcome.scores and metric in outcome.scores]  # fmt: skip
        return (fmean(values), stdev(values) if len(values) > 1 else None) if values else None


def read_results(folder: Path) -> Results:
    """Read a sweep's folder, finished or not.

    Raises:
        DataError: no sweep lies there.
    """
    if not (folder / ABOUT).is_file() or not (folder / FILE).is_file():
        raise DataError(str(folder), expected="the folder of a sweep", got=f"no {ABOUT}, no {FILE}",
                        next_step="Name the folder that fusion-train sweep wrote.")  # fmt: skip
    about = json.loads((folder / ABOUT).read_text())
    table = TrialTable(folder)
    outcomes = [table.read(key) for key in about["keys"]]
    by_variant: dict[str, list[dict[str, float]]] = {}
    for outcome in outcomes:
        path = folder / outcome.name / PREDICTIONS
        if outcome.state == DONE and path.is_file():
            by_variant.setdefault(outcome.variant, []).append(_right(path))
    scores = {variant: mean_over_seeds(seeds) for variant, seeds in by_variant.items()}
    clustered_by, clusters = _clusters(absolute(about["clips"], folder))
    reference = about["reference"]
    comparisons = compare_all(reference, scores, clusters) if reference in scores else []
    return Results(folder, about, outcomes, scores, comparisons, clustered_by, _correlations(outcomes))


def _right(path: Path) -> dict[str, float]:
    """Clip -> 1 where the answer is the label, else 0."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: float(conclusion(row["prediction"]) == conclusion(row["reference"])) for row in rows}


def _clusters(clips: str) -> tuple[str, dict[str, Hashable]]:
    """What clips have in common: a dialogue, else a speaker; without the list every clip stands for itself."""
    try:
        listed = load_clips(clips)
    except ClipListError:
        return "clip (the clip list is not where it was)", {}
    for key in ("dialogue", "speaker"):
        named = {clip.id: (clip.dataset, getattr(clip, key)) for clip in listed if getattr(clip, key)}
        if named:
            return key, named
    return "clip", {}


def _correlations(outcomes: list[Outcome]) -> dict[int, float | None]:
    steps = sorted({int(step) for outcome in outcomes for step in outcome.rungs})
    finals = _means(outcomes, lambda o: o.scores.get("accuracy") if o.scores else None)
    return {step: rank_correlation(_means(outcomes, lambda o, s=str(step): o.rungs.get(s)), finals) for step in steps}


def _means(outcomes: list[Outcome], value: Any) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for outcome in outcomes:
        if (number := value(outcome)) is not None:
            found.setdefault(outcome.variant, []).append(number)
    return {variant: fmean(values) for variant, values in found.items()}
