"""Krippendorff's alpha: how far several raters agree, beyond what chance alone gives.

Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), whose examples are the tests. Shapes: R raters,
U units rated, V distinct values.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(ratings: np.ndarray, level: Level = "ordinal") -> float | None:
    """Return alpha of (R, U) ratings, NaN where a rater did not rate a unit; 1 is perfect agreement, 0 is chance.

    Units with one rating count for nothing, since nothing can agree there. None where alpha is not defined: no unit was
    rated twice, or all ratings of such units are equal.
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
    totals = coincidences.sum(axis=1)  # how often each value occurs in pairs
    chance = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    distances = _squared_distances(values, totals, level)
    return float(1 - (coincidences * distances).sum() / (chance * distances).sum())


def _squared_distances(values: np.ndarray, totals: np.ndarray, level: Level) -> np.ndarray:
    """(V, V): 0 or 1 between names; ratings between two ranks, half of their own included; or differences."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    places = np.cumsum(totals) - totals / 2 if level == "ordinal" else values
    return np.subtract.outer(places, places) ** 2
