"""Divide clips into train, val and test: each class in the same shares, clips of one group in one split.

The clips of a group (one speaker, one dialogue) stay together; a clip without a value of the group's key is a group of
its own. Groups are placed one after another, the largest first, equal ones in the order of a hash of (seed, name). Each
goes to the split that brings the counts nearest to the wanted ones. The distance is the sum, over splits and classes,
of (count / clips of the class - share)²; all clips count as one more class, which places clips without a label.
Of splits that are equally near, the first in the order train, test, val is taken, so that a class of one clip is in
`train`. A split never stays empty: the last groups go to the splits that have none. At last, where the groups are few,
two groups of different splits change places as long as that lowers the distance.

The division is a function of the ids, labels and groups of the clips, of the shares and of the seed; the order of the
list does not matter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from featurecache.clips.class_counts import clip_classes
from featurecache.clips.clip_list import Clip, load_clips
from featurecache.clips.writing import write_clips
from featurecache.errors import ClipListError
from featurecache.outside_text import first_ids

GROUP_KEYS = ("speaker", "dialogue", "session", "person", "dataset")
SHARES = re.compile(r"\d+(\.\d+)?(/\d+(\.\d+)?){1,2}")
DEFAULT_SHARES = "70/15/15"
PREFERENCE = ("train", "test", "val")
MAX_EXCHANGED = 200
"""Number of groups up to which pairs are exchanged; many small groups are placed well at once."""
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Splitting:
    """How clips are divided."""

    shares: Mapping[str, float]
    """Split -> share of the clips; the shares add up to 1 and none is 0."""
    group: str | None = None
    """Key of clips that stay together, one of `GROUP_KEYS`."""
    seed: int = 0


def parse_shares(text: str, option: str = "--split") -> dict[str, float]:
    """Return the shares by split of `70/15/15` (train, val, test) or `80/20` (train, test), in percent.

    Args:
        option: option of the command line that gave the text, for the error.

    Raises:
        ClipListError: another form, a sum other than 100, or no clip to train on.
    """
    shares: dict[str, float] = {}
    if SHARES.fullmatch(text):
        percents = [float(part) for part in text.split("/")]
        names = ("train", "val", "test") if len(percents) == 3 else ("train", "test")
        shares = {name: percent / 100 for name, percent in zip(names, percents, strict=True) if percent}
    if abs(sum(shares.values()) - 1) > 1e-9 or "train" not in shares:
        raise ClipListError(
            f"{option} {text}",
            expected="percents of train, val and test that add up to 100 (70/15/15), or of train and test (80/20)",
            got=text,
        )
    return shares


def is_shares(text: str) -> bool:
    """Return whether a text is meant as shares (`70/15/15`) and not as the name of a split."""
    return "/" in text or text.replace(".", "").isdigit()


def split_clips(clips: Sequence[Clip], splitting: Splitting) -> list[Clip]:
    """Return the clips in their order, each with its split.

    Raises:
        ClipListError: fewer groups than splits, or no clip has the key of the groups.
    """
    if splitting.group and not any(getattr(clip, splitting.group) for clip in clips):
        keys = [key for key in GROUP_KEYS if any(getattr(clip, key) for clip in clips)]
        raise ClipListError(
            f"--group {splitting.group}",
            expected=f"clips with a {splitting.group}",
            got=f"none of {len(clips)}",
            next_step=f"They have {' and '.join(keys)}." if keys else f"Give the table a column {splitting.group}.",
        )
    groups = _groups(clips, splitting.group)
    names = [name for name in PREFERENCE if name in splitting.shares]
    if len(groups) < len(names):
        noun = "clips" if splitting.group is None else f"values of {splitting.group}"
        raise ClipListError(
            "splits",
            expected=f"at least {len(names)} {noun} for {', '.join(splitting.shares)}",
            got=str(len(groups)),
            next_step="Add clips, or divide into train and test only: 80/20.",
        )
    classes = {pair for clip in clips for pair in clip_classes(clip)}
    columns = {pair: index for index, pair in enumerate(sorted(classes))}
    counts = np.zeros((len(groups), len(columns) + 1))  # the last column counts all clips
    for row, members in enumerate(groups.values()):
        counts[row, -1] = len(members)
        for clip in members:
            for pair in clip_classes(clip):
                counts[row, columns[pair]] += 1
    shares = counts / counts.sum(0)
    drawn = [_drawn(splitting.seed, name) for name in groups]
    order = sorted(range(len(groups)), key=lambda row: (-counts[row, -1], drawn[row]))
    split_of = _place(shares[order], np.array([splitting.shares[name] for name in names]))
    members_of = list(groups.values())
    split_by_id = {
        clip.id: names[split] for row, split in zip(order, split_of, strict=True) for clip in members_of[row]
    }
    return [replace(clip, split=split_by_id[clip.id]) for clip in clips]


def divide_list(
    path: Path,
    target: Path,
    splitting: Splitting,
    of_split: str | None = None,
    media_root: Path | None = None,
    *,
    overwrite: bool = False,
) -> tuple[list[Clip], list[Clip]]:
    """Divide the clips of a list, or those of one of its splits, and write the list to `target`.

    Returns:
        The clips that were divided, and all clips of the list.

    Raises:
        ClipListError: an invalid list; it has splits, or `target` is another list that is there, without `overwrite`;
            or `split_clips` refuses.
    """
    listed = load_clips(path, media_root)
    if of_split is None and listed.splits and not overwrite:
        raise ClipListError(
            str(path),
            expected="a list without splits",
            got=", ".join(listed.splits),
            next_step="Replace them with --overwrite, or divide one of them: --of train --shares 85/15/0.",
        )
    if target.exists() and target != path and not overwrite:
        raise ClipListError(
            str(target), expected="a new file", got="one that is there", next_step="Replace it with --overwrite."
        )
    divided = split_clips(listed if of_split is None else listed.in_split(of_split), splitting)
    new = {clip.id: clip for clip in divided}
    written = [new.get(clip.id, clip) for clip in listed]
    write_clips(written, target, media_root)
    return divided, written


def _groups(clips: Sequence[Clip], key: str | None) -> dict[str, list[Clip]]:
    """Return the clips by group. Names of single clips begin with a mark, so that none equals a value of the key."""
    groups: dict[str, list[Clip]] = {}
    for clip in clips:
        value = getattr(clip, key) if key else None
        groups.setdefault(f"\0{clip.id}" if value is None else value, []).append(clip)
    return groups


def _drawn(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()


def _place(groups: np.ndarray, wanted: np.ndarray) -> list[int]:
    """Return the split of each group.

    Args:
        groups: (G, C) share of each class that a group holds.
        wanted: (S,) share of each split.
    """
    reached = np.zeros((len(wanted), groups.shape[1]))
    empty = set(range(len(wanted)))
    splits = []
    for row, group in enumerate(groups):
        # The change of Σ(reached - wanted)² by a group g is g·(2(reached - wanted) + g); g·g is equal for all splits.
        errors = (reached - wanted[:, None]) @ group
        if len(groups) - row <= len(empty):
            errors[[split for split in range(len(wanted)) if split not in empty]] = np.inf
        split = int(np.argmin(np.round(errors / TOLERANCE)))
        splits.append(split)
        reached[split] += group
        empty.discard(split)
    if len(groups) <= MAX_EXCHANGED:
        _exchange(groups, splits, reached - wanted[:, None])
    return splits


def _exchange(groups: np.ndarray, splits: list[int], excess: np.ndarray) -> None:
    """Let pairs of groups change places in `splits` while that lowers the sum of squares of `excess` (S, C)."""
    improved = True
    while improved:
        improved = False
        for one, other in combinations(range(len(groups)), 2):
            here, there = splits[one], splits[other]
            moved = groups[one] - groups[other]  # leaves `here`, comes to `there`
            if here != there and moved @ (excess[there] - excess[here] + moved) < -TOLERANCE:
                excess[here] -= moved
                excess[there] += moved
                splits[one], splits[other] = there, here
                improved = True


def split_notes(clips: Sequence[Clip], splitting: Splitting) -> list[str]:
    """Return notes about a division: shares, groups and seed, and clips that belong to no group."""
    key = splitting.group
    shares = ", ".join(f"{split} {share:.0%}" for split, share in splitting.shares.items())
    together = f"clips of one {key} together" if key else "each clip by itself; --group speaker keeps speakers together"
    notes = [f"divided into {shares}; {together}; seed {splitting.seed}"]
    alone = [clip.id for clip in clips if key and not getattr(clip, key)]
    if alone:
        shown = first_ids(alone)
        notes.append(f"no {key}: {len(alone)} clips ({shown}), each divided by itself")
    return notes
