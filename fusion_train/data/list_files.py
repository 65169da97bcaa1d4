"""The files that decide which clips a run or a sweep trains on and is scored by, and their hashes. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from featurecache.clips.clip_list import load_clips
from featurecache.files.hashing import file_sha256
from fusion_train.config import Config

CLIP_LIST = "clips"
"""Name of the clip list among the files."""


def list_hashes(config: Config, clips: str | Path) -> dict[str, str]:
    """Return the sha256 of the clip list and of the files laid over it, by their names in the configuration.

    Raises:
        ClipListError: one of them is not there.
    """
    files = {CLIP_LIST: Path(clips)}
    files |= {name: Path(clips).parent / name for name in (*config.data.exclude, *config.data.corrections)}
    if (zero_image := config.features.zero_image) is not None and config.features.absent == "visible":
        files[zero_image] = Path(zero_image) if Path(zero_image).is_file() else Path(clips).parent / zero_image
    for path in files.values():
        if not path.is_file():
            load_clips(path)  # says what is wrong
    return {name: file_sha256(path) for name, path in files.items()}
