"""The score of what a search selects: corrected for the choice, with false winners held in check."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fusion_train.search.figures import confusions, figure
from fusion_train.search.selection import FoldAnswers, confidence_set, select

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from benchmarks.search import simulated_search


def sharp(classes, count=2):
    """Probabilities (1, 1, clips, C) that answer these classes."""
    return np.eye(count)[classes][None, None]


def test_the_nested_score_is_of_the_trial_that_each_fold_chose():
    targets = np.array([0, 1] * 15)
    rows = np.array_split(np.arange(30), 3)
    wrong, right = 1 - targets, targets
    folds = []
    for k in range(3):
        inner, outer = rows[(k + 1) % 3], rows[k]
        # Trial a answers the inner clips of folds 0 and 1 right and all outer clips wrong; trial b the reverse.
        a_inner = right if k < 2 else wrong
        inner_answers = np.concatenate([sharp(a_inner[inner]), sharp((wrong if k < 2 else right)[inner])])
        outer_answers = np.concatenate([sharp(wrong[outer]), sharp(right[outer])])
        folds.append(FoldAnswers(["a", "b"], inner, outer, inner_answers, outer_answers))
    selected = select(folds, ["a", "b"], targets, range(30), "WAR", num_trials=2, num_classes=2, top=1)
    assert selected.nested.chosen == (("a",), ("a",), ("b",))
    assert selected.nested.value == pytest.approx(1 / 3)
    assert selected.ensemble.value == pytest.approx(1 / 3)
    assert [(standing.trial, standing.outer) for standing in selected.board] == [("a", 0.0), ("b", 1.0)]
    assert selected.naive == pytest.approx(2 / 3)
    assert selected.board[1].probability_best == 1


def test_an_ensemble_averages_probabilities_of_the_chosen():
    targets = np.zeros(12, dtype=int)
    rows = np.array_split(np.arange(12), 3)
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9]])  # on average 0.47 for all, 0.65 for the first two
    folds = []
    for k in range(3):
        outer = np.repeat(probabilities[:, None, None], 4, axis=2)
        inner = np.concatenate([sharp(np.zeros(4, dtype=int)), sharp(np.array([0, 0, 0, 1])), sharp(np.ones(4, int))])
        folds.append(FoldAnswers(["a", "b", "c"], rows[(k + 1) % 3], rows[k], inner, outer))

    def score(top):
        return select(folds, ["a"], targets, range(12), "WAR", num_trials=3, num_classes=2, top=top).ensemble.value

    assert score(2) == 1
    assert score(3) == 0


def test_seeds_and_groups_widen_the_interval():
    random = np.random.default_rng(0)
    targets = random.integers(0, 2, 300)
    rows = np.array_split(np.arange(300), 3)
    right = np.repeat(random.random(30) < 0.6, 10)  # all clips of a group alike
    answers = np.where(right, targets, 1 - targets)
    folds = [
        FoldAnswers(["a"], rows[(k + 1) % 3], rows[k], sharp(answers[rows[(k + 1) % 3]]), sharp(answers[rows[k]]))
        for k in range(3)
    ]

    def width(groups):
        interval = select(folds, ["a"], targets, groups, "WAR", num_trials=1, num_classes=2, top=1).nested.interval
        return interval.high - interval.low

    assert width(np.arange(300) // 10) > 2 * width(range(300))


def test_the_confidence_set_has_the_equal_and_not_the_worse():
    random = np.random.default_rng(0)
    means = np.array([0.7, 0.7, 0.6, 0.4])
    scores = means[:, None] + np.concatenate([np.zeros((4, 1)), random.normal(size=(4, 500)) * 0.01], axis=1)
    np.testing.assert_array_equal(confidence_set(scores), [True, True, False, False])
    scores[1] -= 0.1
    np.testing.assert_array_equal(confidence_set(scores), [True, False, False, False])


@pytest.mark.parametrize("name", ["UAR", "WAR", "weighted F1", "macro F1"])
def test_the_outer_score_is_the_figure_of_all_folds_together(name):
    random = np.random.default_rng(0)
    targets, answers = random.integers(0, 3, 90), random.integers(0, 3, 90)
    rows = np.array_split(np.arange(90), 3)
    folds = [
        FoldAnswers(["a"], rows[(k + 1) % 3], rows[k], *(sharp(answers[rows[j]], 3) for j in ((k + 1) % 3, k)))
        for k in range(3)
    ]
    selected = select(folds, ["a"], targets, range(90), name, num_trials=1, num_classes=3, top=1)
    expected = float(figure(name, confusions(targets, answers, 3)))
    assert selected.board[0].outer == pytest.approx(expected)
    assert selected.nested.value == pytest.approx(expected)


def test_equal_trials_have_no_winner_and_no_bias():
    found = [simulated_search(seed, 40, 400, 0.0) for seed in range(20)]
    assert sum(selected.winner is not None for selected in found) <= 2
    assert np.mean([selected.naive for selected in found]) > 0.63
    assert np.mean([selected.nested.value for selected in found]) == pytest.approx(0.6, abs=0.02)


def test_a_trial_that_is_ten_points_better_is_the_winner():
    found = [simulated_search(seed, 5, 3000, 0.1) for seed in range(5)]
    assert [selected.winner.trial for selected in found if selected.winner] == ["0"] * 5


def test_one_better_trial_among_many_equal_ones_is_found():
    found = [simulated_search(seed, 10, 3000, 0.06) for seed in range(5)]
    assert [selected.winner.trial for selected in found if selected.winner] == ["0"] * 5
