"""Scores of the best of several candidates, corrected for the choice: the clips that chose it flatter it.

A score that is the highest of N on the same clips (the best epoch on the test set) is expected to fall on other clips.

- Answers of all candidates: the choice is repeated on resamples of the clusters of clips, and each chosen candidate is
  scored on the clusters that the resample left out (bootstrap bias correction). The corrected estimate is the mean of
  these scores, the optimism what the best score lies above it. A resample chooses by 63 % of the clusters, so that the
  estimate errs low by a little where candidates differ. Resampled are jackknife pseudo-values, so any figure serves.
- Answers of the best alone, and N: candidates are assumed to be equally good, and their errors to correlate with
  `correlation`. Then optimism = standard error · √(1 − correlation) · expected maximum of N standard normals. Equal
  candidates are the worst case, so this bounds the expected optimism; correlation 0 bounds it for any not negative.

Intervals: those of `intervals` for one score (jackknife over clusters, t, logit scale), about the corrected estimate;
from N alone, the upper end is that of the score as it stands. None below `MIN_CLUSTERS`. Simulations that chose this:
`tests/test_selection.py`. Pure functions; resamples are drawn from a fixed seed. Scores are shares.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import integrate, stats

from fusion_train.metrics.scored import Scored
from fusion_train.statistics.intervals import LEVEL, Interval, Jackknife, interval_of, jackknife

RESAMPLES = 2000
CHUNK = 100
"""Resamples formed at once; bounds memory to CHUNK × clusters numbers."""


@dataclass(frozen=True)
class Selection:
    """The best of `num_candidates`, corrected for the choice."""

    best: int
    """Place of the best candidate among those whose answers are known."""
    num_candidates: int
    naive: float
    """Score of the best on the clips that chose it."""
    corrected: float | None
    """None where one cluster of clips is all there is."""
    interval: Interval | None
    """About the corrected estimate; None below `MIN_CLUSTERS` clusters."""
    correlation: float | None = None
    """What the bound from N assumes; None where the answers of all candidates are known."""

    @property
    def optimism(self) -> float | None:
        return None if self.corrected is None else self.naive - self.corrected

    @property
    def method(self) -> str:
        """How the correction was formed, with what it assumes."""
        if self.correlation is None:
            return f"best of {self.num_candidates}; corrected: chosen on resampled clusters, scored on those left out"
        return (
            f"best of {self.num_candidates}, of which only these answers are known; corrected: a bound for equally "
            f"good candidates whose errors correlate with {self.correlation:.2f}"
        )


def correct(candidates: Sequence[Scored], clusters: Sequence[Hashable], *, level: float = LEVEL) -> Selection:
    """Correct the best score of candidates whose answers are all known.

    Args:
        candidates: their scores of the same clips, in one order.
        clusters: the cluster of each clip.
    """
    scores = [jackknife(each.resample, clusters, each.per_clip) for each in candidates]
    best = best_of(candidates)
    if scores[best].num_clusters == 1:
        return Selection(best, len(candidates), scores[best].value, None, None)
    pseudo_values = np.stack([each.pseudo_values for each in scores], axis=1)
    optimism = max(0.0, float(pseudo_values[:, best].mean()) - left_out_score(pseudo_values))
    corrected = _less(scores[best], optimism if len(candidates) > 1 else 0.0)
    interval = interval_of(corrected, level=level, share=candidates[best].highest == 1)
    return Selection(best, len(candidates), scores[best].value, corrected.value, interval)


def bound(
    best: Scored, clusters: Sequence[Hashable], num_candidates: int, *, correlation: float = 0.0, level: float = LEVEL
) -> Selection:
    """Bound the expected score of the best of `num_candidates`, of which this one alone is known.

    Args:
        correlation: assumed, of the errors of two candidates' scores, from 0 to 1.
    """
    scored = jackknife(best.resample, clusters, best.per_clip)
    if scored.num_clusters == 1:
        return Selection(0, num_candidates, scored.value, None, None, correlation)
    optimism = scored.standard_error * np.sqrt(1 - correlation) * expected_maximum(num_candidates)
    corrected, share = _less(scored, float(optimism)), best.highest == 1
    low = interval_of(corrected, level=level, share=share)
    high = interval_of(scored, level=level, share=share)
    interval = Interval(low.low, high.high, level, scored.num_clusters) if low and high else None
    return Selection(0, num_candidates, scored.value, corrected.value, interval, correlation)


def best_of(candidates: Sequence[Scored]) -> int:
    """Place of the highest score; the first of equals."""
    return int(np.argmax([each.value for each in candidates]))


def left_out_score(pseudo_values: np.ndarray) -> float:
    """(C, N) of C clusters and N candidates -> mean score, on clusters left out, of who is best on a resample."""
    count = len(pseudo_values)
    random = np.random.default_rng(0)
    scores: list[float] = []
    while len(scores) < RESAMPLES:
        weights = random.multinomial(count, np.full(count, 1 / count), size=CHUNK)
        weights = weights[(weights == 0).any(axis=1)]
        chosen = (weights @ pseudo_values).argmax(axis=1)
        left_out = (weights == 0).astype(float)
        means = (left_out @ pseudo_values)[np.arange(len(weights)), chosen] / left_out.sum(axis=1)
        scores += means.tolist()
    return float(np.mean(scores))


def expected_maximum(count: int) -> float:
    """Expected maximum of `count` independent standard normals."""
    grid = np.linspace(-9, 9, 20001)
    density = np.exp(np.log(count) + stats.norm.logpdf(grid) + (count - 1) * stats.norm.logcdf(grid))
    return float(integrate.trapezoid(grid * density, grid))


def _less(scored: Jackknife, optimism: float) -> Jackknife:
    """The score lowered, not below 0, with the same spread."""
    lowered = max(0.0, scored.value - optimism)
    return replace(scored, value=lowered, without=scored.without - (scored.value - lowered))
