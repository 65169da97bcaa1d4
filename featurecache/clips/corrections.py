"""Corrected labels: kept beside a clip list and laid over it when it is read; the list itself is never edited.

    {"id": "a1", "task": "emotion", "was": "happy", "label": "surprise"}      one line a clip

`was` is what the list says. Where it says something else by now, the correction is refused: it was made of another
list. An exclusion is a clip list like any other; its clips are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from featurecache.clips.clip_list import ClipList, load_clips
from featurecache.errors import ClipListError
from featurecache.files.jsonl import dump_lines, read_objects
from featurecache.outside_text import shown


@dataclass(frozen=True)
class Correction:
    """One label that was decided to be wrong."""

    id: str
    task: str
    was: str
    label: str


def load_corrections(path: str | Path) -> list[Correction]:
    """Read a file of corrections.

    Raises:
        ClipListError: no such file, or lines that are none; all are named.
    """
    corrections, problems = [], []
    try:
        for number, row in read_objects(Path(path)):
            problem = row if isinstance(row, str) else _problem(row)
            if problem:
                problems.append(f"line {number}: {problem}")
            else:
                corrections.append(Correction(**row))  # type: ignore[arg-type]
    except OSError as error:
        raise ClipListError(str(path), expected="a file of corrections", got=str(error.strerror)) from error
    if problems:
        raise ClipListError(
            str(path),
            expected='lines like {"id": …, "task": …, "was": …, "label": …}',
            got=f"{len(problems)} others",
            next_step="`fcache audit --decisions` writes such a file.",
            problems=problems,
        )
    return corrections


def _problem(row: Mapping[str, object]) -> str:
    names = [each.name for each in fields(Correction)]
    if sorted(row) != sorted(names):
        return f"expected the keys {', '.join(names)}, got {shown(sorted(row))}"
    strange = [name for name in names if not isinstance(row[name], str) or not row[name]]
    return f"{strange[0]}: expected a text, got {shown(row[strange[0]])}" if strange else ""


def dump_corrections(corrections: Iterable[Correction]) -> str:
    """The text of a file of corrections."""
    return dump_lines(map(asdict, corrections)).decode()


def correct(clips: ClipList, corrections: Iterable[Correction]) -> ClipList:
    """Return the clips with corrected labels.

    Raises:
        ClipListError: a clip that is not in the list, or whose label is not what was corrected; all are named.
    """
    wanted: dict[str, dict[str, Correction]] = {}
    problems = []
    by_id = {clip.id: clip for clip in clips}
    for correction in corrections:
        clip = by_id.get(correction.id)
        if clip is None:
            problems.append(f"{correction.id}: not in the list")
        elif clip.labels.get(correction.task) != correction.was:
            problems.append(
                f"{correction.id}: {correction.task} is {clip.labels.get(correction.task)!r}, corrected was "
                f"{correction.was!r}"
            )
        else:
            wanted.setdefault(correction.id, {})[correction.task] = correction
    if problems:
        raise ClipListError(
            "corrections",
            expected="clips of this list with the labels that were corrected",
            got=f"{len(problems)} others",
            next_step="Audit this list anew.",
            problems=problems,
        )
    return ClipList(
        replace(clip, labels={**clip.labels, **{task: each.label for task, each in wanted[clip.id].items()}})
        if clip.id in wanted
        else clip
        for clip in clips
    )


def adjust(clips: ClipList, folder: Path, corrections: Sequence[str], exclusions: Sequence[str]) -> ClipList:
    """Lay files of corrections over a clip list and leave out the clips of exclusions; paths relative to `folder`.

    Raises:
        ClipListError: see `load_corrections`, `correct`, `load_clips`; or no clip is left.
    """
    for path in corrections:
        clips = correct(clips, load_corrections(folder / path))
    left_out = {clip_id for path in exclusions for clip_id in load_clips(folder / path).ids}
    if not left_out:
        return clips
    kept = [clip for clip in clips if clip.id not in left_out]
    if not kept:
        raise ClipListError(", ".join(exclusions), expected="clips to be left", got="an exclusion of all of them")
    return ClipList(kept)


def decided(document: Mapping[str, object], clips: ClipList) -> list[Correction]:
    """Turn the decisions of a review sheet into corrections; labels that were kept make none.

    Raises:
        ClipListError: not what a review sheet saves.
    """
    task, decisions = document.get("task"), document.get("decisions")
    if not isinstance(task, str) or not isinstance(decisions, Mapping):
        raise ClipListError("decisions", expected="what the review sheet saves", got=f"keys {sorted(document)}")
    found = []
    for clip_id, label in decisions.items():
        was = clips.by_id(clip_id).labels.get(task)
        if not isinstance(label, str) or not isinstance(was, str):
            raise ClipListError(clip_id, expected=f"a {task} label, decided and listed", got=f"{label!r} and {was!r}")
        if label != was:
            found.append(Correction(clip_id, task, was, label))
    return found
