"""Write a clip list as JSONL, with media paths relative to the list, or to the folder that `--media-root` names.

Every row is validated as by `load_clips` before the file is written, so every written list can be read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from featurecache.clips.clip_list import MEDIA_KINDS, Clip, parse_row
from featurecache.errors import ClipListError
from featurecache.files.jsonl import dump_lines
from featurecache.files.publish import replace_bytes


def write_clips(clips: Iterable[Clip], path: Path, media_root: Path | None = None) -> None:
    """Publish a clip list at `path`; media paths become relative to `media_root`, by default the folder of the list.

    Raises:
        ClipListError: an ending other than .jsonl, media outside that folder, an invalid clip, or a repeated id.
    """
    if path.suffix.lower() != ".jsonl":
        raise ClipListError(str(path), expected="an ending of .jsonl", got=repr(path.suffix))
    root = Path(os.path.abspath(media_root or path.parent))
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    ids: set[str] = set()
    for clip in clips:
        row = clip_row(clip, root)
        problem, _ = parse_row(row, root)
        if clip.id in ids:
            problem = "stands twice"
        ids.add(clip.id)
        problems += [f'"{clip.id}": {problem}'] if problem else []
        rows.append(row)
    if problems:
        raise ClipListError(str(path), expected="a valid clip list", got="problems", problems=problems)
    replace_bytes(path, dump_lines(rows))


def clip_row(clip: Clip, root: Path) -> dict[str, Any]:
    """Return a clip as the object of one line: only keys that have a value."""
    row: dict[str, Any] = {}
    for field in fields(Clip):
        value = getattr(clip, field.name)
        if value is None or value is False or value in ({}, ()):
            continue
        if field.name in MEDIA_KINDS:
            value = Path(os.path.relpath(os.path.abspath(value), root)).as_posix()
        elif field.name == "questions":
            value = [{key: text for key, text in asdict(question).items() if text is not None} for question in value]
        elif field.name == "crop":
            value = value.as_json()
        row[field.name] = value
    return row
