"""Label corrections: a file beside a clip list, applied when the list is read; the list itself is never edited.

    {"id": "a1", "task": "emotion", "was": "happy", "label": "surprise"}      one line per clip

`was` is the label in the list. A correction whose `was` differs from the list is refused, because it was made for
another list. An exclusion is a clip list whose clips are left out.
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
    """The correction of one wrong label."""

    id: str
    task: str
    was: str
    label: str


def load_corrections(path: str | Path) -> list[Correction]:
    """Read a file of corrections.

    Raises:
        ClipListError: no such file, or lines that are no corrections; all are named.
    """
    corrections: list[Correction] = []
    problems: list[str] = []
    try:
        for number, row in read_objects(Path(path)):
            problem = row if isinstance(row, str) else _problem(row)
            if problem or isinstance(row, str):
                problems.append(f"line {number}: {problem}")
            else:
                corrections.append(Correction(**{key: str(value) for key, value in row.items()}))
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
    names = [field.name for field in fields(Correction)]
    if sorted(row) != sorted(names):
        return f"expected the keys {', '.join(names)}, got {shown(sorted(row))}"
    invalid = [name for name in names if not isinstance(row[name], str) or not row[name]]
    return f"{invalid[0]}: expected a text, got {shown(row[invalid[0]])}" if invalid else ""


def dump_corrections(corrections: Iterable[Correction]) -> str:
    """Return the text of a file of corrections."""
    return dump_lines(map(asdict, corrections)).decode()


def apply_corrections(clips: ClipList, corrections: Iterable[Correction]) -> ClipList:
    """Return the clips with corrected labels.

    Raises:
        ClipListError: clips that are not in the list, or whose label is not the corrected one; all are named.
    """
    new_labels: dict[str, dict[str, str]] = {}  # clip id -> task -> label
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
            new_labels.setdefault(correction.id, {})[correction.task] = correction.label
    if problems:
        raise ClipListError(
            "corrections",
            expected="clips of this list with the labels that were corrected",
            got=f"{len(problems)} others",
            next_step="Audit this list anew.",
            problems=problems,
        )
    return ClipList(
        replace(clip, labels={**clip.labels, **new_labels[clip.id]}) if clip.id in new_labels else clip
        for clip in clips
    )


def adjust(clips: ClipList, folder: Path, corrections: Sequence[str], exclusions: Sequence[str]) -> ClipList:
    """Apply files of corrections to a clip list and leave out the clips of exclusions; paths are relative to `folder`.

    Raises:
        ClipListError: as `load_corrections`, `apply_corrections`, `load_clips`; or every clip is excluded.
    """
    for path in corrections:
        clips = apply_corrections(clips, load_corrections(folder / path))
    excluded = {clip_id for path in exclusions for clip_id in load_clips(folder / path).ids}
    if not excluded:
        return clips
    remaining = [clip for clip in clips if clip.id not in excluded]
    if not remaining:
        raise ClipListError(", ".join(exclusions), expected="clips to be left", got="an exclusion of all of them")
    return ClipList(remaining)


def corrections_of_review(document: Mapping[str, object], clips: ClipList) -> list[Correction]:
    """Return the corrections of a saved review sheet; a decision for the present label gives none.

    Raises:
        ClipListError: the document is no saved review sheet.
    """
    task, decisions = document.get("task"), document.get("decisions")
    if not isinstance(task, str) or not isinstance(decisions, Mapping):
        raise ClipListError("decisions", expected="what the review sheet saves", got=f"keys {sorted(document)}")
    corrections = []
    for clip_id, label in decisions.items():
        was = clips.by_id(clip_id).labels.get(task)
        if not isinstance(label, str) or not isinstance(was, str):
            raise ClipListError(clip_id, expected=f"a {task} label, decided and listed", got=f"{label!r} and {was!r}")
        if label != was:
            corrections.append(Correction(clip_id, task, was, label))
    return corrections
