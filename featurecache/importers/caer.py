"""CAER: clips of television series, in a folder for each split and emotion.

Source: caer-dataset.github.io. Files are numbered anew in every folder, so ids carry both: `test_Anger_0001`.
"""

from __future__ import annotations

from collections.abc import Iterator

from featurecache.clips.clip_list import Clip
from featurecache.importers import Importer, Request, plain_split
from featurecache.importers.findings import Findings, Vocabulary
from featurecache.importers.folders import VIDEO_SUFFIXES, first_of

EMOTIONS = Vocabulary("emotion", ("anger", "disgust", "fear", "happy", "neutral", "sad", "surprise"))
FOLDERS = ("train", "validation", "test")


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every video of the folders."""
    for split in FOLDERS:
        if not request.wants(plain_split(split)):
            continue
        folder = first_of(request.source, (split, f"CAER/{split}"), f"the folder of split {split}")
        for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            emotion = found.label(EMOTIONS, inner.name, f"{split}/{inner.name}")
            if emotion is None:
                continue
            for path in sorted(inner.iterdir()):
                if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."):
                    yield Clip(
                        id=f"{split}_{inner.name}_{path.stem}",
                        video=path,
                        split=plain_split(split),
                        dataset="caer",
                        labels={"emotion": emotion},
                    )


IMPORTER = Importer(
    name="caer",
    title="CAER",
    read=read,
    layout=("{train,validation,test}/{Anger,Disgust,Fear,Happy,Neutral,Sad,Surprise}/<n>.avi",),
    licence="Yonsei University, for non-commercial research: caer-dataset.github.io.",
    splits=("train", "val", "test"),
    published={"train+val+test": 13201},
)
