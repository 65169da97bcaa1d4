"""Divide clips into folds by a column of the clip list or into a number of folds, and each fold into splits.

    speaker, dialogue, …    one fold per value of the column: leave one speaker out
    k                       k folds of about equal class counts, by scikit-learn's `StratifiedGroupKFold`; clips of one
                            speaker (without speakers: of one dialogue) are in one fold

The clips outside a fold are trained on. Where a run is scored while it trains, a part of them is set aside for that:
INNER_SHARE of the clips, whole groups if there are enough of them, so that the held-out fold chooses nothing.
Everything is a function of ids, labels and columns of the clips and of the seed, not of their order.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from featurecache.clips.clip_list import Clip
from featurecache.clips.splitting import GROUP_KEYS
from featurecache.errors import suggest
from fusion_train.data.answers import answer_of
from fusion_train.errors import DataError
from fusion_train.prompts.prompt import Task

TRAIN, INNER, HELD_OUT = "train", "val", "test"
"""Splits of the clip list of a fold."""
INNER_SHARE = 0.15
"""Share of the clips outside a fold by which its run is scored while it trains."""
GROUPING = ("speaker", "dialogue")
"""Columns whose clips a number of folds keeps together, the first that the list has."""
COLUMNS = (*GROUP_KEYS, "split")
"""Columns that folds may be divided by."""


@dataclass(frozen=True)
class Division:
    """The folds of a clip list."""

    by: str
    """As the user named it: a column or a number."""
    task: Task
    """The label task that is scored."""
    clips: tuple[Clip, ...]
    """The clips with a label, sorted by id."""
    fold_of: Mapping[str, str]
    """Clip id -> name of the fold in which it is held out."""
    group: str | None
    """Column of the clips that are kept together; None: each clip by itself."""
    notes: tuple[str, ...] = ()

    @property
    def folds(self) -> list[str]:
        """Names of the folds: numbers first, by their length and digits, then other names."""
        names = set(self.fold_of.values())
        numbers = sorted((name for name in names if name.isdecimal()), key=lambda name: (len(name), name))
        return numbers + sorted(names - set(numbers))

    @property
    def labels(self) -> dict[str, str]:
        """Clip id -> label."""
        return {clip.id: answer_of(clip, self.task) or "" for clip in self.clips}

    @property
    def clusters(self) -> dict[str, str]:
        """Clip id -> the group that intervals leave out together."""
        return {clip.id: group_of(clip, self.group) for clip in self.clips}

    def held_out(self, fold: str) -> list[Clip]:
        return [clip for clip in self.clips if self.fold_of[clip.id] == fold]

    def outside(self, fold: str) -> list[Clip]:
        return [clip for clip in self.clips if self.fold_of[clip.id] != fold]


def group_of(clip: Clip, column: str | None) -> str:
    """Return the group of a clip; a clip without a value of the column is a group of its own."""
    value = getattr(clip, column) if column else None
    return f"{column} {clip.dataset or ''} {value}" if value else f"clip {clip.id}"


def divide(clips: Sequence[Clip], by: str, task: Task, seed: int) -> Division:
    """Divide the clips that have a label.

    Args:
        by: a column of the clip list, or the number of folds.

    Raises:
        DataError: no label, no such column, clips without a value of it, or too few groups or clips of a class.
    """
    labelled = sorted((clip for clip in clips if answer_of(clip, task)), key=lambda clip: clip.id)
    if not labelled:
        raise DataError(
            f"--folds {by}",
            expected=f"clips with a label for the task {task.name}",
            got=f"none of {len(clips)}",
            next_step="Add labels to the clip list, or name another task with --set data.tasks=[TASK].",
        )
    notes = []
    if len(labelled) < len(clips):
        notes.append(f"{len(clips) - len(labelled)} of {len(clips)} clips have no {task.name} and are left out")
    if by.isdecimal():
        return _numbered(labelled, int(by), task, seed, notes)
    return _by_column(labelled, by, task, notes)


def _by_column(clips: list[Clip], by: str, task: Task, notes: list[str]) -> Division:
    if by not in COLUMNS or not any(getattr(clip, by) for clip in clips):
        there = [column for column in COLUMNS if any(getattr(clip, column) for clip in clips)]
        raise DataError(
            f"--folds {by}",
            expected=f"a column that the clips have ({', '.join(there) or 'none'}) or a number of folds",
            got=f"no {by}",
            next_step=(suggest(by, there) or "Name a number, such as --folds 5.").strip(),
        )
    without = [clip.id for clip in clips if not getattr(clip, by)]
    if without:
        raise DataError(
            f"--folds {by}",
            expected=f"a {by} for every clip",
            got=f"none for {len(without)} of {len(clips)}",
            next_step="Complete the clip list, or leave these clips out with data.exclude:",
            problems=without,
        )
    datasets: dict[str, set[str | None]] = {}
    for clip in clips:
        datasets.setdefault(getattr(clip, by), set()).add(clip.dataset)
    shared = any(len(names) > 1 for names in datasets.values()) and by != "split"
    fold_of = {
        clip.id: f"{clip.dataset}-{getattr(clip, by)}" if shared and clip.dataset else str(getattr(clip, by))
        for clip in clips
    }
    if len(set(fold_of.values())) < 2:
        raise DataError(
            f"--folds {by}",
            expected=f"at least two values of {by}",
            got=next(iter(fold_of.values())),
            next_step="Name another column, or a number of folds.",
        )
    group = by if by not in ("split", "dataset") else _grouping(clips)
    return Division(by, task, tuple(clips), fold_of, group, tuple(notes))


def _numbered(clips: list[Clip], count: int, task: Task, seed: int, notes: list[str]) -> Division:
    if count < 2:
        raise DataError(f"--folds {count}", expected="at least 2 folds", got=str(count))
    column = _grouping(clips)
    groups = [group_of(clip, column) for clip in clips]
    labels = [answer_of(clip, task) or "" for clip in clips]
    number = len(set(groups))
    if number < count:
        raise DataError(
            f"--folds {count}",
            expected=f"at least {count} {f'values of {column}' if column else 'clips'}, one for each fold",
            got=str(number),
            next_step=f"Ask for fewer folds: --folds {number}." if number > 1 else "Add clips of others.",
        )
    rare = {label: size for label, size in sorted(Counter(labels).items()) if size < count}
    if rare:
        named = ", ".join(f"{label} ({size})" for label, size in rare.items())
        raise DataError(
            f"--folds {count}",
            expected=f"at least {count} clips of every label, one for each fold",
            got=f"fewer of {named}",
            next_step=f"Ask for {max(2, min(rare.values()))} folds, or leave these clips out with data.exclude.",
        )
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    fold_of: dict[str, str] = {}
    for place, (_, held_out) in enumerate(folds.split(np.zeros(len(clips)), labels, groups), start=1):
        fold_of |= {clips[row].id: str(place) for row in held_out}
    return Division(str(count), task, tuple(clips), fold_of, column, tuple(notes))


def _grouping(clips: Sequence[Clip]) -> str | None:
    return next((column for column in GROUPING if any(getattr(clip, column) for clip in clips)), None)


def fold_clips(division: Division, fold: str, seed: int, *, inner: bool) -> tuple[list[Clip], list[str]]:
    """Return the clips of a fold's list, each with its split, and notes about them.

    Args:
        seed: decides which clips score the run while it trains.
        inner: whether some do.

    Raises:
        DataError: the clips outside the fold cannot be divided.
    """
    held_out = [replace(clip, split=HELD_OUT) for clip in division.held_out(fold)]
    outside = division.outside(fold)
    if not inner:
        return [replace(clip, split=TRAIN) for clip in outside] + held_out, []
    notes: list[str] = []
    enough = len({group_of(clip, division.group) for clip in outside}) > 2
    columns: list[str | None] = [division.group, None] if division.group and enough else [None]
    for column in columns:
        inner_ids = _inner_clips(outside, division.task, column, seed)
        if inner_ids is not None:
            divided = [replace(clip, split=INNER if clip.id in inner_ids else TRAIN) for clip in outside]
            if column != division.group:
                notes = [f"fold {fold}: no {division.group} can be set aside to score its run; single clips are"]
            return divided + held_out, notes
    raise DataError(
        f"fold {fold}",
        expected="enough clips outside it to score the run while it trains",
        got=f"{len(outside)} clips",
        next_step="Train without such scores: --set data.eval_split=null.",
    )


def _inner_clips(clips: Sequence[Clip], task: Task, column: str | None, seed: int) -> set[str] | None:
    """Return the ids of the clips that score a run; None if the others would lack a label, however they are divided."""
    labels, groups = [answer_of(clip, task) or "" for clip in clips], [group_of(clip, column) for clip in clips]
    count = min(round(1 / INNER_SHARE), len(set(groups)))
    if count < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer clips than parts is checked here
        try:
            parts = [part for _, part in StratifiedGroupKFold(count).split(np.zeros(len(clips)), labels, groups)]
        except ValueError:  # every class has fewer clips than parts
            return None
    for attempt in range(count):
        part = set(parts[(seed + attempt) % count].tolist())
        if part and {labels[row] for row in range(len(clips)) if row not in part} == set(labels):
            return {clips[row].id for row in part}
    return None
