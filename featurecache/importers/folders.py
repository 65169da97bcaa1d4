"""Folders of datasets: choose among several layouts, and find the media file of a clip.

A folder of media is listed once. Files that an operating system creates (`._x`, `.DS_Store`) are skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from featurecache.errors import DatasetError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".flv", ".mpg", ".m4v")
MAX_SHOWN_NAMES = 12


class MediaFolder:
    """The media files of one folder, by file name without the ending."""

    def __init__(self, folder: Path, suffixes: Sequence[str] = VIDEO_SUFFIXES, *, deep: bool = False) -> None:
        """List `folder` and, with `deep`, the folders below it; a folder that does not exist has no files."""
        self._folder, self._suffix = folder, suffixes[0]
        self._files: dict[str, Path] = {}
        self._files_by_number: dict[str, Path] = {}
        for path in _media(folder, suffixes, deep):
            self._files.setdefault(path.stem, path)
            self._files_by_number.setdefault(_unpadded(path.stem), path)

    def __len__(self) -> int:
        return len(self._files)

    def path_of(self, stem: str, *, any_padding: bool = False) -> Path:
        """Return the file of that name; if there is none, the path where it is expected.

        With `any_padding`, a file whose number has other leading zeros (`7`, `07`, `00007`) also counts.
        """
        path = self._files.get(stem) or (self._files_by_number.get(_unpadded(stem)) if any_padding else None)
        return path or self._folder / f"{stem}{self._suffix}"


class MediaFolders:
    """The folders of media below one root; each is listed at its first use."""

    def __init__(self, root: Path, suffixes: Sequence[str] = VIDEO_SUFFIXES) -> None:
        self._root, self._suffixes = root, suffixes
        self._folders: dict[str, MediaFolder] = {}

    def __getitem__(self, name: str) -> MediaFolder:
        if name not in self._folders:
            self._folders[name] = MediaFolder(self._root / name, self._suffixes)
        return self._folders[name]


def first_of(root: Path, candidates: Iterable[str], what: str) -> Path:
    """Return the first of these files or folders that exists; `*` matches any part of a name.

    Raises:
        DatasetError: none of them exists; the message lists the contents of `root`.
    """
    candidates = list(candidates)
    path = any_of(root, candidates)
    if path is None:
        raise DatasetError(
            str(root),
            expected=f"{what}: " + " or ".join(candidates),
            got=contents(root),
            next_step="Name the folder that holds it.",
        )
    return path


def any_of(root: Path, candidates: Iterable[str]) -> Path | None:
    """Return the first of these files or folders that exists, None if none does; `*` as in `first_of`."""
    for candidate in candidates:
        if "*" not in candidate:
            if (root / candidate).exists():
                return root / candidate
        else:
            matches = sorted(path for path in root.glob(candidate) if not path.name.startswith((".", "~")))
            if matches:
                return matches[0]
    return None


def contents(folder: Path) -> str:
    """Return the names of the entries of a folder, for a message."""
    if not folder.is_dir():
        return "no such folder" if not folder.exists() else "a file"
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())
    shown = ", ".join(names[:MAX_SHOWN_NAMES])
    return (shown + (f" and {len(names) - MAX_SHOWN_NAMES} more" if len(names) > MAX_SHOWN_NAMES else "")) or "nothing"


def _media(folder: Path, suffixes: Sequence[str], deep: bool) -> Iterable[Path]:
    """Yield the media files of a folder, sorted; hidden files and folders are skipped."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep else []
        for name in sorted(names):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield Path(root, name)


def _unpadded(stem: str) -> str:
    return stem.lstrip("0") or "0" if stem.isdigit() else stem
