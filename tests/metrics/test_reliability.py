"""Krippendorff's alpha on the examples that he published, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest

from fusion_train.metrics.reliability import krippendorff_alpha

BINARY = ("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0")
NAMES = ("1 1 2 2 4 3 3 3 5 4 4 1", "2 1 2 2 2 3 3 3 5 4 4 4")
FOUR_OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
THREE_CODERS = (
    ". . . . . 3 4 1 2 1 1 3 3 . 3",
    "1 . 2 1 3 3 4 3 . . . . . . .",
    ". . 2 1 3 4 4 . 2 1 1 3 3 . 4",
)


def ratings(rows: tuple[str, ...]) -> np.ndarray:
    return np.array([[np.nan if word == "." else float(word) for word in row.split()] for row in rows])


@pytest.mark.parametrize(
    ("rows", "level", "published"),
    [
        (BINARY, "nominal", 0.095),
        (NAMES, "nominal", 0.692),
        (FOUR_OBSERVERS, "nominal", 0.743),
        (FOUR_OBSERVERS, "ordinal", 0.815),
        (FOUR_OBSERVERS, "interval", 0.849),
        (THREE_CODERS, "nominal", 0.691),
        (THREE_CODERS, "interval", 0.811),
    ],
)
def test_published_examples(rows, level, published):
    assert krippendorff_alpha(ratings(rows), level) == pytest.approx(published, abs=0.0005)


def test_units_with_one_rating_and_the_order_of_raters_and_units_do_not_count():
    values = ratings(FOUR_OBSERVERS)
    alone = np.full((4, 3), np.nan)
    alone[1] = 5, 1, 5
    order = np.random.default_rng(0).permutation(15)
    shuffled = np.concatenate([values, alone], axis=1)[::-1][:, order]
    assert krippendorff_alpha(shuffled) == pytest.approx(krippendorff_alpha(values))


def test_ordinal_distances_depend_on_ranks_alone():
    values = ratings(FOUR_OBSERVERS)
    assert krippendorff_alpha(values**3) == pytest.approx(krippendorff_alpha(values))


def test_perfect_agreement_is_one_and_opposite_ratings_are_below_chance():
    assert krippendorff_alpha(np.array([[1.0, 2, 3], [1, 2, 3]])) == 1.0
    assert krippendorff_alpha(np.array([[1.0, 2], [2, 1]])) == pytest.approx(-0.5)


@pytest.mark.parametrize("values", [[[1.0, np.nan], [np.nan, 2.0]], [[3.0, 3.0], [3.0, 3.0]], [[np.nan], [np.nan]]])
def test_where_nothing_can_disagree_it_is_not_defined(values):
    assert krippendorff_alpha(np.array(values)) is None
