"""Correct the score of the best of several candidates for the selection on the same clips.

The highest of N scores on the same clips (for example, the best epoch on the test set) is too high: on other clips the
selected candidate is expected to score lower. The difference is the optimism.

- If the answers of all candidates are known, the selection is repeated on resamples of the clusters of clips, and the
  selected candidate is scored on the clusters that the resample left out (bootstrap bias correction). The corrected
  score is the mean of these scores. A resample contains 63 % of the clusters, so the corrected score is slightly too
  low if the candidates differ. The resamples use jackknife pseudo-values, so any figure can be corrected.
- If only the answers of the best candidate and N are known, the candidates are assumed to be equally good, and their
  errors to correlate with `correlation`. Then optimism = standard error · √(1 − correlation) · expected maximum of N
  standard normals. Equally good candidates are the worst case, so this is an upper bound of the expected optimism;
  correlation 0 gives the bound for any correlation that is not negative.

Intervals are those of `intervals` for one score (jackknife over clusters, t, logit scale) around the corrected score;
for the bound, the upper end is that of the uncorrected score. There is none below `MIN_CLUSTERS`. Simulations behind
this choice: `tests/test_selection.py`. Pure functions; resamples have a fixed seed. Scores are shares.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import integrate, stats

from fusion_train.metrics.metric_result import MetricResult
from fusion_train.statistics.intervals import LEVEL, Interval, Jackknife, interval_of, jackknife

RESAMPLES = 2000
CHUNK = 100
"""Resamples computed at once; they take CHUNK × clusters numbers of memory."""


@dataclass(frozen=True)
class Selection:
    """Score of the best of `num_candidates`, corrected for the selection."""

    best: int
    """Index of the best candidate among those whose answers are known."""
    num_candidates: int
    naive: float
    """Score of the best candidate on the clips of the selection."""
    corrected: float | None
    """None if all clips are one cluster."""
    interval: Interval | None
    """Interval around the corrected score; None below `MIN_CLUSTERS` clusters."""
    correlation: float | None = None
    """Correlation that the bound assumes; None if the answers of all candidates are known."""

    @property
    def optimism(self) -> float | None:
        """The uncorrected score minus the corrected score."""
        return None if self.corrected is None else self.naive - self.corrected

    @property
    def method(self) -> str:
        """Description of the correction and its assumptions, for reports."""
        if self.correlation is None:
            return f"best of {self.num_candidates}; corrected: chosen on resampled clusters, scored on those left out"
        return (
            f"best of {self.num_candidates}, of which only these answers are known; corrected: a bound for equally "
            f"good candidates whose errors correlate with {self.correlation:.2f}"
        )


def correct(candidates: Sequence[MetricResult], clusters: Sequence[Hashable], *, level: float = LEVEL) -> Selection:
    """Correct the best score of candidates whose answers are all known.

    Args:
        candidates: scores of the same clips, in the same order.
        clusters: the cluster of each clip.
    """
    scores = [jackknife(candidate.resample, clusters, candidate.per_clip) for candidate in candidates]
    best = best_of(candidates)
    if scores[best].num_clusters == 1:
        return Selection(best, len(candidates), scores[best].value, None, None)
    pseudo_values = np.stack([score.pseudo_values for score in scores], axis=1)  # (C, N)
    optimism = max(0.0, float(pseudo_values[:, best].mean()) - left_out_score(pseudo_values))
    corrected = _lowered(scores[best], optimism if len(candidates) > 1 else 0.0)
    interval = interval_of(corrected, level=level, share=candidates[best].is_share)
    return Selection(best, len(candidates), scores[best].value, corrected.value, interval)


def bound(
    best: MetricResult,
    clusters: Sequence[Hashable],
    num_candidates: int,
    *,
    correlation: float = 0.0,
    level: float = LEVEL,
) -> Selection:
    """Bound the expected score of the best of `num_candidates` candidates, if only its own answers are known.

    Args:
        correlation: assumed correlation of the errors of two candidates' scores, from 0 to 1.
    """
    score = jackknife(best.resample, clusters, best.per_clip)
    if score.num_clusters == 1:
        return Selection(0, num_candidates, score.value, None, None, correlation)
    optimism = score.standard_error * np.sqrt(1 - correlation) * expected_maximum(num_candidates)
    corrected, share = _lowered(score, float(optimism)), best.is_share
    low = interval_of(corrected, level=level, share=share)
    high = interval_of(score, level=level, share=share)
    interval = Interval(low.low, high.high, level, score.num_clusters) if low and high else None
    return Selection(0, num_candidates, score.value, corrected.value, interval, correlation)


def best_of(candidates: Sequence[MetricResult]) -> int:
    """Return the index of the highest score; the first of equal ones."""
    return int(np.argmax([candidate.value for candidate in candidates]))


def left_out_score(pseudo_values: np.ndarray) -> float:
    """Return the mean score, on the clusters that a resample left out, of the candidate that is best on the resample.

    `pseudo_values` are (C, N) for C clusters and N candidates.
    """
    count = len(pseudo_values)
    random = np.random.default_rng(0)
    scores: list[float] = []
    while len(scores) < RESAMPLES:
        weights = random.multinomial(count, np.full(count, 1 / count), size=CHUNK)
        weights = weights[(weights == 0).any(axis=1)]
        selected = (weights @ pseudo_values).argmax(axis=1)
        left_out = (weights == 0).astype(float)
        means = (left_out @ pseudo_values)[np.arange(len(weights)), selected] / left_out.sum(axis=1)
        scores += means.tolist()
    return float(np.mean(scores))


def expected_maximum(count: int) -> float:
    """Return the expected maximum of `count` independent standard normals, by numerical integration."""
    grid = np.linspace(-9, 9, 20001)
    density = np.exp(np.log(count) + stats.norm.logpdf(grid) + (count - 1) * stats.norm.logcdf(grid))
    return float(integrate.trapezoid(grid * density, grid))


def _lowered(score: Jackknife, optimism: float) -> Jackknife:
    """Return the score minus the optimism, not below 0, with the same standard error."""
    value = max(0.0, score.value - optimism)
    return replace(score, value=value, without=score.without - (score.value - value))
