"""Scores of closed label sets, as pure functions over dicts of clip id -> label.

accuracy (WAR) = share of right answers; UAR = mean recall over the classes of the references; weighted F1 weights each
class by its references. An answer outside the classes is wrong and adds no class. Computed by scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from featurecache.errors import suggest
from fusion_train.errors import DataError


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of one task over `num_clips` clips."""

    accuracy: float
    uar: float
    weighted_f1: float
    num_clips: int
    labels: tuple[str, ...]
    confusion: np.ndarray
    """(C, C + 1) counts: reference by prediction in the order of `labels`, answers outside them last."""


def classification_scores(references: Mapping[str, str], predictions: Mapping[str, str]) -> ClassificationScores:
    """Score one label a clip.

    Raises:
        DataError: no clips, or clips that only one side has.
    """
    missing, extra = sorted(references.keys() - predictions), sorted(predictions.keys() - references)
    if missing or extra or not references:
        raise DataError(
            "predictions", expected=f"one for each of {len(references)} clips",
            got=f"{len(missing)} missing, {len(extra)} for other clips" if references else "no references",
            next_step=suggest(extra[0], missing).strip() or None if extra else None,
            problems=[f"missing: {clip}" for clip in missing] + [f"unknown: {clip}" for clip in extra],
        )  # fmt: skip
    ids = sorted(references)
    labels = tuple(sorted({references[clip] for clip in ids}))
    truth = [references[clip] for clip in ids]
    outside = "(other)" if "(other)" not in labels else "(other) "
    answers = [predictions[clip] if predictions[clip] in labels else outside for clip in ids]
    return ClassificationScores(
        accuracy=float(accuracy_score(truth, answers)),
        uar=float(recall_score(truth, answers, labels=labels, average="macro", zero_division=0)),
        weighted_f1=float(f1_score(truth, answers, labels=labels, average="weighted", zero_division=0)),
        num_clips=len(ids),
        labels=labels,
        confusion=confusion_matrix(truth, answers, labels=[*labels, outside])[:-1],
    )
