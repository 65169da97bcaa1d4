"""Is one variant better than another? Differences, intervals and tests over clips and seeds, verdicts in words.

A variant is trained with several seeds and scored on the same clips as the reference. What another seed and other clips
of the same kind would give are both uncertain, so both are random effects: clusters of clips (dialogue, else speaker)
cross seeds. With jackknife pseudo-values over C clusters for each of the S seeds of each variant:

    seeds         Vs = s² · (1/S_a + 1/S_b), s² the variance of scores over the seeds of a variant, pooled
    clusters      Vc = variance over clusters of the difference of seed means, / C
    interaction   Ve = what a cluster answers differently with each seed; it is in Vs and in Vc, so it is taken out once
    V = max(Vs + Vc − Ve, Vs, Vc);  degrees of freedom by Satterthwaite;  D ± t · √V;  p two-sided from |D| / √V

Seeds of two variants are not paired, though they see the same batches: pairing halves the degrees of freedom, which
costs more at two to five seeds than the correlation gives back; where seeds do go together the interval is too wide,
not too narrow. Simulations that chose this: `tests/test_verdicts.py` (slow) and docs/benchmarks.md.
Several comparisons: Holm's step-down correction, which bounds the chance of any false "better" by 1 - level.
Pure functions of scores; scores are shares, verdicts say points (per cent).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from fusion_train.metrics.scored import Scored
from fusion_train.statistics.intervals import LEVEL, MIN_CLUSTERS, Interval, Jackknife, jackknife

POWER = 0.8
MIN_SEEDS = 2
MAX_SEEDS = 100
"""More seeds than this are not proposed."""
PLACES = 12
"""Decimals of a difference; what is left of equal scores after rounding is not one."""


@dataclass(frozen=True)
class Variance:
    """Where the uncertainty of a difference comes from; each variance is of one seed or one cluster."""

    seeds: float
    """Of a variant's score over its seeds, the clips being given and without noise."""
    clusters: float
    """Of the difference of two variants over clusters."""
    interaction: float
    """Of a variant's score over clusters, different with each seed."""

    def of_difference(self, num_seeds: float, num_clusters: float) -> float:
        """Variance of the difference of two variants with so many seeds each, on so many clusters."""
        per_seed = self.seeds + self.interaction / num_clusters
        return 2 * per_seed / num_seeds + self.clusters / num_clusters


@dataclass(frozen=True)
class Needed:
    """What would make a difference of this size detectable; None where that many are not proposed."""

    seeds: int | None
    clips: int | None


@dataclass(frozen=True)
class Comparison:
    """A variant against the reference, in shares."""

    variant: str
    reference: str
    difference: float
    interval: Interval | None
    """None where no verdict is possible."""
    p: float | None
    p_holm: float | None
    """Corrected for all comparisons of the sweep; equal to `p` where there is one."""
    num_clips: int
    num_clusters: int
    num_seeds: tuple[int, int]
    """Of the variant and of the reference."""
    variance: Variance | None = None
    needed: Needed | None = None
    """None where the difference is zero, or no verdict is possible."""

    @property
    def distinguishable(self) -> bool:
        """Whether the corrected test and the interval both say so."""
        if self.interval is None or self.p_holm is None:
            return False
        excluded = self.interval.low > 0 or self.interval.high < 0
        return self.p_holm < 1 - self.interval.level and excluded

    @property
    def lacking(self) -> str:
        """What a verdict lacks; empty where one is possible."""
        lacks = []
        if min(self.num_seeds) < MIN_SEEDS:
            lacks.append(f"{min(self.num_seeds)} seed of {MIN_SEEDS}")
        if self.num_clusters < MIN_CLUSTERS:
            lacks.append(f"{self.num_clusters} of {MIN_CLUSTERS} clusters of clips")
        return " and ".join(lacks)

    @property
    def verdict(self) -> str:
        """In words, in points."""
        if self.interval is None:
            return (
                f"no verdict is possible from {self.lacking} ({self.difference * 100:+.1f} points); at least "
                f"{MIN_SEEDS} seeds of each variant and {MIN_CLUSTERS} clusters are needed"
            )
        low, high = (round(bound * 100, 1) + 0.0 for bound in (self.interval.low, self.interval.high))
        said = f"{self.interval.level:.0%} interval {low:.1f} to {high:.1f}".replace("%", " %")
        if self.distinguishable:
            word = "better" if self.difference > 0 else "worse"
            return f"{word} by {abs(self.difference) * 100:.1f} points, {said}"
        return f"not distinguishable ({self.difference * 100:+.1f} points, {said}){self._said_needed()}"

    def _said_needed(self) -> str:
        if self.needed is None:
            return ""
        if self.needed.seeds is None or self.needed.clips is None:
            return f"; a difference of this size would need more than {MAX_SEEDS} seeds"
        return f"; would need about {self.needed.seeds} seeds and {self.needed.clips:,} clips"


def compare(
    variant: str,
    reference: str,
    scores: Sequence[Scored],
    reference_scores: Sequence[Scored],
    clusters: Mapping[str, Hashable],
    *,
    level: float = LEVEL,
    comparisons: int = 1,
) -> Comparison:
    """Compare two variants on the same clips.

    Args:
        scores, reference_scores: one `Scored` per seed, all of the same clips.
        clusters: clip -> what it has in common with others; a clip that is missing stands for itself.
        comparisons: how many there are in all; what is needed is counted for Holm's strictest step of as many.
    """
    members = [clusters.get(clip, ("clip", clip)) for clip in scores[0].clip_ids]
    sides = [[jackknife(one.resample, members, one.per_clip) for one in side] for side in (scores, reference_scores)]
    return compare_jackknives(variant, reference, sides, len(members), level=level, comparisons=comparisons)


def compare_jackknives(
    variant: str,
    reference: str,
    sides: Sequence[Sequence[Jackknife]],
    num_clips: int,
    *,
    level: float = LEVEL,
    comparisons: int = 1,
) -> Comparison:
    """Compare two variants, given one jackknife per seed of the variant and of the reference, of the same clusters."""
    means = [np.mean([one.value for one in side]) for side in sides]
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
    variance, degrees, parts = two_way_variance(sides)
    difference, num_clusters, error = comparison.difference, comparison.num_clusters, math.sqrt(variance)
    reach = float(stats.t.ppf(0.5 + level / 2, degrees)) * error
    p = two_sided_p(difference, error, degrees, num_clusters)
    strict = 1 - (1 - level) / max(comparisons, 1)
    return replace(
        comparison,
        interval=Interval(difference - reach, difference + reach, level, num_clusters),
        p=p,
        p_holm=p,
        variance=parts,
        needed=needed_for(difference, parts, num_clips / num_clusters, level=strict),
    )


def compare_all(
    reference: str,
    sides: Mapping[str, tuple[Sequence[Scored], Sequence[Scored]]],
    clusters: Mapping[str, Hashable],
    *,
    level: float = LEVEL,
) -> list[Comparison]:
    """Compare every variant of `sides` (its scores, the reference's) with the reference, with Holm's correction."""
    comparisons = [
        compare(name, reference, *side, clusters, level=level, comparisons=len(sides)) for name, side in sides.items()
    ]
    tested = [number for number, each in enumerate(comparisons) if each.p is not None]
    corrected = holm([comparisons[number].p for number in tested])  # type: ignore[misc]
    for number, p in zip(tested, corrected, strict=True):
        comparisons[number] = replace(comparisons[number], p_holm=p)
    return comparisons


def two_way_variance(sides: Sequence[Sequence[Jackknife]]) -> tuple[float, float, Variance]:
    """Variance of the difference of two variants, given one jackknife per seed; its degrees of freedom; its parts."""
    values = [np.array([each.value for each in side]) for side in sides]
    pseudo = [np.stack([each.pseudo_values for each in side]) for side in sides]  # (S, C) each
    count = pseudo[0].shape[1]
    num_seeds = [len(side) for side in sides]
    seed_degrees = sum(num_seeds) - 2
    pooled = sum((len(each) - 1) * each.var(ddof=1) for each in values) / seed_degrees
    of_seeds = pooled * sum(1 / number for number in num_seeds)
    difference = pseudo[0].mean(axis=0) - pseudo[1].mean(axis=0)
    of_clusters = float(difference.var(ddof=1)) / count
    residuals = [_residual_mean_square(each) for each in pseudo]
    of_interaction = sum(square / number for square, number in zip(residuals, num_seeds, strict=True)) / count
    variance = max(of_seeds + of_clusters - of_interaction, of_seeds, of_clusters)
    denominator = (
        of_seeds**2 / seed_degrees + of_clusters**2 / (count - 1) + of_interaction**2 / (seed_degrees * (count - 1))
    )
    degrees = max(1.0, variance**2 / denominator) if denominator else float(count - 1)
    num_clusters = sides[0][0].num_clusters  # more than `count` where clusters were left out in groups
    interaction = float(np.mean(residuals)) * num_clusters / count
    parts = Variance(
        seeds=max(0.0, float(pooled) - interaction / num_clusters),
        clusters=max(0.0, (of_clusters - of_interaction) * num_clusters),
        interaction=interaction,
    )
    return variance, degrees, parts


def _residual_mean_square(pseudo: np.ndarray) -> float:
    """(S, C) -> mean square of what neither the seed nor the cluster explains."""
    residuals = pseudo - pseudo.mean(axis=0) - pseudo.mean(axis=1, keepdims=True) + pseudo.mean()
    return float((residuals**2).sum() / ((pseudo.shape[0] - 1) * (pseudo.shape[1] - 1)))


def two_sided_p(difference: float, error: float, degrees: float, num_clusters: int) -> float:
    """p of a difference with this standard error; 1 where there is none."""
    if not difference:
        return 1.0
    if error < 10**-PLACES:  # every cluster and seed differs by the same: as likely as all signs alike
        return float(2.0 ** (1 - min(num_clusters, 60)))
    return float(2 * stats.t.sf(abs(difference) / error, degrees))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down: sorted ascending, p_(k) · (m - k + 1), made monotone, at most 1."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        corrected[index] = largest
    return corrected


def detectable(
    variance: Variance, num_seeds: int, num_clusters: int, *, level: float = LEVEL, power: float = POWER
) -> float | None:
    """Smallest true difference that a comparison finds with this power; None where no verdict is possible."""
    if num_seeds < MIN_SEEDS or num_clusters < MIN_CLUSTERS:
        return None
    per_seed = 2 * (variance.seeds + variance.interaction / num_clusters) / num_seeds
    per_cluster = (variance.clusters + 2 * variance.interaction / num_seeds) / num_clusters
    total = variance.of_difference(num_seeds, num_clusters)
    degrees = max(1.0, total**2 / (per_seed**2 / (2 * num_seeds - 2) + per_cluster**2 / (num_clusters - 1)))
    return float(stats.t.ppf(0.5 + level / 2, degrees) + stats.t.ppf(power, degrees)) * math.sqrt(total)


def needed_for(difference: float, variance: Variance, cluster_size: float, *, level: float = LEVEL) -> Needed | None:
    """Return the seeds and clips that make `difference` detectable, half of the allowed variance for each."""
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
    """Variance at which a difference is found with the usual power."""
    return (difference / float(stats.t.ppf(0.5 + level / 2, degrees) + stats.t.ppf(POWER, degrees))) ** 2
