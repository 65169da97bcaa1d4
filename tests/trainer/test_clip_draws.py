"""Which clip each turn draws."""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from fusion_train.data.clip_draws import BLOCK, ClipDraws

PLACES = {"a": np.arange(0, 7), "b": np.arange(7, 57), "c": np.array([57])}
SHARES = {"a": 0.2, "b": 0.75, "c": 0.05}


def draws(seed: int = 0, **rest) -> ClipDraws:
    return ClipDraws(seed, **{"places": PLACES, "shares": SHARES, **rest})


def test_every_clip_of_a_dataset_comes_once_before_any_comes_again():
    found = draws()
    order: dict[str, list[int]] = {name: [] for name in PLACES}
    for turn in range(BLOCK - 3000, BLOCK + 3000):  # over the end of a block
        place = found[turn]
        order[next(name for name, places in PLACES.items() if place in places)].append(place)
    for name, places in PLACES.items():
        count = len(places)
        # These turns begin within an epoch: the first of which a clip comes a second time ends it.
        start = next(n for n in range(count + 1) if len(set(order[name][n : n + count])) == count)
        epochs = [order[name][n : n + count] for n in range(start, len(order[name]) - count, count)]
        assert len(epochs) > 40
        assert all(sorted(epoch) == places.tolist() for epoch in epochs)
        assert count == 1 or len(set(map(tuple, epochs))) > 40


def test_datasets_come_by_their_shares_independently():
    found, names = draws(), {place: name for name, places in PLACES.items() for place in places.tolist()}
    drawn = [names[found[turn]] for turn in range(20_000)]
    counts = Counter(drawn)
    for name, share in SHARES.items():
        assert counts[name] == pytest.approx(20_000 * share, abs=4 * (20_000 * share * (1 - share)) ** 0.5)
    pairs = Counter(pairwise(drawn))
    assert pairs["a", "a"] == pytest.approx(20_000 * 0.04, abs=4 * (20_000 * 0.04) ** 0.5)


def test_a_clip_is_a_function_of_seed_and_turn():
    turns = [5, BLOCK + 1, 0, 3 * BLOCK + 17, 5, BLOCK - 1]
    one, other = draws(), draws()
    assert [one[turn] for turn in turns] == [other[turn] for turn in reversed(turns)][::-1]
    assert [one[turn] for turn in range(50)] != [draws(1)[turn] for turn in range(50)]


def test_draws_of_a_dataset_do_not_depend_on_how_many_clips_others_have():
    more = {**PLACES, "b": np.arange(7, 1007), "c": np.array([1007])}
    assert [draws()[n] for n in range(200) if draws()[n] < 7] == [
        draws(places=more)[n] for n in range(200) if draws(places=more)[n] < 7
    ]


def test_without_shares_all_clips_come_once_an_epoch():
    found = draws(shares={})
    first, second = ([found[turn] for turn in range(n, n + 58)] for n in (0, 58))
    assert sorted(first) == sorted(second) == list(range(58))
    assert first != second


def test_a_far_turn_is_found_at_once():
    began = time.process_time()
    draws()[10**9]
    assert time.process_time() - began < 3


def test_a_weight_of_nothing_at_all_is_rare_but_a_small_one_is_drawn():
    places, shares = {"a": np.arange(3), "b": np.arange(3, 5)}, {"a": 1 - 2e-5, "b": 2e-5}
    found = ClipDraws(0, places, shares)
    rare = sum(found[turn] >= 3 for turn in range(4 * BLOCK))
    assert 0 < rare < 25  # 5.2 expected
