"""Intervals of scores."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fusion_train.statistics.intervals import MAX_GROUPS, Jackknife, difference_interval, interval_of, jackknife


def mean_of(values: np.ndarray):
    return lambda counts: float(np.average(values, weights=counts))


def test_an_interval_of_a_mean_has_the_width_theory_gives():
    hits = np.arange(400) % 2
    interval = interval_of(jackknife(mean_of(hits), range(400)), share=False)
    half_width = stats.t.ppf(0.975, 399) * hits.std(ddof=1) / np.sqrt(400)
    assert (interval.low, interval.high) == pytest.approx((0.5 - half_width, 0.5 + half_width))


def test_clips_that_belong_together_make_it_wider():
    hits = np.repeat(np.arange(40) % 2, 10)
    alone = interval_of(jackknife(mean_of(hits), range(400)))
    together = interval_of(jackknife(mean_of(hits), np.repeat(np.arange(40), 10).tolist()))
    assert together.num_clusters == 40
    assert together.high - together.low > 2.5 * (alone.high - alone.low)  # √10 in theory


def test_means_over_clips_are_left_out_without_forming_them_anew():
    values, clusters = np.random.default_rng(0).random(50), np.random.default_rng(1).integers(9, size=50).tolist()
    slow, quick = jackknife(mean_of(values), clusters), jackknife(mean_of(values), clusters, values)
    np.testing.assert_allclose(quick.without, slow.without)
    assert quick.value == pytest.approx(slow.value)


def test_very_many_clusters_are_left_out_in_groups():
    values = np.random.default_rng(0).random(5000)
    grouped = jackknife(mean_of(values), range(5000))
    assert (len(grouped.without), grouped.num_clusters) == (MAX_GROUPS, 5000)
    assert grouped.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(5000), rel=0.1)


@pytest.mark.parametrize("clusters", [1, 2, 4])
def test_below_five_clusters_there_is_no_interval(clusters):
    hits = np.arange(100) % 3 == 0
    assert interval_of(jackknife(mean_of(hits), (np.arange(100) % clusters).tolist())) is None


def test_where_every_clip_is_right_the_interval_has_a_width():
    interval = interval_of(jackknife(mean_of(np.ones(36)), range(36)))
    assert interval.high == 1.0
    assert interval.low == pytest.approx(0.025 ** (1 / 36))
    assert interval_of(jackknife(mean_of(np.zeros(36)), range(36))).low == 0.0


def test_an_interval_of_a_share_stays_between_0_and_1():
    hits = np.r_[np.ones(35), 0]
    interval = interval_of(jackknife(mean_of(hits), range(36)))
    assert 0.7 < interval.low < 35 / 36 < interval.high < 1


@pytest.mark.parametrize(("size", "together"), [(10, 5), (20, 5), (100, 1)])
def test_the_interval_covers_the_truth_as_often_as_it_says(size, together):
    random, covered = np.random.default_rng(3), []
    for _ in range(600):
        chance = np.repeat(1 / (1 + np.exp(-random.normal(0.8, 0.5, size))), together)
        hits = (random.random(size * together) < chance).astype(float)
        interval = interval_of(jackknife(mean_of(hits), np.repeat(range(size), together).tolist(), hits))
        covered.append(interval.low <= 0.677 <= interval.high)  # the mean of the chances
    assert np.mean(covered) >= 0.925


def test_a_difference_of_two_scores_is_taken_value_by_value():
    random = np.random.default_rng(5)
    first, second = random.random(40), random.random(40)
    clusters = (np.arange(40) // 2).tolist()
    minus = jackknife(mean_of(first), clusters).minus(jackknife(mean_of(second), clusters))
    direct = jackknife(lambda counts: float(np.average(first - second, weights=counts)), clusters)
    assert minus.value == pytest.approx(direct.value)
    np.testing.assert_allclose(minus.without, direct.without)
    assert minus.num_clusters == 20
    interval, expected = difference_interval(minus), interval_of(direct, share=False)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


def test_a_share_of_1_or_0_that_rounding_spreads_has_the_interval_of_one_that_is_not_spread():
    spread = np.array([1e-16, 0, 0, 0, 1e-15])
    assert interval_of(Jackknife(1.0, 1.0 - spread, 5)).low == pytest.approx(0.025 ** (1 / 5))
    assert interval_of(Jackknife(0.0, spread, 5)).high == pytest.approx(1 - 0.025 ** (1 / 5))
