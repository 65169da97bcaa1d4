"""Krippendorff's alpha: agreement of several raters, corrected for chance.

Shapes: R raters, U rated units, V distinct values. Source: Krippendorff, Computing Krippendorff's Alpha-Reliability
(2011); the tests are its examples.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: np.ndarray, level: Level = "ordinal") -> float | None:
    """Return alpha of (R, U) ratings; 1 is perfect agreement, 0 is agreement by chance.

    A rating is NaN if the rater did not rate the unit. Units with one rating do not count. Returns None if alpha is
    undefined: no unit has two ratings, or all ratings of such units are equal.
    """
    rated = np.isfinite(ratings)
    pairable = rated.sum(axis=0) > 1
    ratings, rated = ratings[:, pairable], rated[:, pairable]
    values = np.unique(ratings[rated])
    if len(values) < 2:
        return None
    counts = np.stack([((ratings == value) & rated).sum(axis=0) for value in values]).astype(float)  # (V, U)
    per_unit = counts.sum(axis=0)
    coincidences = (counts / (per_unit - 1)) @ counts.T - np.diag((counts / (per_unit - 1)).sum(axis=1))  # (V, V)
    totals = coincidences.sum(axis=1)  # (V,) occurrences of each value in pairs
    chance = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    distances = _squared_distances(values, totals, level)
    return float(1 - (coincidences * distances).sum() / (chance * distances).sum())


def _squared_distances(values: np.ndarray, totals: np.ndarray, level: Level) -> np.ndarray:
    """Return (V, V) squared distances of names (0 or 1), of mean ranks of the values, or of the values."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    positions = np.cumsum(totals) - totals / 2 if level == "ordinal" else values
    return np.subtract.outer(positions, positions) ** 2
