"""Scores of numbers, such as valence and arousal: CCC, RMSE, MAE and Pearson's r.

    CCC  = 2 s_xy / (s_x² + s_y² + (x̄ − ȳ)²)    concordance correlation coefficient: agreement with the line y = x
    RMSE = √(mean of (x − y)²)                   in the unit of the labels
    MAE  = mean of |x − y|                       in the unit of the labels
    r    = s_xy / (s_x s_y)                      0 for predictions that do not vary

Variances and the covariance divide by the number of clips, as Lin (1989, Biometrics 45, 255–268) defines the estimate
and as AVEC, OMG-Emotion and Aff-Wild compute it. CCC is at most r, and equals it only for predictions with the mean and
the variance of the references; constant predictions have a CCC of 0. Pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurecache.outside_text import shown
from fusion_train.errors import DataError
from fusion_train.metrics.labels import paired_ids


@dataclass(frozen=True)
class RegressionScores:
    """Scores of one number per clip, over `clip_ids`."""

    ccc: float
    rmse: float
    mae: float
    pearson: float
    clip_ids: tuple[str, ...]
    references: np.ndarray
    """(clips,) float64."""
    predictions: np.ndarray
    """(clips,) float64."""


def regression_scores(references: Mapping[str, Any], predictions: Mapping[str, Any]) -> RegressionScores:
    """Score one number per clip.

    Args:
        references, predictions: clip id -> number, or its text.

    Raises:
        DataError: only one side has some clip, values that are no finite number, or references that do not vary.
    """
    ids = paired_ids(references, predictions)
    x, y = (_numbers(side, ids, name) for side, name in ((references, "references"), (predictions, "predictions")))
    if np.ptp(x) == 0:
        raise DataError(
            "references",
            expected="numbers that differ, since CCC divides by their variance",
            got=f"{x[0]:g} for each of {len(ids)} clips",
            next_step="Score more clips.",
        )
    return RegressionScores(
        concordance(x, y), root_mean_square(x - y), float(np.abs(x - y).mean()), correlation(x, y), tuple(ids), x, y
    )


def concordance(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the CCC of (n,) numbers, each with a weight; 0 where both are constant."""
    mean_x, mean_y, var_x, var_y, cov = _moments(x, y, weights)
    spread = var_x + var_y + (mean_x - mean_y) ** 2
    return 2 * cov / spread if spread > 0 else 0.0


def correlation(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return Pearson's r of (n,) numbers, each with a weight; 0 where one side is constant."""
    _, _, var_x, var_y, cov = _moments(x, y, weights)
    return cov / math.sqrt(var_x * var_y) if var_x > 0 and var_y > 0 else 0.0


def root_mean_square(errors: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the root of the mean square of (n,) errors, each with a weight."""
    return math.sqrt(float(np.average(errors**2, weights=weights)))


def _moments(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None) -> tuple[float, float, float, float, float]:
    """Return both means, both variances and the covariance."""
    mean_x, mean_y = (float(np.average(side, weights=weights)) for side in (x, y))
    # A constant side has differences of rounding only, which are no variance.
    dx, dy = (side - mean if np.ptp(side) > 0 else np.zeros(len(side)) for side, mean in ((x, mean_x), (y, mean_y)))
    var_x, var_y, cov = (float(np.average(product, weights=weights)) for product in (dx * dx, dy * dy, dx * dy))
    return mean_x, mean_y, var_x, var_y, cov


def number_of(value: Any) -> float | None:
    """Return a finite number, or the finite number that a text is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _numbers(values: Mapping[str, Any], ids: list[str], side: str) -> np.ndarray:
    numbers = {clip: number_of(values[clip]) for clip in ids}
    problems = [f"{clip}: {shown(values[clip])}" for clip, number in numbers.items() if number is None]
    if problems:
        raise DataError(side, expected="one number per clip", got=f"{len(problems)} others", problems=problems)
    return np.array([numbers[clip] for clip in ids], dtype=np.float64)
