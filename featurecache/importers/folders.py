"""Folders of datasets: which of several layouts is there, and where the media of a clip lie.

A folder of media is listed once. Files that an operating system leaves (`._x`, `.DS_Store`) are none of the dataset's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from featurecache.errors import DatasetError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".flv", ".mpg", ".m4v")
MAX_SHOWN_NAMES = 12


class MediaFolder:
    """The media files of one folder, by name without the ending."""

    def __init__(self, folder: Path, suffixes: Sequence[str] = VIDEO_SUFFIXES, *, deep: bool = False) -> None:
        """List `folder`, and with `deep` the folders below it; one that is not there has no files."""
        self._folder, self._suffix = folder, suffixes[0]
        self._files: dict[str, Path] = {}
        self._numbers: dict[str, Path] = {}
        for path in _media(folder, suffixes, deep):
            self._files.setdefault(path.stem, path)
            self._numbers.setdefault(_unpadded(path.stem), path)

    def __len__(self) -> int:
        return len(self._files)

    def path_of(self, stem: str, *, any_padding: bool = False) -> Path:
        """Return the file of that name or, where there is none, the path at which it is expected.

        With `any_padding`, `7`, `07` and `00007` are one name where no file has the very one.
        """
        found = self._files.get(stem) or (self._numbers.get(_unpadded(stem)) if any_padding else None)
        return found or self._folder / f"{stem}{self._suffix}"


class MediaFolders:
    """The folders of media below one root, each listed when it is first asked for."""

    def __init__(self, root: Path, suffixes: Sequence[str] = VIDEO_SUFFIXES) -> None:
        self._root, self._suffixes = root, suffixes
        self._folders: dict[str, MediaFolder] = {}

    def __getitem__(self, name: str) -> MediaFolder:
        if name not in self._folders:
            self._folders[name] = MediaFolder(self._root / name, self._suffixes)
        return self._folders[name]


def first_of(root: Path, candidates: Iterable[str], what: str) -> Path:
    """Return the first of these files or folders that is there; `*` stands for any part of a name.

    Raises:
        DatasetError: none of them is there; what is there instead is named.
    """
    candidates = list(candidates)
    found = any_of(root, candidates)
    if found is None:
        raise DatasetError(
            str(root),
            expected=f"{what}: " + " or ".join(candidates),
            got=contents(root),
            next_step="Name the folder that holds it.",
        )
    return found


def any_of(root: Path, candidates: Iterable[str]) -> Path | None:
    """As `first_of`, or None."""
    for candidate in candidates:
        if "*" not in candidate:
            if (root / candidate).exists():
                return root / candidate
        else:
            found = sorted(path for path in root.glob(candidate) if not path.name.startswith((".", "~")))
            if found:
                return found[0]
    return None


def contents(folder: Path) -> str:
    """What a folder holds, for a message."""
    if not folder.is_dir():
        return "no such folder" if not folder.exists() else "a file"
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    shown = ", ".join(names[:MAX_SHOWN_NAMES])
    return (shown + (f" and {len(names) - MAX_SHOWN_NAMES} more" if len(names) > MAX_SHOWN_NAMES else "")) or "nothing"


def _media(folder: Path, suffixes: Sequence[str], deep: bool) -> Iterable[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep else []
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield Path(place, name)


def _unpadded(stem: str) -> str:
    return stem.lstrip("0") or "0" if stem.isdigit() else stem
