"""Compare variants over clips and seeds: difference, interval, test, and a verdict in words.

A variant and the reference are trained with several seeds and scored on the same clips. Other seeds and other clips of
the same kind would give other scores, so both are random effects: clusters of clips (dialogue, else speaker) crossed
with seeds. From jackknife pseudo-values over C clusters for each of the S seeds of each variant:

    seeds         Vs = s² · (1/S_a + 1/S_b), s² the variance of scores over the seeds of a variant, pooled
    clusters      Vc = variance over clusters of the difference of seed means, / C
    interaction   Ve = residual variance of cluster × seed; Vs and Vc both contain it, so it is subtracted once
    V = max(Vs + Vc − Ve, Vs, Vc);  degrees of freedom by Satterthwaite;  D ± t · √V;  p two-sided from |D| / √V

Seeds of two variants are not paired, although they see the same batches: pairing halves the degrees of freedom, which
with two to five seeds costs more than the correlation gains. If the scores of equal seeds correlate, the interval is
too wide, never too narrow. Simulations behind this choice: `tests/test_verdicts.py` (slow) and docs/benchmarks.md. For
several comparisons, Holm's step-down correction bounds the probability of any false "better" by 1 - level. Pure
functions of scores. Scores are shares; verdicts state points (per cent).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from fusion_train.metrics.metric_result import MetricResult
from fusion_train.statistics.intervals import LEVEL, MIN_CLUSTERS, Interval, Jackknife, jackknife

POWER = 0.8
MIN_SEEDS = 2
MAX_SEEDS = 100
"""The largest number of seeds that is proposed."""
PLACES = 12
"""Decimals of a difference; smaller differences are rounding errors of equal scores."""


@dataclass(frozen=True)
class Variance:
    """Variance components of a difference, each per seed or per cluster."""

    seeds: float
    """Variance of a variant's score over seeds, without the sampling noise of the clips."""
    clusters: float
    """Variance of the difference of two variants over clusters."""
    interaction: float
    """Variance of a variant's score that is specific to one cluster and one seed."""

    def of_difference(self, num_seeds: float, num_clusters: float) -> float:
        """Return the variance of the difference of two variants, each with so many seeds, on so many clusters."""
        per_seed = self.seeds + self.interaction / num_clusters
        return 2 * per_seed / num_seeds + self.clusters / num_clusters


@dataclass(frozen=True)
class Needed:
    """Numbers of seeds and clips that make a difference detectable; None if more than `MAX_SEEDS` are needed."""

    seeds: int | None
    clips: int | None


@dataclass(frozen=True)
class Comparison:
    """Comparison of a variant with the reference, in shares."""

    variant: str
    reference: str
    difference: float
    """Mean score of the variant minus that of the reference."""
    interval: Interval | None
    """None if no verdict is possible."""
    p: float | None
    p_holm: float | None
    """p corrected for all comparisons of the sweep; equal to `p` if there is only one."""
    num_clips: int
    num_clusters: int
    num_seeds: tuple[int, int]
    """Seeds of the variant and of the reference."""
    variance: Variance | None = None
    needed: Needed | None = None
    """None if the difference is zero or no verdict is possible."""

    @property
    def distinguishable(self) -> bool:
        """Whether the corrected test and the interval both exclude a difference of zero."""
        if self.interval is None or self.p_holm is None:
            return False
        excludes_zero = self.interval.low > 0 or self.interval.high < 0
        return self.p_holm < 1 - self.interval.level and excludes_zero

    @property
    def lacking(self) -> str:
        """Seeds or clusters that are missing for a verdict; empty if a verdict is possible."""
        missing = []
        if min(self.num_seeds) < MIN_SEEDS:
            missing.append(f"{min(self.num_seeds)} seed of {MIN_SEEDS}")
        if self.num_clusters < MIN_CLUSTERS:
            missing.append(f"{self.num_clusters} of {MIN_CLUSTERS} clusters of clips")
        return " and ".join(missing)

    @property
    def verdict(self) -> str:
        """The verdict in words, in points."""
        if self.interval is None:
            return (
                f"no verdict is possible from {self.lacking} ({self.difference * 100:+.1f} points); at least "
                f"{MIN_SEEDS} seeds of each variant and {MIN_CLUSTERS} clusters are needed"
            )
        low, high = (round(bound * 100, 1) + 0.0 for bound in (self.interval.low, self.interval.high))
        interval = f"{self.interval.level:.0%} interval {low:.1f} to {high:.1f}".replace("%", " %")
        if self.distinguishable:
            word = "better" if self.difference > 0 else "worse"
            return f"{word} by {abs(self.difference) * 100:.1f} points, {interval}"
        return f"not distinguishable ({self.difference * 100:+.1f} points, {interval}){self._needed_text()}"

    def _needed_text(self) -> str:
        if self.needed is None:
            return ""
        if self.needed.seeds is None or self.needed.clips is None:
            return f"; a difference of this size would need more than {MAX_SEEDS} seeds"
        return f"; would need about {self.needed.seeds} seeds and {self.needed.clips:,} clips"


def compare(
    variant: str,
    reference: str,
    scores: Sequence[MetricResult],
    reference_scores: Sequence[MetricResult],
    clusters: Mapping[str, Hashable],
    *,
    level: float = LEVEL,
    comparisons: int = 1,
) -> Comparison:
    """Compare two variants on the same clips.

    Args:
        scores, reference_scores: one `MetricResult` per seed, all of the same clips.
        clusters: clip -> its cluster; a clip without one is a cluster of its own.
        comparisons: number of comparisons in all; needed seeds and clips hold for the strictest of Holm's steps.
    """
    cluster_of = [clusters.get(clip, ("clip", clip)) for clip in scores[0].clip_ids]
    sides = [
        [jackknife(result.resample, cluster_of, result.per_clip) for result in side]
        for side in (scores, reference_scores)
    ]
    return compare_jackknives(variant, reference, sides, len(cluster_of), level=level, comparisons=comparisons)


def compare_jackknives(
    variant: str,
    reference: str,
    sides: Sequence[Sequence[Jackknife]],
    num_clips: int,
    *,
    level: float = LEVEL,
    comparisons: int = 1,
) -> Comparison:
    """Compare two variants from one jackknife per seed of the variant and of the reference, over the same clusters."""
    means = [np.mean([score.value for score in side]) for side in sides]
    comparison = Comparison(
        variant,
        reference,
        difference=round(float(means[0] - means[1]), PLACES) + 0.0,
        interval=None,
        p=None,
        p_holm=None,
        num_clips=num_clips,
        num_clusters=sides[0][0].num_clusters,
        num_seeds=(len(sides[0]), len(sides[1])),
    )
    if comparison.lacking:
        return comparison
    variance, degrees, components = two_way_variance(sides)
    difference, num_clusters, error = comparison.difference, comparison.num_clusters, math.sqrt(variance)
    reach = float(stats.t.ppf(0.5 + level / 2, degrees)) * error
    p = two_sided_p(difference, error, degrees, num_clusters)
    strictest_level = 1 - (1 - level) / max(comparisons, 1)
    return replace(
        comparison,
        interval=Interval(difference - reach, difference + reach, level, num_clusters),
        p=p,
        p_holm=p,
        variance=components,
        needed=needed_for(difference, components, num_clips / num_clusters, level=strictest_level),
    )


def compare_all(
    reference: str,
    sides: Mapping[str, tuple[Sequence[MetricResult], Sequence[MetricResult]]],
    clusters: Mapping[str, Hashable],
    *,
    level: float = LEVEL,
) -> list[Comparison]:
    """Compare every variant with the reference, with Holm's correction.

    Args:
        sides: variant -> (its scores, scores of the reference), one per seed.
    """
    comparisons = [
        compare(name, reference, *side, clusters, level=level, comparisons=len(sides)) for name, side in sides.items()
    ]
    p_values = {index: comparison.p for index, comparison in enumerate(comparisons) if comparison.p is not None}
    for index, p_holm in zip(p_values, holm(list(p_values.values())), strict=True):
        comparisons[index] = replace(comparisons[index], p_holm=p_holm)
    return comparisons


def two_way_variance(sides: Sequence[Sequence[Jackknife]]) -> tuple[float, float, Variance]:
    """Return the variance of the difference of two variants, its degrees of freedom and its components.

    Args:
        sides: one jackknife per seed, of the variant and of the reference.
    """
    values = [np.array([score.value for score in side]) for side in sides]  # (S,) each
    pseudo = [np.stack([score.pseudo_values for score in side]) for side in sides]  # (S, C) each
    count = pseudo[0].shape[1]
    num_seeds = [len(side) for side in sides]
    seed_degrees = sum(num_seeds) - 2
    pooled = sum((len(scores) - 1) * scores.var(ddof=1) for scores in values) / seed_degrees
    seed_variance = pooled * sum(1 / number for number in num_seeds)
    difference = pseudo[0].mean(axis=0) - pseudo[1].mean(axis=0)
    cluster_variance = float(difference.var(ddof=1)) / count
    residuals = [_residual_mean_square(side) for side in pseudo]
    interaction_variance = sum(square / number for square, number in zip(residuals, num_seeds, strict=True)) / count
    variance = max(seed_variance + cluster_variance - interaction_variance, seed_variance, cluster_variance)
    denominator = (
        seed_variance**2 / seed_degrees
        + cluster_variance**2 / (count - 1)
        + interaction_variance**2 / (seed_degrees * (count - 1))
    )
    degrees = max(1.0, variance**2 / denominator) if denominator else float(count - 1)
    num_clusters = sides[0][0].num_clusters  # more than `count` if clusters are left out in groups
    interaction = float(np.mean(residuals)) * num_clusters / count
    components = Variance(
        seeds=max(0.0, float(pooled) - interaction / num_clusters),
        clusters=max(0.0, (cluster_variance - interaction_variance) * num_clusters),
        interaction=interaction,
    )
    return variance, degrees, components


def _residual_mean_square(pseudo: np.ndarray) -> float:
    """Return the mean square of (S, C) pseudo-values that neither seed nor cluster explains."""
    residuals = pseudo - pseudo.mean(axis=0) - pseudo.mean(axis=1, keepdims=True) + pseudo.mean()
    return float((residuals**2).sum() / ((pseudo.shape[0] - 1) * (pseudo.shape[1] - 1)))


def two_sided_p(difference: float, error: float, degrees: float, num_clusters: int) -> float:
    """Return p of a difference with this standard error; 1 if the difference is zero."""
    if not difference:
        return 1.0
    if error < 10**-PLACES:  # every cluster and seed has the same difference: the p of a sign test with all signs equal
        return float(2.0 ** (1 - min(num_clusters, 60)))
    return float(2 * stats.t.sf(abs(difference) / error, degrees))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down correction: p_(k) · (m - k + 1) in ascending order, made monotone, at most 1."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def detectable(
    variance: Variance, num_seeds: int, num_clusters: int, *, level: float = LEVEL, power: float = POWER
) -> float | None:
    """Return the smallest true difference that a comparison finds with this power; None if no verdict is possible."""
    if num_seeds < MIN_SEEDS or num_clusters < MIN_CLUSTERS:
        return None
    per_seed = 2 * (variance.seeds + variance.interaction / num_clusters) / num_seeds
    per_cluster = (variance.clusters + 2 * variance.interaction / num_seeds) / num_clusters
    total = variance.of_difference(num_seeds, num_clusters)
    degrees = max(1.0, total**2 / (per_seed**2 / (2 * num_seeds - 2) + per_cluster**2 / (num_clusters - 1)))
    return float(stats.t.ppf(0.5 + level / 2, degrees) + stats.t.ppf(power, degrees)) * math.sqrt(total)


def needed_for(difference: float, variance: Variance, cluster_size: float, *, level: float = LEVEL) -> Needed | None:
    """Return the seeds and clips that make `difference` detectable; each may use half of the allowed variance."""
    if not difference:
        return None
    seeds = next(
        (
            count
            for count in range(MIN_SEEDS, MAX_SEEDS + 1)
            if 2 * variance.seeds / count <= _allowed(difference, 2 * count - 2, level) / 2
        ),
        None,
    )
    if seeds is None:
        return Needed(None, None)
    per_cluster = variance.clusters + 2 * variance.interaction / seeds
    clusters = MIN_CLUSTERS
    while per_cluster / clusters > _allowed(difference, clusters - 1, level) / 2 and clusters < 1e9:
        clusters = max(clusters + 1, math.ceil(clusters * 1.02))
    return Needed(seeds, math.ceil(clusters * cluster_size))


def _allowed(difference: float, degrees: float, level: float) -> float:
    """Return the variance at which a difference is found with power `POWER`."""
    return (difference / float(stats.t.ppf(0.5 + level / 2, degrees) + stats.t.ppf(POWER, degrees))) ** 2
