"""Cross-fitting where the truth is known: the optimism of scoring on the clips that chose the weights is gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from featurecache.clips.clip_list import Clip
from fusion_train.data.halves import split_halves
from fusion_train.metrics.metric_result import MetricResult, mean_of
from fusion_train.statistics.intervals import interval_of, jackknife

ALIKE_IN_CLUSTER, ALIKE_IN_RUN = 0.05, 0.5
"""Correlation of answers within a cluster, and of two checkpoints of a run on a clip."""
NUM_CHECKPOINTS = 10


def truths(kind: str) -> np.ndarray:
    """True accuracy of each checkpoint."""
    steps = np.arange(NUM_CHECKPOINTS)
    return np.full(len(steps), 0.6) if kind == "equal" else 0.6 - 0.3 * np.exp(-steps / (len(steps) / 6))


def simulate(clusters: int, size: int, kind: str, repetitions: int) -> np.ndarray:
    """Mean error of the score in points, chosen and scored on the same clips, and cross-fitted; coverage."""
    clips = [
        Clip(id=f"{cluster:04d}-{number}", video=Path("a.mp4"), speaker=f"s{cluster}")
        for cluster in range(clusters)
        for number in range(size)
    ]
    members, ids = [clip.speaker for clip in clips], tuple(clip.id for clip in clips)
    halves = [np.isin(ids, half) for half in split_halves(clips)]
    random, truth, rows = np.random.default_rng(1), truths(kind), []
    for _ in range(repetitions):
        shared = random.standard_normal((clusters, size, 1)) * (ALIKE_IN_RUN - ALIKE_IN_CLUSTER) ** 0.5
        shared = shared + random.standard_normal((clusters, 1, 1)) * ALIKE_IN_CLUSTER**0.5
        own = random.standard_normal((clusters, size, len(truth))) * (1 - ALIKE_IN_RUN) ** 0.5
        hits = (shared + own < stats.norm.ppf(truth)).astype(float).reshape(len(ids), -1)
        best = hits.mean(axis=0).argmax()
        chosen = [hits[half].mean(axis=0).argmax() for half in halves][::-1]
        union, true = np.empty(len(ids)), 0.0
        for half, step in zip(halves, chosen, strict=True):
            union[half] = hits[half, step]
            true += half.mean() * truth[step]
        scored = MetricResult("accuracy", {"accuracy": float(union.mean())}, ids, **mean_of(union))
        interval = interval_of(jackknife(scored.resample, members, scored.per_clip))
        rows.append(
            [
                100 * (hits[:, best].mean() - truth[best]),
                100 * (union.mean() - true),
                interval.low <= true <= interval.high,
            ]
        )
    return np.mean(rows, axis=0)


@pytest.mark.parametrize(("clusters", "size"), [(36, 1), (10, 4)])
def test_the_optimism_of_the_best_of_ten_checkpoints_is_gone(clusters, size):
    naive, cross_fitted, _ = simulate(clusters, size, "equal", 150)
    assert naive > 8
    assert abs(cross_fitted) < 3 * 8.9 / 150**0.5  # 8.9 points is the deviation of one score


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["equal", "epochs"])
@pytest.mark.parametrize(("clusters", "size"), [(36, 1), (100, 1), (300, 1), (1000, 1), (10, 4), (10, 10), (30, 10)])
def test_the_optimism_is_gone_in_every_cell(clusters, size, kind):
    naive, cross_fitted, covered = simulate(clusters, size, kind, 1000)
    assert naive > 1
    assert abs(cross_fitted) < max(0.9, naive / 10)
    assert covered >= 0.91
