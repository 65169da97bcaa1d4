"""How sure a score is: percentile bootstrap over clusters of clips.

Clips of one dialogue or speaker are alike, so whole clusters are drawn with replacement; clips that belong to none are
clusters of one. The statistic is computed anew from how often each clip counts. Deterministic: the draws have a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """From `low` to `high` at `level`, over `num_clusters` clusters."""

    low: float
    high: float
    level: float
    num_clusters: int


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float],
    clusters: Sequence[Hashable],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic of clips.

    Args:
        statistic: (clips,) how often each clip counts -> its value.
        clusters: the cluster of each clip; equal for clips that belong together.
    """
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    members = np.array([numbers[cluster] for cluster in clusters])
    count = len(numbers)
    random = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = np.bincount(random.integers(count, size=count), minlength=count)
        values.append(statistic(drawn[members].astype(float)))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, count)
