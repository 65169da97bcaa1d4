"""Count clips by split and class, and note what is doubtful about the classes of a clip list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from featurecache.clips.clip_list import Clip
from featurecache.outside_text import first_ids

ByName = dict[str, Counter[str]]
"""Name -> clips by split; "" is no split."""

RARE_BELOW = 10
"""A class of fewer clips is named as rare."""


def clip_classes(clip: Clip) -> list[tuple[str, str]]:
    """Return the (task, label) pairs of a clip; scores are no classes."""
    pairs = []
    for task, value in clip.labels.items():
        if not isinstance(value, int | float):
            pairs += [(task, label) for label in ([value] if isinstance(value, str) else value)]
    return pairs


def count_clips(clips: Iterable[Clip]) -> tuple[Counter[str], ByName, dict[str, ByName]]:
    """Return the number of clips by split, by dataset and split, and by label task, label and split."""
    by_split: Counter[str] = Counter()
    by_dataset: ByName = {}
    by_label: dict[str, ByName] = {}
    for clip in clips:
        split = clip.split or ""
        by_split[split] += 1
        by_dataset.setdefault(clip.dataset or "", Counter())[split] += 1
        for task, label in clip_classes(clip):
            by_label.setdefault(task, {}).setdefault(label, Counter())[split] += 1
    return by_split, by_dataset, by_label


def class_notes(clips: Sequence[Clip]) -> list[str]:
    """Return notes on the classes of each label task: near-equal names, rare ones, none in `train`, only one.

    Near-equal names stay classes of their own: only their author knows whether they mean the same.
    """
    notes = []
    by_task: dict[str, Counter[str]] = {}
    trained: dict[str, set[str]] = {}
    for clip in clips:
        for task, label in clip_classes(clip):
            by_task.setdefault(task, Counter())[label] += 1
            if clip.split == "train":
                trained.setdefault(task, set()).add(label)
    has_train = any(clip.split == "train" for clip in clips)
    for task, counts in sorted(by_task.items()):
        for names in near_equal_names(counts):
            shown = " and ".join(f'"{name}" ({counts[name]})' for name in names)
            notes.append(f"{task}: {shown} are classes of their own. If they mean the same, write one name.")
        rare = [f"{name} ({count})" for name, count in sorted(counts.items()) if count < RARE_BELOW]
        if rare:
            notes.append(f"{task}: rare: {', '.join(rare)}. Scores of a class of few clips are uncertain.")
        untrained = sorted(set(counts) - trained.get(task, set())) if has_train else []
        if untrained:
            notes.append(f"{task}: no clip of {', '.join(untrained)} is in train, so these cannot be learnt.")
        if len(counts) == 1:
            notes.append(f'{task}: only one class, "{next(iter(counts))}". A model needs two or more.')
    unlabelled = [clip.id for clip in clips if not clip.labels]
    if unlabelled:
        shown = first_ids(unlabelled)
        notes.append(f"no label: {len(unlabelled)} of {len(clips)} clips ({shown})")
    return notes


def near_equal_names(names: Mapping[str, int]) -> list[list[str]]:
    """Return the groups of class names that differ by one letter, by case, space or punctuation only, frequent first.

    One letter counts only where the longer name has five letters or more: `sad` and `mad` are different words.
    """
    groups: list[list[str]] = []
    for name in sorted(names, key=lambda name: (-names[name], name)):
        plain = _plain(name)
        group = next((group for group in groups if _near(plain, _plain(group[0]))), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return [group for group in groups if len(group) > 1]


def _plain(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum())


def _near(one: str, other: str) -> bool:
    """Return whether two texts are equal, or, from five letters on, differ by one letter added or replaced."""
    if one == other:
        return True
    short, long = sorted((one, other), key=len)
    if len(long) < 5 or len(long) - len(short) > 1 or any(char.isdigit() for char in one + other):
        return False
    same = next((index for index, char in enumerate(short) if char != long[index]), len(short))
    return short[same:] == long[same + 1 :] or short[same + 1 :] == long[same + 1 :]
