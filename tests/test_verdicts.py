"""Verdicts of sweeps where the truth is known: equal variants are rarely called different, intervals cover."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from benchmarks import verdicts

SOME = [(36, "alone", 2.0), (300, "5 unequal", 1.0), (1000, "10", 2.0)]


def assert_rarely(shares: dict[str, float], most: float, repetitions: int) -> None:
    """`most` holds in the long run; three standard errors are granted to this many repetitions."""
    slack = 3 * (most * (1 - most) / repetitions) ** 0.5
    assert {key: share for key, share in shares.items() if share > most + slack} == {}


@pytest.mark.parametrize("cell", SOME, ids=str)
def test_equal_variants_are_rarely_called_different(cell):
    assert_rarely(verdicts.run_cell(*cell, "null", 0.0, 60, ("used",)), 0.06, 60)


@pytest.mark.slow
@pytest.mark.parametrize("cell", list(verdicts.cells()), ids=str)
def test_equal_variants_are_rarely_called_different_in_every_cell(cell):
    assert_rarely(verdicts.run_cell(*cell, "null", 0.0, 400, ("used",)), 0.06, 400)


@pytest.mark.slow
@pytest.mark.parametrize("cell", [cell for cell in verdicts.cells() if cell[1] != "5 unequal"], ids=str)
def test_intervals_cover_in_every_cell(cell):
    assert_rarely(verdicts.run_cell(*cell, "cover", 0.0, 400, ("used",)), 0.07, 400)
