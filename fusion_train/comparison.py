"""Is one variant better than another on the same clips? Paired differences, intervals, tests, verdicts in words.

A variant's score is its mean over seeds, so the noise of those seeds is in a difference. Clips of one cluster
(dialogue, else speaker) are drawn, and exchanged, together. A figure that is a mean over clips (accuracy) has a
difference a clip (`PerClip`); one of the set alone (F1, UAR, mAP) is formed anew from every draw (`OfSet`).

- interval: percentile bootstrap over clusters (`statistics.bootstrap_interval`), the same draw for both variants.
- p: two-sided paired permutation test: without a difference, the answers of a cluster might as well be exchanged
  between the two, which for a mean over clips flips the sign of its difference.
- several comparisons: Holm's step-down correction, which bounds the chance of any false "better" by 1 - level.
- minimum detectable difference: (z_{1-α/2} + z_{power}) · standard error, the mean difference that a comparison of this
  many clips finds with that power. Clips needed grow with the square of its inverse.
Pure functions of arrays; scores are shares, verdicts say points (per cent).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy import stats

from fusion_train.statistics import LEVEL, Interval, bootstrap_interval

PERMUTATIONS = 10_000
POWER = 0.8
PLACES = 12
"""Decimals of a difference; what is left of equal scores after rounding is not one."""
ASSUMED_DISAGREEMENT = 0.2
"""Share of clips that two variants answer differently, where nothing is known yet: 0.2 · (1 - 0)² is the variance."""


@dataclass(frozen=True)
class Comparison:
    """A variant against the reference, in shares."""

    variant: str
    reference: str
    difference: float
    interval: Interval
    p: float
    p_holm: float
    """Corrected for all comparisons of the sweep; equal to `p` where there is one."""
    num_clips: int
    clips_needed: int | None
    """To find a difference of this size; None where it is zero."""

    @property
    def distinguishable(self) -> bool:
        """Whether the corrected test and the interval both say so."""
        excluded = self.interval.low > 0 or self.interval.high < 0
        return self.p_holm < 1 - self.interval.level and excluded

    @property
    def verdict(self) -> str:
        """In words, in points."""
        low, high = (round(bound * 100, 1) + 0.0 for bound in (self.interval.low, self.interval.high))
        said = f"{self.interval.level:.0%} interval {low:.1f} to {high:.1f}".replace("%", " %")
        if self.distinguishable:
            word = "better" if self.difference > 0 else "worse"
            return f"{word} by {abs(self.difference) * 100:.1f} points, {said}"
        needed = f"; would need about {self.clips_needed:,} clips" if self.clips_needed else ""
        return f"not distinguishable ({self.difference * 100:+.1f} points, {said}){needed}"


class Difference(Protocol):
    """Of two variants' scores on the same clips."""

    clips: Sequence[str]

    def counted(self, counts: np.ndarray) -> float:
        """The difference where clips count so often, (clips,)."""
        ...

    def p(self, clusters: Sequence[Hashable], seed: int) -> float:
        """Two-sided, of the permutation test."""
        ...

    def standard_error(self, clusters: Sequence[Hashable]) -> float:
        """Of the difference, clusters taken as the independent units."""
        ...


@dataclass(frozen=True)
class PerClip:
    """The difference of means over clips."""

    clips: Sequence[str]
    differences: np.ndarray
    """(clips,)"""

    def counted(self, counts: np.ndarray) -> float:
        return float(np.average(self.differences, weights=counts))

    def p(self, clusters: Sequence[Hashable], seed: int) -> float:
        return permutation_p(self.differences, clusters, seed=seed)

    def standard_error(self, clusters: Sequence[Hashable]) -> float:
        return standard_error(self.differences, clusters)


@dataclass(frozen=True)
class OfSet:
    """The difference of figures of the whole set, averaged over seeds."""

    clips: Sequence[str]
    figures: Sequence[Callable[[np.ndarray], float]]
    """One a seed: (2, clips) how often each answer of the variant, and of the reference, counts -> the figure."""
    alike: np.ndarray
    """(clips,) bool: both answer the same with every seed."""

    def counted(self, counts: np.ndarray) -> float:
        return self._between(counts, np.zeros_like(counts))

    def p(self, clusters: Sequence[Hashable], seed: int) -> float:
        """The variant is asked what its figure were with the reference's answers to some clusters, and the reverse."""
        exchangeable = cluster_sums(~self.alike, clusters) > 0  # exchanging equal answers changes nothing
        numbers = _numbered(clusters)
        observed = abs(self.counted(np.ones(len(self.clips))))
        random = np.random.default_rng(seed)
        count = int(exchangeable.sum())
        exact = 2**count <= PERMUTATIONS
        reached = 0
        for draw in range(2**count if exact else PERMUTATIONS):
            exchanged = np.zeros(len(exchangeable))
            exchanged[exchangeable] = (draw >> np.arange(count)) & 1 if exact else random.integers(2, size=count)
            of_clip = exchanged[numbers]
            reached += abs(self._between(1 - of_clip, of_clip)) >= observed - 1e-12
        return float(reached / 2**count if exact else (reached + 1) / (PERMUTATIONS + 1))

    def standard_error(self, clusters: Sequence[Hashable]) -> float:
        """By the jackknife: every cluster left out once."""
        numbers = _numbered(clusters)
        count = int(numbers.max()) + 1
        if count < 2:
            return float("inf")
        without = np.array([self.counted((numbers != cluster).astype(float)) for cluster in range(count)])
        return float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))

    def _between(self, own: np.ndarray, exchanged: np.ndarray) -> float:
        """Figure of a set with `own` of the variant's answers and `exchanged` of the reference's, less the reverse."""
        mine, theirs = np.stack([own, exchanged]), np.stack([exchanged, own])
        return float(np.mean([figure(mine) - figure(theirs) for figure in self.figures]))


def compare(
    variant: str,
    reference: str,
    difference: Difference,
    clusters: Mapping[str, Hashable],
    *,
    level: float = LEVEL,
    comparisons: int = 1,
    seed: int = 0,
) -> Comparison:
    """Compare two variants on the same clips.

    Args:
        clusters: clip -> what it has in common with others; a clip that is missing stands for itself.
        comparisons: how many there are in all; clips needed are counted for Holm's strictest step of as many.
    """
    members = [clusters.get(clip, ("clip", clip)) for clip in difference.clips]

    def counted(counts: np.ndarray) -> float:
        return round(difference.counted(counts), PLACES) + 0.0  # not -0.0

    interval = bootstrap_interval(counted, members, level=level, seed=seed)
    value, p = counted(np.ones(len(members))), difference.p(members, seed)
    needed = clips_needed(difference.standard_error(members), len(members), value, level=_strictest(level, comparisons))
    return Comparison(variant, reference, value, interval, p, p, len(members), needed)


def compare_all(
    reference: str,
    differences: Mapping[str, Difference],
    clusters: Mapping[str, Hashable],
    *,
    level: float = LEVEL,
) -> list[Comparison]:
    """Every variant of `differences` against the reference, with Holm's correction over them."""
    found = [compare(name, reference, each, clusters, level=level, comparisons=len(differences))
             for name, each in differences.items()]  # fmt: skip
    corrected = holm([each.p for each in found])
    return [replace(each, p_holm=p) for each, p in zip(found, corrected, strict=True)]


def permutation_p(differences: np.ndarray, clusters: Sequence[Hashable], *, seed: int = 0) -> float:
    """Two-sided p of the mean difference, signs flipped cluster by cluster; exact where 2^clusters is small."""
    sums = cluster_sums(differences, clusters)
    observed = abs(sums.sum())
    if not observed:
        return 1.0
    tolerance = 1e-12 * np.abs(sums).sum()
    sums = sums[sums != 0]  # a cluster without a difference has the same sum under either sign
    if 2 ** len(sums) <= PERMUTATIONS:
        signs = 1 - 2 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float(np.mean(np.abs(signs @ sums) >= observed - tolerance))
    random = np.random.default_rng(seed)
    reached = 0
    for _ in range(0, PERMUTATIONS, 500):  # in parts, so that memory stays small
        signs = random.choice((-1.0, 1.0), size=(500, len(sums)))
        reached += int((np.abs(signs @ sums) >= observed - tolerance).sum())
    return (reached + 1) / (PERMUTATIONS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down: sorted ascending, p_(k) · (m - k + 1), made monotone, at most 1."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def cluster_sums(values: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """(clips,) -> (clusters,) sums."""
    return np.bincount(_numbered(clusters), weights=values)


def _numbered(clusters: Sequence[Hashable]) -> np.ndarray:
    """(clips,) number of each clip's cluster, from 0 in order of appearance."""
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[cluster] for cluster in clusters])


def standard_error(differences: np.ndarray, clusters: Sequence[Hashable]) -> float:
    """Of the mean difference, clusters taken as the independent units."""
    residuals = cluster_sums(differences - differences.mean(), clusters)
    count = len(residuals)
    if count < 2:
        return float("inf")
    return float(np.sqrt((residuals**2).sum() * count / (count - 1)) / len(differences))


def detectable_difference(error: float, *, level: float = LEVEL, power: float = POWER) -> float:
    """Smallest true difference that a test at this level finds with this power."""
    return float(stats.norm.ppf(0.5 + level / 2) + stats.norm.ppf(power)) * error


def detectable_before(num_clips: int, num_comparisons: int = 1, *, level: float = LEVEL) -> float:
    """What a test set of this size can find, said before anything is trained.

    Assumes that two variants differ on `ASSUMED_DISAGREEMENT` of the clips and takes the strictest step of Holm.
    """
    error = float(np.sqrt(ASSUMED_DISAGREEMENT / num_clips))
    return detectable_difference(error, level=_strictest(level, num_comparisons))


def _strictest(level: float, comparisons: int) -> float:
    """Level of the first step of Holm's correction."""
    return 1 - (1 - level) / max(comparisons, 1)


def clips_needed(error: float, num_clips: int, difference: float, *, level: float = LEVEL) -> int | None:
    """Clips of this kind that would make `difference` detectable, where `num_clips` give this standard error."""
    if not difference or not np.isfinite(error):
        return None
    return max(2, int(np.ceil(num_clips * (detectable_difference(error, level=level) / difference) ** 2)))
