"""Intervals of scores: jackknife over clusters of clips, with the t distribution.

Clips of one dialogue or speaker resemble each other, so the jackknife leaves out whole clusters; a clip without a
cluster is a cluster of its own. For C clusters the interval is θ ± t(C − 1) · standard error; for a share it is formed
on the logit scale, which keeps it between 0 and 1. If every clip is right, or none, the standard error is zero and the
Clopper-Pearson interval of C clusters is used. Below `MIN_CLUSTERS` there is no interval: with three clusters, a
percentile bootstrap covers 0.75 instead of 0.95, and with one cluster its width is zero. Pure functions; very many
clusters are grouped with a fixed seed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEVEL = 0.95
MIN_CLUSTERS = 5
MAX_GROUPS = 400
"""With more clusters than this, clusters are left out in groups, if the statistic must be computed anew each time."""


@dataclass(frozen=True)
class Interval:
    """Confidence interval from `low` to `high` at `level`, over `num_clusters` clusters."""

    low: float
    high: float
    level: float
    num_clusters: int


@dataclass(frozen=True)
class Jackknife:
    """A statistic of clips, and its values without one cluster each."""

    value: float
    without: np.ndarray
    """(C,) the statistic without each cluster (or group of clusters)."""
    num_clusters: int

    @property
    def pseudo_values(self) -> np.ndarray:
        """(C,) pseudo-values C·θ − (C − 1)·θ₋c; for a mean over clusters of equal size, the cluster means."""
        count = len(self.without)
        return count * self.value - (count - 1) * self.without

    @property
    def standard_error(self) -> float:
        """Standard error of the statistic; infinite for one cluster."""
        count = len(self.without)
        return float(np.sqrt(self.pseudo_values.var(ddof=1) / count)) if count > 1 else float("inf")

    def minus(self, other: Jackknife) -> Jackknife:
        """Return the difference of two statistics of the same clips."""
        return Jackknife(self.value - other.value, self.without - other.without, self.num_clusters)


def jackknife(
    statistic: Callable[[np.ndarray], float], clusters: Sequence[Hashable], per_clip: np.ndarray | None = None
) -> Jackknife:
    """Compute a statistic of all clips, and without each cluster.

    Args:
        statistic: (clips,) weight of each clip -> value.
        clusters: the cluster of each clip.
        per_clip: (clips,) values whose mean is the statistic, which saves calls; None if it is no mean (F1, UAR).
    """
    members = cluster_numbers(clusters)
    count = int(members.max()) + 1
    if count == 1:  # without the only cluster, no clip is left
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


def interval_of(score: Jackknife, *, level: float = LEVEL, share: bool = True) -> Interval | None:
    """Return the interval of one score; None below `MIN_CLUSTERS`.

    Args:
        share: whether the statistic lies between 0 and 1.
    """
    count = score.num_clusters
    if count < MIN_CLUSTERS:
        return None
    value, error = score.value, score.standard_error
    if share and (error == 0 or not 0 < value < 1):
        low, high = _clopper_pearson(value, count, level)
    else:
        reach = float(stats.t.ppf(0.5 + level / 2, len(score.without) - 1)) * error
        if share:
            middle, reach = np.log(value / (1 - value)), reach / (value * (1 - value))
            low, high = (float(1 / (1 + np.exp(-bound))) for bound in (middle - reach, middle + reach))
        else:
            low, high = value - reach, value + reach
    return Interval(low, high, level, count)


def interval_between(score: Jackknife, lowest: float, highest: float, *, level: float = LEVEL) -> Interval | None:
    """Return the interval of a score whose possible values are known; None below `MIN_CLUSTERS`.

    A share, from 0 to 1, is computed on the logit scale, and so is a correlation θ, from −1 to 1, by (1 + θ) / 2, which
    is the scale of Fisher's z. Other intervals are symmetric.
    """
    if (lowest, highest) == (0, 1):
        return interval_of(score, level=level)
    if (lowest, highest) != (-1, 1) or not -1 < score.value < 1 or score.standard_error == 0:
        return interval_of(score, level=level, share=False)
    share = Jackknife((1 + score.value) / 2, (1 + score.without) / 2, score.num_clusters)
    interval = interval_of(share, level=level)
    return interval and replace(interval, low=2 * interval.low - 1, high=2 * interval.high - 1)


def difference_interval(difference: Jackknife, *, level: float = LEVEL) -> Interval | None:
    """Return the interval of a difference of two scores on the same clips; None below `MIN_CLUSTERS`."""
    return interval_of(difference, level=level, share=False)


def cluster_numbers(clusters: Sequence[Hashable]) -> np.ndarray:
    """Return (clips,) numbers of clusters, from 0 in order of appearance."""
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    return np.array([numbers[cluster] for cluster in clusters])


def clusters_missing(num_clusters: int, named: str) -> str:
    """Return the message that says why there is no interval."""
    return f"no interval is possible from {num_clusters} {named}; at least {MIN_CLUSTERS} are needed"


def _clopper_pearson(value: float, count: int, level: float) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a share of `count` clusters, for which a standard error would be zero."""
    tail, right = (1 - level) / 2, value * count
    low = float(stats.beta.ppf(tail, right, count - right + 1)) if right > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, right + 1, count - right)) if right < count else 1.0
    return low, high
