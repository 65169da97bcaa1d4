"""Divide the clips of a search: each fold is once the outer part, the next one is then the inner part.

    fold k    outer: only predicted      fold k + 1    inner: early stopping, halving, choice      others    trained on

Over all folds every clip has one outer and one inner prediction, by models that were not trained on it. What is chosen
for fold k uses nothing of fold k: neither its clips nor models that were stopped or chosen by them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from fusion_train.errors import DataError
from fusion_train.search.utterance_vectors import SearchData


@dataclass(frozen=True, eq=False)
class Parts:
    """The rows of the clips in each part of one fold, ascending."""

    train: np.ndarray
    inner: np.ndarray
    outer: np.ndarray


def divide(data: SearchData, count: int, group: str | None, seed: int) -> tuple[list[Parts], list[str]]:
    """Divide into `count` folds of about equal class counts; returns the parts of each fold and each clip's group.

    Raises:
        DataError: fewer groups or clips of a class than folds, clips without a group, or a fold without a class.
    """
    without = [clip.id for clip in data.clips if group and not getattr(clip, group)]
    if without:
        raise DataError(
            f"group: {group}",
            expected=f"a {group} for every clip",
            got=f"none for {len(without)} of {len(data.clips)}",
            next_step="Complete the clip list, or leave `group` out of the search file.",
            problems=without,
        )
    groups = [f"{clip.dataset} {getattr(clip, group)}" if group else clip.id for clip in data.clips]
    number = len(set(groups))
    if number < count:
        raise DataError(
            f"folds: {count}",
            expected=f"at least {count} {f'{group}s' if group else 'clips'}, one for each fold",
            got=str(number),
            next_step=f"Set folds: {number}." if number >= 3 else "Add clips of others.",
        )
    targets = data.targets.numpy()
    counts = Counter(data.classes[target] for target in targets.tolist())
    rare = [f"{label}: {size} clips" for label, size in sorted(counts.items()) if size < count]
    if rare:
        raise DataError(
            f"folds: {count}",
            expected=f"at least {count} clips of every class, one for each fold",
            got=f"fewer of {len(rare)}",
            next_step=f"Set folds: {max(3, min(counts.values()))}, or leave these clips out of the list.",
            problems=rare,
        )
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    folds = [np.sort(rows) for _, rows in splitter.split(np.zeros(len(targets)), targets, groups)]
    _refuse_missing_classes(folds, targets, data.classes, group)
    everything = np.arange(len(targets))
    parts = []
    for place, outer in enumerate(folds):
        inner = folds[(place + 1) % count]
        parts.append(Parts(np.setdiff1d(everything, np.concatenate([inner, outer])), inner, outer))
    return parts, groups


def _refuse_missing_classes(
    folds: Sequence[np.ndarray], targets: np.ndarray, classes: Sequence[str], group: str | None
) -> None:
    problems = [
        f"fold {place + 1}: no clip of {', '.join(missing)}"
        for place, rows in enumerate(folds)
        if (missing := [label for number, label in enumerate(classes) if number not in set(targets[rows].tolist())])
    ]
    if problems:
        raise DataError(
            f"folds: {len(folds)}",
            expected="clips of every class in every fold",
            got=f"{len(problems)} of {len(folds)} folds without",
            next_step="Set fewer folds"
            + (f", or leave out `group: {group}`, which keeps its clips together." if group else "."),
            problems=problems,
        )
