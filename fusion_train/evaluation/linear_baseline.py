"""Logistic regression on averaged tokens: the score that a trained probe must beat.

    modality -> tokens (N, D) -> standardise -> concatenate (N, F) -> logistic regression with an L2 penalty

Everything is fitted on the training rows: means and standard deviations of the columns, the weights, and the strength
of the penalty, which an inner cross-validation chooses among `PENALTIES` by the UAR of its pooled predictions. Its
folds keep the clips of a group (a speaker, a dialogue) together, so that no penalty is chosen for recognising voices.
A modality that a clip lacks has the mean of the training rows, and one further column per modality says so.

With more columns than training rows, the rows are rotated into their own span first: an L2 penalty does not change
under rotation and its optimum lies in the span, so the result is the same; 4,096 columns of 480 clips become 480.
Shapes: N clips, C classes, D width of a modality, F columns. Knows no store and no clip list.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import StratifiedGroupKFold

from fusion_train.errors import DataError

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates of scikit-learn's `C`, the inverse strength of the penalty, from strong to weak."""
DEFAULT_PENALTY = 1e-2
"""`C` where the training rows cannot be divided into folds: one group, or folds that leave one class."""
NUM_INNER_FOLDS = 5
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class BaselinePredictions:
    """Answers of the baseline to n test rows, in the order of the rows."""

    classes: tuple[str, ...]
    """The C labels of the training rows, sorted."""
    labels: tuple[str, ...]
    """(n,) the most probable label of each row."""
    probabilities: np.ndarray
    """(n, C) in the order of `classes`."""
    penalty: float
    """The chosen `C` of scikit-learn."""


def linear_baseline(
    tokens: Mapping[str, np.ndarray],
    labels: Sequence[str],
    train: Sequence[int] | np.ndarray,
    test: Sequence[int] | np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    present: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> BaselinePredictions:
    """Fit a logistic regression on the training rows and answer the test rows.

    Args:
        tokens: modality -> (N, D) averaged tokens, or (N, K, D), whose K tokens are columns of their own.
        labels: (N,) label of each clip; those of test rows are not read.
        train, test: indices of rows.
        groups: (N,) speaker or dialogue of each clip, which the inner folds keep together; None: each clip by itself.
        present: modality -> (N,) bool; rows that lack a modality may hold anything. None: every clip has all.
        seed: shuffles the inner folds.

    Raises:
        DataError: no training row, fewer than two classes in training rows, or tokens that are NaN or infinite.
    """
    train, test = np.asarray(train, dtype=np.intp), np.asarray(test, dtype=np.intp)
    truth = np.asarray(labels, dtype=object)[train].astype(str)
    if len(set(truth.tolist())) < 2:
        raise DataError(
            "linear baseline",
            expected="training clips of at least two classes",
            got=", ".join(sorted(set(truth.tolist()))) or "no training clip",
            next_step="Choose another split or label.",
        )
    train_columns, test_columns = rotated(*standardised_columns(tokens, train, test, present))
    of_rows = np.arange(len(train)) if groups is None else _numbers([groups[row] for row in train])
    penalty = _chosen_penalty(train_columns, truth, of_rows, seed)
    model = _fitted(train_columns, truth, penalty)
    probabilities = (
        model.predict_proba(test_columns) if len(test) else np.zeros((0, len(model.classes_)))
    )  # scikit-learn refuses an array of no row
    classes = tuple(map(str, model.classes_))
    predicted = tuple(classes[number] for number in probabilities.argmax(axis=1))
    return BaselinePredictions(classes, predicted, probabilities, penalty)


def standardised_columns(
    tokens: Mapping[str, np.ndarray],
    train: np.ndarray,
    test: np.ndarray,
    present: Mapping[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return columns (len(train), F) and (len(test), F) float64, standardised by the present training rows.

    A column that does not vary in training rows is only centred. Arguments as in `linear_baseline`.

    Raises:
        DataError: tokens of a present modality are NaN or infinite.
    """
    blocks: list[tuple[np.ndarray, np.ndarray]] = []
    for modality, values in tokens.items():
        flat = values.reshape(len(values), -1)
        has = np.ones(len(values), dtype=bool) if present is None else np.asarray(present[modality], dtype=bool)
        parts = [flat[rows].astype(np.float64) for rows in (train, test)]
        kept = [has[rows] for rows in (train, test)]
        broken = sum(int((~np.isfinite(part[mask]).all(axis=1)).sum()) for part, mask in zip(parts, kept, strict=True))
        if broken:
            raise DataError(
                f"linear baseline: {modality}",
                expected="finite tokens",
                got=f"NaN or infinity in {broken} clips",
                next_step="Find them with fcache verify.",
            )
        seen = parts[0][kept[0]]
        if not len(seen):
            continue  # no training clip has it: there is nothing to fit
        mean, deviation = seen.mean(axis=0), seen.std(axis=0)
        deviation[deviation < 1e-12] = 1.0
        scaled = [
            np.where(mask[:, None], (part - mean) / deviation, 0.0) for part, mask in zip(parts, kept, strict=True)
        ]
        if not kept[0].all():
            scaled = [np.column_stack([part, mask - kept[0].mean()]) for part, mask in zip(scaled, kept, strict=True)]
        blocks.append((scaled[0], scaled[1]))
    if not blocks:
        raise DataError("linear baseline", expected="a modality that training clips have", got="none")
    return np.hstack([block[0] for block in blocks]), np.hstack([block[1] for block in blocks])


def rotated(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both arrays in an orthonormal basis of the training rows' span, if that has fewer columns.

    Every product of a training row with any row stays as it is; see the header of the module.
    """
    if train.shape[0] >= train.shape[1]:
        return train, test
    squares, vectors = np.linalg.eigh(train @ train.T)
    kept = squares > squares.max(initial=0.0) * len(train) * np.finfo(float).eps
    if not kept.any():  # no column varies
        return train[:, :1], test[:, :1]
    lengths = np.sqrt(squares[kept])
    return vectors[:, kept] * lengths, test @ train.T @ vectors[:, kept] / lengths


def inner_folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the training and held-out rows of every inner fold; a group is in one fold.

    Folds whose training rows have one class are left out; the list may be empty.
    """
    most_of_a_class = int(np.unique(labels, return_counts=True)[1].max())
    count = min(NUM_INNER_FOLDS, len(set(groups.tolist())), most_of_a_class)
    if count < 2:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # folds without a rare class
        folds = list(
            StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, groups)
        )
    return [(fit, held) for fit, held in folds if len(held) and len(set(labels[fit].tolist())) > 1]


def uar_of(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean recall over the classes of (n,) references."""
    return float(recall_score(truth, predicted, labels=sorted(set(truth.tolist())), average="macro"))


def _chosen_penalty(columns: np.ndarray, labels: np.ndarray, groups: np.ndarray, seed: int) -> float:
    """Return the candidate with the highest UAR of pooled inner predictions; of equal ones the strongest."""
    folds = inner_folds(labels, groups, seed)
    if not folds:
        return DEFAULT_PENALTY
    held = np.concatenate([rows for _, rows in folds])
    uars = []
    for penalty in PENALTIES:
        answers = [_fitted(columns[fit], labels[fit], penalty).predict(columns[rows]) for fit, rows in folds]
        uars.append(uar_of(labels[held], np.concatenate(answers)))
    return PENALTIES[int(np.argmax(uars))]


def _fitted(columns: np.ndarray, labels: np.ndarray, penalty: float) -> LogisticRegression:
    with warnings.catch_warnings():
        # Classes that can be separated have no optimum under a weak penalty within any number of iterations that pays.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=penalty, max_iter=MAX_ITERATIONS).fit(columns, labels)


def _numbers(groups: Sequence[Hashable]) -> np.ndarray:
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups])
