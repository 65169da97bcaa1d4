"""Scores of closed label sets, with one label or several labels per clip; computed by scikit-learn.

One label per clip: accuracy (= WAR), UAR (mean recall over the classes of the references), weighted F1 (classes
weighted by their number of references) and macro F1. An answer outside the classes is wrong and adds no class.

Several labels per clip: macro mAP, micro and samples F1, Jaccard. Labels outside the classes are counted and otherwise
ignored; a class without a reference enters no mean. Answers are lists and not probabilities, so average precision is
computed from scores of 0 and 1, as in the released evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    jaccard_score,
    precision_recall_fscore_support,
    recall_score,
)

from featurecache.errors import suggest
from fusion_train.errors import DataError
from fusion_train.metrics.labels import label_list, paired_ids, spelt_as


@dataclass(frozen=True)
class ClassScores:
    """Scores of one class; precision and F1 are 0 if no answer names it."""

    label: str
    precision: float
    recall: float
    f1: float
    num_clips: int


@dataclass(frozen=True)
class ClassificationScores:
    """Scores of one label per clip, over `num_clips` clips."""

    accuracy: float
    uar: float
    weighted_f1: float
    num_clips: int
    labels: tuple[str, ...]
    confusion: np.ndarray
    """(C, C + 1) counts: references by predictions, in the order of `labels`; the last column counts other answers."""
    classes: tuple[ClassScores, ...]
    clip_ids: tuple[str, ...]
    outcomes: np.ndarray
    """(clips, 2) indices of reference and answer in `labels`; C for an answer outside them."""

    @property
    def war(self) -> float:
        """Weighted average recall, which is the accuracy."""
        return self.accuracy

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes of the references."""
        return float(np.mean([scores.f1 for scores in self.classes]))

    @property
    def num_outside(self) -> int:
        """Number of answers that name no class."""
        return int(self.confusion[:, -1].sum())


def classification_scores(
    references: Mapping[str, str], predictions: Mapping[str, str], vocabulary: Sequence[str] | None = None
) -> ClassificationScores:
    """Score one label per clip.

    Args:
        vocabulary: the label space of the dataset; other spellings of a label (angry, anger) count as the label. None:
            the labels of the references, in exactly their spelling.

    Raises:
        DataError: there are no clips, only one side has some clip, or a reference is outside the vocabulary.
    """
    ids = paired_ids(references, predictions)
    truth, answers = [references[clip] for clip in ids], [predictions[clip] for clip in ids]
    if vocabulary is not None:
        truth = [spelt_as(label, vocabulary) for label in truth]
        answers = [spelt_as(label, vocabulary) for label in answers]
        refuse_unknown_labels({clip: [label] for clip, label in zip(ids, truth, strict=True)}, vocabulary)
    labels = tuple(sorted(set(truth)))
    outside = "(other)"  # one class for all answers outside the labels; its name must not be a label
    while outside in labels:
        outside += " "
    answers = [answer if answer in labels else outside for answer in answers]
    index = {label: number for number, label in enumerate([*labels, outside])}
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
        outcomes=np.array([(index[label], index[answer]) for label, answer in zip(truth, answers, strict=True)]),
    )


def refuse_unknown_labels(references: Mapping[str, Sequence[str]], vocabulary: Sequence[str]) -> None:
    """Raise DataError if a reference is no label of the vocabulary; the message lists all such clips."""
    unknown = {clip: label for clip, labels in references.items() for label in labels if label not in vocabulary}
    if unknown:
        first = next(iter(unknown.values()))
        raise DataError(
            "references",
            expected="labels of " + ", ".join(vocabulary),
            got=f"{len(unknown)} outside them",
            next_step=suggest(first, vocabulary).strip() or "Mend the clip list, or name the vocabulary it uses.",
            problems=[f'{clip}: "{label}"' for clip, label in unknown.items()],
        )


@dataclass(frozen=True)
class LabelScores:
    """Scores of one class of a multi-label task."""

    label: str
    average_precision: float
    f1: float
    num_clips: int


@dataclass(frozen=True)
class MultiLabelScores:
    """Scores of several labels per clip, over `num_clips` clips and the classes of the references."""

    map_macro: float
    f1_micro: float
    f1_samples: float
    jaccard: float
    """Mean over clips of |reference ∩ prediction| / |reference ∪ prediction|; 0 if both are empty."""
    num_clips: int
    num_outside: int
    """Number of predicted labels outside the classes."""
    mean_num_labels: float
    """Predicted labels per clip."""
    classes: tuple[LabelScores, ...]
    truth: np.ndarray
    """(clips, classes) bool: labels of the references, clips in sorted order of their ids."""
    predicted: np.ndarray
    """(clips, classes) bool: labels of the predictions."""


def multi_label_scores(
    references: Mapping[str, str | Iterable[str]],
    predictions: Mapping[str, str | Iterable[str]],
    vocabulary: Sequence[str] | None = None,
) -> MultiLabelScores:
    """Score several labels per clip.

    Raises:
        DataError: only one side has some clip, a reference is outside the vocabulary, or no clip has a label.
    """
    ids = paired_ids(references, predictions)
    space = [word.lower() for word in vocabulary] if vocabulary is not None else None
    truth = {clip: _spelt(references[clip], space) for clip in ids}
    if space is not None:
        refuse_unknown_labels(truth, space)
    classes = sorted({label for labels in truth.values() for label in labels})
    if not classes:
        raise DataError("references", expected="labels for some clip", got=f"none for {len(ids)} clips")
    answers = {clip: _spelt(predictions[clip], space or classes) for clip in ids}
    known = set(space or classes)
    true, predicted = (_indicators(labels, ids, classes) for labels in (truth, answers))
    precisions = [average_precision_score(true[:, c], predicted[:, c].astype(float)) for c in range(len(classes))]
    # An empty column more: scikit-learn takes a single column for binary labels.
    pair = [np.pad(indicators, ((0, 0), (0, 1))) for indicators in (true, predicted)]
    f1 = f1_score(*pair, average=None, zero_division=0)
    return MultiLabelScores(
        map_macro=float(np.mean(precisions)),
        f1_micro=float(f1_score(*pair, average="micro", zero_division=0)),
        f1_samples=float(f1_score(*pair, average="samples", zero_division=0)),
        jaccard=float(jaccard_score(*pair, average="samples", zero_division=0)),
        num_clips=len(ids),
        num_outside=sum(label not in known for labels in answers.values() for label in labels),
        mean_num_labels=float(np.mean([len(labels) for labels in answers.values()])),
        classes=tuple(
            LabelScores(name, float(precisions[c]), float(f1[c]), int(true[:, c].sum()))
            for c, name in enumerate(classes)
        ),
        truth=true,
        predicted=predicted,
    )


def _indicators(labels: Mapping[str, list[str]], ids: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return (clips, classes) bool: whether a clip has a class."""
    return np.array([[name in labels[clip] for name in classes] for clip in ids])


def _spelt(value: str | Iterable[str], vocabulary: Sequence[str] | None) -> list[str]:
    labels = label_list(value)
    return labels if vocabulary is None else list(dict.fromkeys(spelt_as(label, vocabulary) for label in labels))
