"""The project file `featurecache.toml`: what a project's commands use, unless an option says otherwise.

    store = "features.zarr"
    clips = "clips.jsonl"
    model = "meta-llama/Llama-2-7b-chat-hf"
    encoders = ["whisper", "face=hf-image"]

    [weights]
    whisper = "/models/whisper-base"
    face = "facebook/dinov2-small"

It is found in the working directory or above it. Paths are relative to its folder. A weight or model that is no
path from there is a hub id. Only the command lines read it: functions of both packages are told everything.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurecache.errors import ProjectError, suggest

FILE_NAME = "featurecache.toml"
PLACES = ("store", "clips", "media_root")
KEYS = (*PLACES, "model", "encoders", "weights")


@dataclass(frozen=True)
class Project:
    """The values of one project file; paths as the working directory sees them."""

    path: Path
    store: str | None = None
    clips: str | None = None
    media_root: str | None = None
    model: str | None = None
    """Language model that runs train on: `model.llm`."""
    encoders: tuple[str, ...] = ()
    """As for `--encoder`."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Encoder or feature -> checkpoint folder or hub id."""

    def present(self) -> list[str]:
        """Return the keys that have a value."""
        return [key for key in KEYS if getattr(self, key)]


def find_project(folder: Path | None = None) -> Project | None:
    """Return the project file of a folder (the working directory) or of the nearest one above; None if none has any.

    Raises:
        ProjectError: the file is no TOML, or has unknown keys or values of another kind.
    """
    try:
        folder = Path.cwd() if folder is None else folder.resolve()
    except FileNotFoundError:  # the working directory was deleted
        return None
    paths = (parent / FILE_NAME for parent in (folder, *folder.parents))
    path = next((path for path in paths if path.is_file()), None)
    return None if path is None else read_project(path)


def read_project(path: Path) -> Project:
    """Read a project file. Raises ProjectError as `find_project`."""
    shown = os.path.relpath(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProjectError(shown, expected="a TOML file", got=str(error)) from error
    problems = list(_problems(values))
    if problems:
        raise ProjectError(shown, expected="keys of a project file", got="others", problems=problems)
    folder = path.parent
    weights = {name: _checkpoint(folder, place) for name, place in values.get("weights", {}).items()}
    return Project(
        path,
        **{key: _place(folder, values[key]) for key in PLACES if key in values},
        model=_checkpoint(folder, values["model"]) if "model" in values else None,
        encoders=tuple(values.get("encoders", ())),
        weights=weights,
    )


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if key not in KEYS:
            yield f'unknown key "{key}".{suggest(key, KEYS)} Keys are {", ".join(KEYS)}.'
        elif key == "encoders":
            if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
                yield f'encoders: expected a list of names, such as ["whisper"], got {value!r}'
        elif key == "weights":
            if not isinstance(value, dict) or not all(isinstance(item, str) and item for item in value.values()):
                yield f'weights: expected a table of texts, such as whisper = "openai/whisper-base", got {value!r}'
        elif not isinstance(value, str) or not value:
            yield f"{key}: expected a text, got {value!r}"


def _place(folder: Path, text: str) -> str:
    """Return a path as the working directory sees it; a URL and an absolute path stay."""
    if "://" in text or os.path.isabs(os.path.expanduser(text)):
        return os.path.expanduser(text)
    return os.path.relpath(folder / text)


def _checkpoint(folder: Path, text: str) -> str:
    """Return the place of a checkpoint: a path if the project's folder has one, or if it can be nothing else."""
    is_path = text.startswith((".", "/", "~")) or (folder / text).exists()
    return _place(folder, text) if is_path else text


def project_text(values: Mapping[str, Any]) -> str:
    """Return the text of a project file with comments.

    Store and clip list have their usual names where they have no other, so that they are found from folders below too.
    Other keys without a value are commented out with an example.
    """
    values = {**values, "store": values.get("store") or "features.zarr", "clips": values.get("clips") or "clips.jsonl"}
    weights: Mapping[str, str] = values.get("weights") or {}
    lines = [
        "# What the commands fcache and fusion-train use in this folder and below, unless an option says otherwise.",
        "# Paths are relative to this file.",
        "",
        *_line("store", values, "features.zarr", "where the features are kept"),
        *_line("clips", values, "clips.jsonl", "the clip list, which `fcache import` writes"),
        *_line("media_root", values, "/data/clips", "folder of the media, where it is not the list's own"),
        *_line("model", values, "meta-llama/Llama-2-7b-chat-hf", "language model of training: a folder or a hub id"),
        *_line("encoders", values, ["whisper"], "what `fcache extract` runs without --encoder"),
        "",
        "# Checkpoint of each encoder: a folder or a hub id. Exports look here for the weights that made a feature.",
        "[weights]",
        *(f"{_key(name)} = {_quoted(place)}" for name, place in weights.items()),
    ]
    if not weights:
        lines.append('# whisper = "openai/whisper-base"')
    return "\n".join(lines) + "\n"


def _line(key: str, values: Mapping[str, Any], example: Any, comment: str) -> list[str]:
    value = values.get(key)
    given = value is not None and value != ()
    text = _quoted(value if given else example)
    return [f"{'' if given else '# '}{key} = {text}  # {comment}"]


def _quoted(value: Any) -> str:
    """Return a TOML value of a text or a list of texts."""
    if not isinstance(value, str):
        return "[" + ", ".join(map(_quoted, value)) + "]"
    escaped = "".join(char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08X}" for char in value)
    return f'"{escaped}"'


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else _quoted(name)
