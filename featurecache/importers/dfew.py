"""DFEW: clips of films with one of seven emotions, in five folds.

Source: dfew-dataset.github.io, the single-labelled part. Tables number the emotions from 1 to 7. Clips are numbered,
with zeros before the number in some copies and none in others: here every id has five digits.
"""

from __future__ import annotations

from collections.abc import Iterator

from featurecache.clips.clip_list import Clip
from featurecache.importers import Importer, Request
from featurecache.importers.findings import Findings, Vocabulary
from featurecache.importers.folders import MediaFolder, any_of, first_of
from featurecache.importers.tables import read_table

LABELS = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
EMOTIONS = Vocabulary("emotion", LABELS, {str(number): label for number, label in enumerate(LABELS, start=1)})
COLUMNS = {"name": ("video_name", "video"), "label": ("label",)}
ID_DIGITS = 5


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield the clips of one fold."""
    folder = any_of(request.source, ("Clip/original", "clip/original", "Clip", "original"))
    videos = MediaFolder(folder or request.source / "Clip" / "original")
    found.note(f"fold {request.fold} of 5 (--fold)")
    for split in ("train", "test"):
        if not request.wants(split):
            continue
        places = [f"{split}(single-labeled)", f"{split}(single_labeled)", f"{split}*single*labeled*"]
        candidates = [
            f"{root}{place}/set_{request.fold}.csv" for root in ("EmoLabel_DataSplit/", "") for place in places
        ]
        table = first_of(request.source, candidates, f"the table of split {split}")
        for row in read_table(table, COLUMNS, encoding=request.encoding):
            name = row["name"].rsplit(".", 1)[0]
            emotion = found.label(EMOTIONS, row["label"], row.place)
            if emotion is not None:
                yield Clip(
                    id=name.zfill(ID_DIGITS),
                    video=videos.path_of(name, any_padding=True),
                    split=split,
                    dataset="dfew",
                    labels={"emotion": emotion},
                )


IMPORTER = Importer(
    name="dfew",
    title="DFEW",
    read=read,
    layout=(
        "EmoLabel_DataSplit/{train,test}(single-labeled)/set_{1..5}.csv: video_name, label",
        "Clip/original/<n>.mp4",
    ),
    licence="Southeast University, for academic research after a signed agreement: dfew-dataset.github.io.",
    splits=("train", "test"),
    folds=5,
    published={"train+test": 11697},
)
