"""Projection of clips on the directions of one label: the class scores of a linear probe.

A probe on the vectors of all features gives every clip one score per class. A clip's vector is its scores, standardised
over the clips and normalised to length 1. A labelled clip is scored by a probe that was not trained on it, nor on other
clips of its dialogue or speaker (out-of-fold), so similar clips are similar to the probe and do not only have the same
label. All other clips are scored by a probe that was trained on all labelled clips.

Shapes: N clips, R axes of all features, C classes; (N, R) in, (N, C) out.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.errors import ClipListError
from featurecache.explore.search import Neighbourhood
from featurecache.extras import require

NUM_FOLDS = 5
PROBE_C = 10.0
MIN_CLIPS_PER_CLASS = NUM_FOLDS
"""Fewer clips of a class cannot be in every fold."""

Project = Callable[[np.ndarray], np.ndarray]
"""(Q, R) vectors of the source neighbourhood -> (Q, C) vectors of the label's."""


def label_neighbourhood(
    source: Neighbourhood, clips: ClipList, task: str, *, seed: int = 0
) -> tuple[Neighbourhood, Project]:
    """Project all clips of `source` on the directions of `labels.<task>`; return them, and the projection for queries.

    Raises:
        ClipListError: fewer than two classes have enough clips with tokens; the message names the classes.
        MissingExtraError: scikit-learn is not installed.
    """
    require("explore", "sklearn", subject=f"--compare label:{task}")
    labelled = [clip for clip in clips if isinstance(clip.labels.get(task), str) and clip.id in source]
    labelled = of_frequent_classes(labelled, task)
    rows = np.array([source.row_of(clip.id) for clip in labelled])
    labels = np.array([clip.labels[task] for clip in labelled])
    classes = sorted(set(labels.tolist()))
    out_of_fold = np.zeros((len(labelled), len(classes)))
    for train, test in grouped_folds(labelled, labels, seed):
        out_of_fold[test] = _scores(source.vectors[rows[train]], labels[train], source.vectors[rows[test]], classes)
    scores = _scores(source.vectors[rows], labels, source.vectors, classes)
    scores[rows] = out_of_fold
    mean, deviation = out_of_fold.mean(0), np.maximum(out_of_fold.std(0), 1e-9)

    def unit(class_scores: np.ndarray) -> np.ndarray:
        standard = ((class_scores - mean) / deviation).astype(np.float32)
        return standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)

    name = f"label:{task}"
    neighbourhood = Neighbourhood({name: (source.ids, unit(scores))}, {name: 1.0}, name)
    train_vectors = source.vectors[rows]
    return neighbourhood, lambda vectors: unit(_scores(train_vectors, labels, vectors, classes))


def of_frequent_classes(clips: Sequence[Clip], task: str) -> list[Clip]:
    """Return the clips of classes with at least `MIN_CLIPS_PER_CLASS` clips.

    Raises:
        ClipListError: fewer than two such classes.
    """
    counts = Counter(clip.labels[task] for clip in clips)
    frequent = {label for label, count in counts.items() if count >= MIN_CLIPS_PER_CLASS}
    if len(frequent) < 2:
        raise ClipListError(
            f"--label {task}" + (f", dataset {clips[0].dataset}" if clips and clips[0].dataset else ""),
            expected=f"two classes of at least {MIN_CLIPS_PER_CLASS} clips with tokens",
            got=", ".join(f"{label} {count}" for label, count in counts.most_common()) or "none",
            next_step="Extract more clips, or choose another label.",
        )
    return [clip for clip in clips if clip.labels[task] in frequent]


def grouped_folds(clips: Sequence[Clip], labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return train and test rows of every fold; clips of one dialogue, or else of one speaker, are in the same fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [clip.dialogue or clip.speaker or clip.id for clip in clips]
    if len(set(groups)) < 2:
        groups = [clip.id for clip in clips]
    folds = StratifiedGroupKFold(min(NUM_FOLDS, len(set(groups))), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Grouping may leave a fold without a rare class.
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(folds.split(np.zeros(len(clips)), labels, groups))


def _scores(vectors: np.ndarray, labels: np.ndarray, others: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Train a probe on (n, R) and labels; score (N, R) as (N, C) log probabilities, the lowest for missing classes."""
    from sklearn.linear_model import LogisticRegression

    present = set(labels.tolist())
    if len(present) < 2:
        return np.zeros((len(others), len(classes)))
    probe = LogisticRegression(C=PROBE_C, max_iter=1000).fit(vectors, labels)
    log_odds = np.log(np.maximum(probe.predict_proba(others), 1e-6))
    scores = np.full((len(others), len(classes)), log_odds.min())
    scores[:, [classes.index(label) for label in probe.classes_]] = log_odds
    return scores
