"""Media files by their endings: the files of a folder, and the clip that one file is."""

from __future__ import annotations

import os
from pathlib import Path

from featurecache.clips.clip_list import Clip

VIDEO_SUFFIXES = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")
AUDIO_SUFFIXES = (".aac", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MEDIA_SUFFIXES = (*VIDEO_SUFFIXES, *AUDIO_SUFFIXES, *IMAGE_SUFFIXES)


def media_kind(path: Path) -> str:
    """Return the key of a clip under which a file stands: `audio`, `image`, or `video` for all other endings."""
    suffix = path.suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "audio" if suffix in AUDIO_SUFFIXES else "video"


def file_clip(path: Path, clip_id: str, text: str | None = None) -> Clip:
    """Return the clip of one media file."""
    kind = media_kind(path)
    return Clip(
        id=clip_id,
        text=text,
        video=path if kind == "video" else None,
        audio=path if kind == "audio" else None,
        image=path if kind == "image" else None,
    )


def media_files(folder: Path) -> list[Path]:
    """Return the media files in a folder and the folders below it, sorted by path; hidden ones are skipped."""
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [
            Path(root, name)
            for name in names
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in MEDIA_SUFFIXES
        ]
    return sorted(path for path in files if path.is_file())
