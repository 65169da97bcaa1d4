"""Comparisons of variants: worked by hand, and calibrated on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_train.comparison import (
    PerClip,
    clips_needed,
    compare,
    compare_all,
    detectable_before,
    detectable_difference,
    holm,
    permutation_p,
    standard_error,
)


def test_the_permutation_test_of_three_clips_by_hand():
    # signs of (1, 1, 1): the sums are ±3 in 2 of 8 ways
    assert permutation_p(np.ones(3), "abc") == pytest.approx(2 / 8)
    # (1, 1, -1): |sum| >= 1 always
    assert permutation_p(np.array([1.0, 1.0, -1.0]), "abc") == 1.0


def test_clips_of_one_cluster_change_sign_together():
    assert permutation_p(np.ones(6), "aabbcc") == pytest.approx(2 / 8)


def test_equal_answers_are_no_evidence():
    assert permutation_p(np.zeros(5), "abcde") == 1.0


def test_the_sampled_test_agrees_with_the_exact_one():
    differences = np.array([1.0] * 12 + [-1.0] * 4)
    sampled = permutation_p(differences, range(16))
    # two-sided sign test of 12 of 16: 2 · (1820 + 560 + 120 + 16 + 1) / 65536
    assert sampled == pytest.approx(2 * 2517 / 65536, abs=0.01)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_standard_error_of_clips_that_stand_alone_is_the_usual_one():
    differences = np.array([1.0, 0.0, 0.0, -1.0, 1.0])
    assert standard_error(differences, range(5)) == pytest.approx(differences.std(ddof=1) / np.sqrt(5))
    assert standard_error(np.repeat(differences, 3), np.repeat(range(5), 3).tolist()) == pytest.approx(
        differences.std(ddof=1) / np.sqrt(5)
    )


def test_what_can_be_detected_by_hand():
    assert detectable_difference(0.01) == pytest.approx((1.959964 + 0.841621) * 0.01, rel=1e-5)
    assert detectable_before(2000) == pytest.approx(2.801585 * np.sqrt(0.2 / 2000), rel=1e-5)
    assert detectable_before(2000, 4) > detectable_before(2000)


def test_four_times_the_clips_are_needed_for_half_the_difference():
    whole, half = (clips_needed(0.05, 200, size) for size in (0.1, 0.05))
    assert half == pytest.approx(4 * whole, rel=0.01)
    assert clips_needed(0.05, 200, 0.0) is None
    assert clips_needed(float("inf"), 200, 0.1) is None


def per_clip(mine: np.ndarray, theirs: np.ndarray | float) -> PerClip:
    return PerClip([f"c{number}" for number in range(len(mine))], np.asarray(mine, float) - theirs)


def test_verdicts_in_words():
    random = np.random.default_rng(1)
    low = random.random(2000) < 0.6
    high = low | (random.random(2000) < 0.2)
    found = compare("good", "plain", per_clip(high, low), {})
    assert found.distinguishable
    assert found.verdict.startswith("better by ")
    assert "95 % interval" in found.verdict
    same = compare("twin", "plain", per_clip(np.roll(low, 1), low), {})
    assert same.verdict.startswith("not distinguishable")
    assert compare("plain", "good", per_clip(low, high), {}).verdict.startswith("worse")


def test_what_rounding_leaves_is_no_difference():
    found = compare("a", "b", per_clip(np.array([0.1 + 0.2, 0.3]), np.array([0.3, 0.1 + 0.2])), {})
    assert (found.difference, found.interval.high, found.clips_needed) == (0.0, 0.0, None)
    assert "-0.0" not in found.verdict


def test_every_variant_is_compared_and_corrected_for_all_of_them():
    random = np.random.default_rng(2)
    found = compare_all("a", {name: per_clip(random.random(40) < 0.5, random.random(40) < 0.5) for name in "bcd"}, {})
    assert [each.variant for each in found] == ["b", "c", "d"]
    assert [each.p_holm for each in found] == holm([each.p for each in found])
    same = per_clip(np.r_[np.ones(5), np.zeros(35)], 0.0)
    alone, first = compare("b", "a", same, {}), compare_all("a", dict.fromkeys("bcd", same), {})[0]
    assert first.clips_needed > alone.clips_needed, "for the corrected test"


def worlds(count: int, effect: float, size: int = 40, together: int = 3):
    """Clusters of clips with a common part, whose true mean difference is `effect`."""
    random = np.random.default_rng(3)
    clusters = np.repeat(range(size), together).tolist()
    for _ in range(count):
        yield np.repeat(random.normal(effect, 0.3, size), together) + random.normal(0, 0.5, size * together), clusters


def test_the_interval_covers_the_truth_as_often_as_it_says():
    covered = []
    for differences, clusters in worlds(150, 0.1):
        where = {f"c{n}": cluster for n, cluster in enumerate(clusters)}
        interval = compare("a", "b", per_clip(differences, 0.0), where).interval
        covered.append(interval.low <= 0.1 <= interval.high)
    assert 0.88 <= np.mean(covered) <= 0.99  # 0.95 ± three standard errors of 150 draws, and a little for percentiles


def test_without_a_difference_one_test_in_twenty_errs():
    wrong = [permutation_p(differences, clusters) < 0.05 for differences, clusters in worlds(400, 0.0)]
    assert 0.02 <= np.mean(wrong) <= 0.085
