"""Scores of closed label sets, as pure functions over dicts of clip id -> label.

accuracy (WAR) = share of right answers; UAR = mean recall over the classes of the references; weighted F1 weights each
class by its references, macro F1 does not. An answer outside the classes is wrong and adds no class. Computed by
scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support, recall_score

from featurecache.errors import suggest
from fusion_train.errors import DataError
from fusion_train.metrics.labels import spelt_as
from fusion_train.metrics.pairing import paired_ids


@dataclass(frozen=True)
class ClassScores:
    """One class; precision and F1 are 0 where nothing was answered with it."""

    label: str
    precision: float
    recall: float
    f1: float
    num_clips: int


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
    classes: tuple[ClassScores, ...]
    clip_ids: tuple[str, ...]
    outcomes: np.ndarray
    """(clips, 2) place of the reference, and of the answer, in `labels`; C for an answer outside them."""

    @property
    def war(self) -> float:
        """Weighted average recall, which is the accuracy."""
        return self.accuracy

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes of the references."""
        return float(np.mean([each.f1 for each in self.classes]))

    @property
    def num_outside(self) -> int:
        """Answers that name no class."""
        return int(self.confusion[:, -1].sum())


def classification_scores(
    references: Mapping[str, str], predictions: Mapping[str, str], vocabulary: Sequence[str] | None = None
) -> ClassificationScores:
    """Score one label a clip.

    Args:
        vocabulary: the dataset's label space; other spellings of its labels (angry, anger) count as the label. None:
            the labels of the references, compared as they are spelt.

    Raises:
        DataError: no clips, clips that only one side has, or a reference outside the vocabulary.
    """
    ids = paired_ids(references, predictions)
    truth, answers = [references[clip] for clip in ids], [predictions[clip] for clip in ids]
    if vocabulary is not None:
        truth = [spelt_as(label, vocabulary) for label in truth]
        answers = [spelt_as(label, vocabulary) for label in answers]
        refuse_outside({clip: [label] for clip, label in zip(ids, truth, strict=True)}, vocabulary)
    labels = tuple(sorted(set(truth)))
    outside = "(other)"
    while outside in labels:
        outside += " "
    answers = [answer if answer in labels else outside for answer in answers]
    place = {label: number for number, label in enumerate([*labels, outside])}
    precision, recall, f1, support = precision_recall_fscore_support(truth, answers, labels=labels, zero_division=0)
    return ClassificationScores(
        accuracy=float(accuracy_score(truth, answers)),
        uar=float(recall_score(truth, answers, labels=labels, average="macro", zero_division=0)),
        weighted_f1=float(f1_score(truth, answers, labels=labels, average="weighted", zero_division=0)),
        num_clips=len(ids),
        labels=labels,
        confusion=confusion_matrix(truth, answers, labels=[*labels, outside])[:-1],
        classes=tuple(
            ClassScores(label, float(precision[c]), float(recall[c]), float(f1[c]), int(support[c]))
            for c, label in enumerate(labels)
        ),
        clip_ids=tuple(ids),
        outcomes=np.array([(place[label], place[answer]) for label, answer in zip(truth, answers, strict=True)]),
    )


def refuse_outside(references: Mapping[str, Sequence[str]], vocabulary: Sequence[str]) -> None:
    """Raise DataError where a reference is no label of the vocabulary; every such clip is named."""
    strange = {clip: label for clip, labels in references.items() for label in labels if label not in vocabulary}
    if strange:
        first = next(iter(strange.values()))
        raise DataError(
            "references",
            expected="labels of " + ", ".join(vocabulary),
            got=f"{len(strange)} outside them",
            next_step=suggest(first, vocabulary).strip() or "Mend the clip list, or name the vocabulary it uses.",
            problems=[f'{clip}: "{label}"' for clip, label in strange.items()],
        )
