"""How sure a score is: jackknife over clusters of clips, t distribution.

Clips of one dialogue or speaker are alike, so whole clusters are left out; a clip that belongs to none is a cluster of
its own. The interval is θ ± t(C − 1) · standard error for C clusters; a share is treated on the logit scale, which
keeps it between 0 and 1. Where every clip is right, or none, the spread is zero and the Clopper-Pearson interval of C
clusters stands instead. Below `MIN_CLUSTERS` there is no interval: a percentile bootstrap covers 0.75 instead of 0.95
at three clusters, and its width is zero at one. Pure functions; no randomness but the fixed grouping of very many
clusters.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
MIN_CLUSTERS = 5
MAX_GROUPS = 400
"""More clusters than this are left out in groups where the statistic has to be formed anew each time."""


@dataclass(frozen=True)
class Interval:
    """From `low` to `high` at `level`, over `num_clusters` clusters."""

    low: float
    high: float
    level: float
    num_clusters: int


@dataclass(frozen=True)
class Jackknife:
    """A statistic of clips, and its values when one cluster is left out."""

    value: float
    without: np.ndarray
    """(C,) the statistic without each cluster (or group of clusters)."""
    num_clusters: int

    @property
    def pseudo_values(self) -> np.ndarray:
        """(C,) C·θ − (C − 1)·θ without the cluster; for a mean over equal clusters, the cluster means."""
        count = len(self.without)
        return count * self.value - (count - 1) * self.without

    @property
    def standard_error(self) -> float:
        """Infinite for one cluster."""
        count = len(self.without)
        return float(np.sqrt(self.pseudo_values.var(ddof=1) / count)) if count > 1 else float("inf")

    def minus(self, other: Jackknife) -> Jackknife:
        """The difference of two statistics of the same clips."""
        return Jackknife(self.value - other.value, self.without - other.without, self.num_clusters)


def jackknife(
    statistic: Callable[[np.ndarray], float], clusters: Sequence[Hashable], per_clip: np.ndarray | None = None
) -> Jackknife:
    """Form a statistic, and without each cluster.

    Args:
        statistic: (clips,) how often each clip counts -> its value.
        clusters: the cluster of each clip; equal for clips that belong together.
        per_clip: (clips,) what the statistic is the mean of; None where it belongs to the set (F1, UAR).
    """
    members = cluster_numbers(clusters)
    count = int(members.max()) + 1
    if count == 1:  # nothing is left without it
        value = float(statistic(np.ones(len(members))))
        return Jackknife(value, np.array([value]), 1)
    if per_clip is not None:
        sums, sizes = np.bincount(members, weights=per_clip), np.bincount(members)
        return Jackknife(float(np.mean(per_clip)), (sums.sum() - sums) / (len(members) - sizes), count)
    groups = members
    if count > MAX_GROUPS:
        groups = (np.random.default_rng(0).permutation(count) % MAX_GROUPS)[members]
    without = [statistic((groups != group).astype(float)) for group in range(min(count, MAX_GROUPS))]
    return Jackknife(float(statistic(np.ones(len(members)))), np.array(without), count)


def interval_of(scored: Jackknife, *, level: float = LEVEL, share: bool = True) -> Interval | None:
    """Interval of one score; None below `MIN_CLUSTERS`.

    Args:
        share: the statistic lies between 0 and 1.
    """
    count = scored.num_clusters
    if count < MIN_CLUSTERS:
        return None
    value, error = scored.value, scored.standard_error
    if share and (error == 0 or not 0 < value < 1):
        low, high = _clopper_pearson(value, count, level)
    else:
        reach = float(stats.t.ppf(0.5 + level / 2, len(scored.without) - 1)) * error
        if share:
            middle, reach = np.log(value / (1 - value)), reach / (value * (1 - value))
            low, high = (float(1 / (1 + np.exp(-bound))) for bound in (middle - reach, middle + reach))
        else:
            low, high = value - reach, value + reach
    return Interval(low, high, level, count)


def difference_interval(difference: Jackknife, *, level: float = LEVEL) -> Interval | None:
    """Interval of a difference of two scores of one model on the same clips; None below `MIN_CLUSTERS`."""
    return interval_of(difference, level=level, share=False)


def cluster_numbers(clusters: Sequence[Hashable]) -> np.ndarray:
    """(clips,) number of each clip's cluster, from 0 in order of appearance."""
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[cluster] for cluster in clusters])


def clusters_missing(num_clusters: int, named: str) -> str:
    """Say why there is no interval: `no interval from 2 speakers; 5 are needed`."""
    return f"no interval is possible from {num_clusters} {named}; at least {MIN_CLUSTERS} are needed"


def _clopper_pearson(value: float, count: int, level: float) -> tuple[float, float]:
    """Of a share of `count` clusters; exact at 0 and 1, where a standard error tells nothing."""
    tail, right = (1 - level) / 2, value * count
    low = float(stats.beta.ppf(tail, right, count - right + 1)) if right > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, right + 1, count - right)) if right < count else 1.0
    return low, high
