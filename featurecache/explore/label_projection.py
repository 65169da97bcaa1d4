"""Clips compared along the directions of one label: what a linear probe of it takes them for.

A probe on the vectors of all features gives every clip one score a class; standardised over the clips and of length 1,
they are its vector. Clips that have the label are scored by a probe that never saw them, nor others of their dialogue
or speaker, so that neighbours are alike to the probe and do not merely carry the same label. Everything else is scored
by a probe on all labelled clips.

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
MIN_A_CLASS = NUM_FOLDS
"""Fewer clips of a class cannot be in every fold."""

Project = Callable[[np.ndarray], np.ndarray]


def label_neighbourhood(
    source: Neighbourhood, clips: ClipList, task: str, *, seed: int = 0
) -> tuple[Neighbourhood, Project]:
    """All clips of `source` compared by `labels.<task>`, and what makes vectors of `source` comparable with them.

    Raises:
        ClipListError: fewer than two classes of enough clips with tokens; what there is, is named.
        MissingExtraError: scikit-learn is not installed.
    """
    require("explore", "sklearn", subject=f"--compare label:{task}")
    known = [clip for clip in clips if isinstance(clip.labels.get(task), str) and clip.id in source]
    labelled = judgeable(known, task)
    rows = np.array([source.place(clip.id) for clip in labelled])
    labels = np.array([clip.labels[task] for clip in labelled])
    classes = sorted(set(labels.tolist()))
    unseen = np.zeros((len(labelled), len(classes)))
    for train, test in grouped_folds(labelled, labels, seed):
        unseen[test] = _scores(source.vectors[rows[train]], labels[train], source.vectors[rows[test]], classes)
    scores = _scores(source.vectors[rows], labels, source.vectors, classes)
    scores[rows] = unseen
    middle, spread = unseen.mean(0), np.maximum(unseen.std(0), 1e-9)

    def directions(values: np.ndarray) -> np.ndarray:
        standard = ((values - middle) / spread).astype(np.float32)
        return standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)

    name = f"label:{task}"
    neighbourhood = Neighbourhood({name: (source.ids, directions(scores))}, {name: 1.0}, name)
    trained, given = source.vectors[rows], labels
    return neighbourhood, lambda vectors: directions(_scores(trained, given, vectors, classes))


def judgeable(clips: Sequence[Clip], task: str) -> list[Clip]:
    """Clips of the classes that have enough of them.

    Raises:
        ClipListError: fewer than two such classes.
    """
    counts = Counter(clip.labels[task] for clip in clips)
    enough = {label for label, count in counts.items() if count >= MIN_A_CLASS}
    if len(enough) < 2:
        raise ClipListError(
            f"--label {task}" + (f", dataset {clips[0].dataset}" if clips and clips[0].dataset else ""),
            expected=f"two classes of at least {MIN_A_CLASS} clips with tokens",
            got=", ".join(f"{label} {count}" for label, count in counts.most_common()) or "none",
            next_step="Extract more clips, or choose another label.",
        )
    return [clip for clip in clips if clip.labels[task] in enough]


def grouped_folds(clips: Sequence[Clip], labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train and test rows of every fold; clips of one dialogue, or else one speaker, are in one fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [clip.dialogue or clip.speaker or clip.id for clip in clips]
    if len(set(groups)) < 2:
        groups = [clip.id for clip in clips]
    folds = StratifiedGroupKFold(min(NUM_FOLDS, len(set(groups))), shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # of a group-wise fold
        return list(folds.split(np.zeros(len(clips)), labels, groups))


def _scores(vectors: np.ndarray, labels: np.ndarray, others: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(n, R) with labels, and (N, R) -> (N, C) scores of the others; the lowest for a class that is not there."""
    from sklearn.linear_model import LogisticRegression

    present = set(labels.tolist())
    if len(present) < 2:
        return np.zeros((len(others), len(classes)))
    probe = LogisticRegression(C=PROBE_C, max_iter=1000).fit(vectors, labels)
    log_odds = np.log(np.maximum(probe.predict_proba(others), 1e-6))
    scores = np.full((len(others), len(classes)), log_odds.min())
    scores[:, [classes.index(label) for label in probe.classes_]] = log_odds
    return scores
