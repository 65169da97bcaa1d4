"""Comparisons of variants: worked by hand, and in words. Calibration is in test_verdicts.py."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fusion_train.metrics.metric_result import MetricResult, mean_of
from fusion_train.statistics.comparison import Variance, compare, compare_all, detectable, holm, needed_for


def scored(values, of_set: bool = False) -> MetricResult:
    """A score that is the mean of these; `of_set` has it formed anew each time, as F1 is."""
    values = np.asarray(values, float)
    parts = mean_of(values)
    if of_set:
        del parts["per_clip"]
    return MetricResult(
        "accuracy", {"accuracy": float(values.mean())}, tuple(f"c{n:04d}" for n in range(len(values))), **parts
    )


def test_the_interval_of_two_seeds_and_six_clips_by_hand():
    mine, theirs = [[1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 1, 1]], [[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0]]
    comparison = compare("a", "b", [scored(row) for row in mine], [scored(row) for row in theirs], {})

    a, b = np.array(mine, float), np.array(theirs, float)
    seeds = (a.mean(1).var(ddof=1) + b.mean(1).var(ddof=1)) / 2
    clips = (a.mean(0) - b.mean(0)).var(ddof=1) / 6

    def residual(y):
        return ((y - y.mean(0) - y.mean(1, keepdims=True) + y.mean()) ** 2).sum() / 5

    interaction = (residual(a) + residual(b)) / 12
    variance = max(seeds + clips - interaction, seeds, clips)
    degrees = variance**2 / (seeds**2 / 2 + clips**2 / 5 + interaction**2 / 10)
    reach = stats.t.ppf(0.975, degrees) * np.sqrt(variance)
    assert comparison.difference == pytest.approx(a.mean() - b.mean())
    assert (comparison.interval.low, comparison.interval.high) == pytest.approx(
        (comparison.difference - reach, comparison.difference + reach)
    )
    assert comparison.p == pytest.approx(2 * stats.t.sf(comparison.difference / np.sqrt(variance), degrees))


def test_a_mean_over_clips_gives_the_same_as_a_figure_of_the_set():
    random = np.random.default_rng(4)
    sides = [[(random.random(60) < 0.5).astype(float) for _ in range(3)] for _ in "ab"]
    clusters = {f"c{n:04d}": n // 3 for n in range(60)}
    one = compare("a", "b", *[[scored(row) for row in side] for side in sides], clusters)
    other = compare("a", "b", *[[scored(row, of_set=True) for row in side] for side in sides], clusters)
    assert one.difference == other.difference
    assert (one.interval.low, one.interval.high) == pytest.approx((other.interval.low, other.interval.high))
    assert one.p == pytest.approx(other.p)
    assert one.needed == other.needed


def test_more_seeds_of_a_noisy_variant_are_worth_more_than_more_clips():
    parts = Variance(seeds=0.02**2, clusters=0.1, interaction=0.1)
    assert detectable(parts, 3, 100_000) > 0.9 * detectable(parts, 3, 10_000)
    assert detectable(parts, 12, 10_000) < 0.5 * detectable(parts, 3, 10_000)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_without_noise_over_seeds_the_clips_decide_what_is_detectable():
    parts = Variance(seeds=0.0, clusters=0.2, interaction=0.0)
    expected = (stats.t.ppf(0.975, 1999) + stats.t.ppf(0.8, 1999)) * np.sqrt(0.2 / 2000)
    assert detectable(parts, 3, 2000) == pytest.approx(expected)
    assert detectable(parts, 1, 2000) is None
    assert detectable(parts, 3, 4) is None


def test_what_is_needed_names_seeds_and_clips():
    parts = Variance(seeds=0.01**2, clusters=0.1, interaction=0.1)
    whole, half = (needed_for(size, parts, cluster_size=1) for size in (0.04, 0.02))
    assert half.seeds > whole.seeds
    assert half.clips > 2 * whole.clips
    assert detectable(parts, half.seeds, half.clips) == pytest.approx(0.02, rel=0.15)
    assert needed_for(0.02, parts, cluster_size=10).clips == pytest.approx(10 * half.clips, rel=0.01)
    assert needed_for(0.0, parts, 1) is None
    assert needed_for(0.0001, parts, 1).seeds is None


def seeds_of(random, share: float, count: int = 3, clips: int = 2000, noise: float = 0.0):
    return [scored(random.random(clips) < share + random.normal(0, noise)) for _ in range(count)]


def test_verdicts_in_words():
    random = np.random.default_rng(1)
    plain, good, twin = seeds_of(random, 0.6), seeds_of(random, 0.7), seeds_of(random, 0.6)
    comparison = compare("good", "plain", good, plain, {})
    assert comparison.distinguishable
    assert comparison.verdict.startswith("better by ")
    assert "95 % interval" in comparison.verdict
    assert compare("plain", "good", plain, good, {}).verdict.startswith("worse by ")
    same = compare("twin", "plain", twin, plain, {})
    assert same.verdict.startswith("not distinguishable")
    assert "seeds and" in same.verdict


@pytest.mark.parametrize(
    ("seeds", "clusters", "lacking"),
    [(1, 100, "1 seed of 2"), (3, 4, "4 of 5 clusters of clips"), (1, 1, "1 seed of 2 and 1 of 5 clusters of clips")],
)
def test_too_few_seeds_or_clusters_give_no_verdict(seeds, clusters, lacking):
    random = np.random.default_rng(1)
    where = {f"c{n:04d}": n % clusters for n in range(200)}
    comparison = compare("a", "b", *(seeds_of(random, share, seeds, 200) for share in (0.9, 0.1)), where)
    assert (comparison.interval, comparison.p, comparison.distinguishable) == (None, None, False)
    assert comparison.verdict.startswith(f"no verdict is possible from {lacking}")
    assert "at least 2 seeds of each variant and 5 clusters are needed" in comparison.verdict


def test_equal_answers_are_no_evidence_and_rounding_leaves_no_difference():
    twice = [scored([0.1 + 0.2, 0.3, 0.0, 1.0, 0.5]), scored([0.3, 0.1 + 0.2, 0.0, 1.0, 0.5])]
    comparison = compare("a", "b", twice, twice[::-1], {})
    assert (comparison.difference, comparison.p, comparison.needed) == (0.0, 1.0, None)
    assert "-0.0" not in comparison.verdict


def test_a_difference_without_any_noise_is_as_likely_as_equal_signs():
    comparison = compare("a", "b", [scored([1.0] * 6)] * 2, [scored([0.0] * 6)] * 2, {})
    assert comparison.p == pytest.approx(2 / 2**6)


def test_every_variant_is_compared_and_corrected_for_all_of_them():
    random = np.random.default_rng(2)
    reference = seeds_of(random, 0.5, clips=40)
    sides = {name: (seeds_of(random, 0.5, clips=40), reference) for name in "bcd"}
    sides["e"] = (seeds_of(random, 0.5, count=1, clips=40), reference)
    comparisons = compare_all("a", sides, {})
    assert [comparison.variant for comparison in comparisons] == ["b", "c", "d", "e"]
    assert [comparison.p_holm for comparison in comparisons] == [
        *holm([comparison.p for comparison in comparisons[:3]]),
        None,
    ]
