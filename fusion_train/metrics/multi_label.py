"""Several labels of a closed set a clip: mAP macro, F1 micro and samples, Jaccard. Computed by scikit-learn.

Labels that are no class are left out of both sides and counted; classes without a reference enter no mean. Answers are
lists, not probabilities, so that average precision is that of a yes or no, as in the released evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from fusion_train.errors import DataError
from fusion_train.metrics.classification import refuse_outside
from fusion_train.metrics.labels import label_list, spelt_as
from fusion_train.metrics.pairing import paired_ids


@dataclass(frozen=True)
class LabelPrecision:
    """One class."""

    label: str
    average_precision: float
    f1: float
    num_clips: int


@dataclass(frozen=True)
class MultiLabelScores:
    """Scores over `num_clips` clips and the classes that occur."""

    map_macro: float
    f1_micro: float
    f1_samples: float
    jaccard: float
    """Mean over clips of |reference ∩ prediction| / |union|; 0 where both are empty."""
    num_clips: int
    num_outside: int
    """Predicted labels that are no class."""
    mean_num_labels: float
    classes: tuple[LabelPrecision, ...]
    truth: np.ndarray
    """(clips, classes) bool, clips in sorted order of their ids."""
    predicted: np.ndarray


def multi_label_scores(
    references: Mapping[str, str | Iterable[str]],
    predictions: Mapping[str, str | Iterable[str]],
    vocabulary: Sequence[str] | None = None,
) -> MultiLabelScores:
    """Score label lists.

    Raises:
        DataError: clips that only one side has, a reference outside the vocabulary, or no reference label at all.
    """
    ids = paired_ids(references, predictions)
    space = [word.lower() for word in vocabulary] if vocabulary is not None else None
    truth = {clip: _spelt(references[clip], space) for clip in ids}
    if space is not None:
        refuse_outside(truth, space)
    classes = sorted({label for labels in truth.values() for label in labels})
    if not classes:
        raise DataError("references", expected="labels for some clip", got=f"none for {len(ids)} clips")
    answers = {clip: _spelt(predictions[clip], space or classes) for clip in ids}
    known = set(space or classes)
    wanted, given = (_table(labels, ids, classes) for labels in (truth, answers))
    precisions = [average_precision_score(wanted[:, c], given[:, c].astype(float)) for c in range(len(classes))]
    pair = [np.pad(table, ((0, 0), (0, 1))) for table in (wanted, given)]  # one class alone is no multi-label table
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
            LabelPrecision(name, float(precisions[c]), float(f1[c]), int(wanted[:, c].sum()))
            for c, name in enumerate(classes)
        ),
        truth=wanted,
        predicted=given,
    )


def _table(labels: Mapping[str, list[str]], ids: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    return np.array([[name in labels[clip] for name in classes] for clip in ids])


def _spelt(value: str | Iterable[str], vocabulary: Sequence[str] | None) -> list[str]:
    labels = label_list(value)
    return labels if vocabulary is None else list(dict.fromkeys(spelt_as(label, vocabulary) for label in labels))
