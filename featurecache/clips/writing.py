"""Write a clip list: JSONL, paths relative to the list, or to a folder that `--media-root` names when it is read.

Every row is checked as a reader would check it before anything is written, so what is written can be read.
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
    """Publish a clip list at `path`; media paths are made relative to `media_root`, by default the list's own folder.

    Raises:
        ClipListError: another ending than .jsonl, media outside that folder, a clip that no list may hold, an id twice.
    """
    if path.suffix.lower() != ".jsonl":
        raise ClipListError(str(path), expected="an ending of .jsonl", got=repr(path.suffix))
    root = Path(os.path.abspath(media_root or path.parent))
    rows, problems, seen = [], [], set()
    for clip in clips:
        row = clip_row(clip, root)
        problem, _ = parse_row(row, root)
        if clip.id in seen:
            problem = "stands twice"
        seen.add(clip.id)
        problems += [f'"{clip.id}": {problem}'] if problem else []
        rows.append(row)
    if problems:
        raise ClipListError(str(path), expected="a valid clip list", got="problems", problems=problems)
    replace_bytes(path, dump_lines(rows))


def clip_row(clip: Clip, root: Path) -> dict[str, Any]:
    """Return a clip as a line of a list holds it: only what it has."""
    row: dict[str, Any] = {}
    for field in fields(Clip):
        value = getattr(clip, field.name)
        if value is None or value in ({}, ()):
            continue
        if field.name in MEDIA_KINDS:
            value = Path(os.path.relpath(os.path.abspath(value), root)).as_posix()
        elif field.name == "questions":
            value = [{key: text for key, text in asdict(each).items() if text is not None} for each in value]
        elif field.name == "crop":
            value = value.as_json()
        row[field.name] = value
    return row
