"""What the command line names -> clips to ask about: media files, folders of them, clip lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featurecache.clips.clip_list import Clip, ClipList, load_clips
from featurecache.errors import ClipListError

LISTS = (".jsonl", ".csv", ".parquet")
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
SOUNDS = (".aac", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma")
FILMS = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


def collect_clips(paths: Sequence[Path], *, split: str | None = None, text: str | None = None) -> ClipList:
    """Clips of every path, in order; the id of a file is its name, in a folder its path inside it.

    Args:
        split: of the clip lists; None takes every clip.
        text: what is said in the clips, where no list says it.

    Raises:
        ClipListError: a path that is not there, a folder without media, a bad list, or one id twice.
    """
    found: list[Clip] = []
    for path in paths:
        if path.suffix.lower() in LISTS:
            listed = load_clips(path)
            found += listed if split is None else listed.in_split(split)
        elif path.is_dir():
            found += _clips_in(path, text)
        elif path.is_file():
            found.append(_clip(path, path.name, text))
        else:
            raise ClipListError(str(path), expected="a media file, a folder or a clip list", got="no such file")
    return ClipList(found)


def _clips_in(folder: Path, text: str | None) -> list[Clip]:
    known = (*FILMS, *SOUNDS, *IMAGES)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not files:
        raise ClipListError(str(folder), expected="media files (" + ", ".join(known) + ")", got="none in this folder")
    return [_clip(path, path.relative_to(folder).as_posix(), text) for path in files]


def _clip(path: Path, clip_id: str, text: str | None) -> Clip:
    kind = {**dict.fromkeys(IMAGES, "image"), **dict.fromkeys(SOUNDS, "audio")}.get(path.suffix.lower(), "video")
    return Clip(id=clip_id, text=text, **{kind: path})
