"""Intervals of scores."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_train.statistics import bootstrap_interval


def mean_of(values: np.ndarray):
    return lambda counts: float(np.average(values, weights=counts))


def test_an_interval_of_a_mean_has_the_width_theory_gives():
    hits = np.arange(400) % 2
    interval = bootstrap_interval(mean_of(hits), range(400))
    half_width = 1.96 * 0.5 / np.sqrt(400)
    assert interval.high - interval.low == pytest.approx(2 * half_width, rel=0.1)
    assert interval.low < 0.5 < interval.high
    assert interval == bootstrap_interval(mean_of(hits), range(400))


def test_clips_that_belong_together_make_it_wider():
    hits = np.repeat(np.arange(40) % 2, 10)
    alone = bootstrap_interval(mean_of(hits), range(400))
    together = bootstrap_interval(mean_of(hits), np.repeat(np.arange(40), 10).tolist())
    assert together.num_clusters == 40
    assert together.high - together.low > 2.5 * (alone.high - alone.low)  # √10 in theory
