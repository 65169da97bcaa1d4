"""Is one variant better than another on the same clips? Paired differences, intervals, tests, verdicts in words.

Scores of a clip are averaged over the seeds of its variant, so a difference belongs to a clip and noise of seeds is in
it. Clips of one cluster (dialogue, else speaker) are drawn, and have their signs flipped, together.

- interval: percentile bootstrap over clusters (`statistics.bootstrap_interval`).
- p: two-sided paired permutation test: without a difference, the sign of a cluster might as well be the other one.
- several comparisons: Holm's step-down correction, which bounds the chance of any false "better" by 1 - level.
- minimum detectable difference: (z_{1-α/2} + z_{power}) · standard error, the mean difference that a comparison of this
  many clips finds with that power. Clips needed grow with the square of its inverse.
Pure functions of arrays; scores are shares, verdicts say points (per cent).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from fusion_train.statistics import LEVEL, Interval, bootstrap_interval

PERMUTATIONS = 10_000
POWER = 0.8
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
        low, high = self.interval.low * 100, self.interval.high * 100
        said = f"{self.interval.level:.0%} interval {low:.1f} to {high:.1f}".replace("%", " %")
        if self.distinguishable:
            word = "better" if self.difference > 0 else "worse"
            return f"{word} by {abs(self.difference) * 100:.1f} points, {said}"
        needed = f"; would need about {self.clips_needed:,} clips" if self.clips_needed else ""
        return f"not distinguishable ({self.difference * 100:+.1f} points, {said}){needed}"


def mean_over_seeds(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Clip -> mean of its scores over seeds; clips that some seed lacks are left out."""
    common = set.intersection(*(set(each) for each in scores))
    return {clip: sum(each[clip] for each in scores) / len(scores) for clip in scores[0] if clip in common}


def compare(
    variant: str,
    reference: str,
    scores: Mapping[str, Mapping[str, float]],
    clusters: Mapping[str, Hashable],
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> Comparison:
    """Compare two variants clip by clip.

    Args:
        scores: variant -> clip -> score, larger is better.
        clusters: clip -> what it has in common with others; a clip that is missing stands for itself.
    """
    mine, theirs = scores[variant], scores[reference]
    clips = [clip for clip in theirs if clip in mine]
    differences = np.array([mine[clip] - theirs[clip] for clip in clips])
    members = [clusters.get(clip, ("clip", clip)) for clip in clips]
    interval = bootstrap_interval(
        lambda counts: float(np.average(differences, weights=counts)), members, level=level, seed=seed
    )
    p = permutation_p(differences, members, seed=seed)
    difference = float(differences.mean())
    return Comparison(variant, reference, difference, interval, p, p, len(clips),
                      clips_needed(differences, members, difference, level=level))  # fmt: skip


def compare_all(
    reference: str, scores: Mapping[str, Mapping[str, float]], clusters: Mapping[str, Hashable], *, level: float = LEVEL
) -> list[Comparison]:
    """Every other variant against the reference, with Holm's correction over them."""
    found = [compare(name, reference, scores, clusters, level=level) for name in scores if name != reference]
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
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    return np.bincount([numbers[cluster] for cluster in clusters], weights=values, minlength=len(numbers))


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
    return detectable_difference(error, level=1 - (1 - level) / max(num_comparisons, 1))


def clips_needed(
    differences: np.ndarray, clusters: Sequence[Hashable], difference: float, *, level: float = LEVEL
) -> int | None:
    """Clips of this kind that would make `difference` detectable."""
    error = standard_error(differences, clusters)
    if not difference or not np.isfinite(error):
        return None
    return max(2, int(np.ceil(len(differences) * (detectable_difference(error, level=level) / difference) ** 2)))
