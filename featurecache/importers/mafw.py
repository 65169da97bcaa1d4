"""MAFW: clips in the wild with one of eleven emotions, or with several of them, in five folds.

Source: mafw-database.github.io. Lines `03747.mp4 anger` and, of the compound set, `20045.mp4 anger_disgust_anxiety`;
files with captions have them after the label.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Option, Request
from featurecache.importers.findings import Findings, Vocabulary
from featurecache.importers.folders import MediaFolder, any_of, first_of
from featurecache.importers.tables import read_lines

LABELS = (
    "anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt", "anxiety", "helplessness",
    "disappointment",
)  # fmt: skip
EMOTIONS = Vocabulary("emotion", LABELS)
MULTIPLE = Vocabulary("multi-label", LABELS)
LINE = re.compile(r"(\S+\.\w{3,4})\s+([A-Za-z_]+)")


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield the clips of one fold."""
    folder = any_of(request.source, ("data/clips", "clips", "data"))
    videos = MediaFolder(folder or request.source / "data" / "clips")
    chosen = request.options["set"]
    found.note(f"the {chosen} set, fold {request.fold} of 5 (--option set=…, --fold)")
    for split in ("train", "test"):
        if not request.wants(split):
            continue
        kinds = ("no_caption", "with_caption")
        roots = ("Train & Test Set/", "*Test*Set*/", "")
        candidates = [f"{root}{chosen}/{kind}/set_{request.fold}/{split}.txt" for root in roots for kind in kinds]
        lines = first_of(request.source, candidates, f"the lines of split {split}")
        for place, line in read_lines(lines, request.encoding):
            match = LINE.match(line)
            if not match:
                raise DatasetError(str(lines), expected="lines such as 03747.mp4 anger", got=f"{place}: {line[:60]}")
            name, label = match[1].rsplit(".", 1)[0], match[2]
            if chosen == "compound":
                several = found.labels(MULTIPLE, label.split("_"), place)
                labels = several and {"multi-label": several}
            else:
                emotion = found.label(EMOTIONS, label, place)
                labels = emotion and {"emotion": emotion}
            if labels:
                video = videos.path_of(name, any_padding=True)
                yield Clip(id=name, video=video, split=split, dataset="mafw", labels=labels)


IMPORTER = Importer(
    name="mafw",
    title="MAFW",
    read=read,
    layout=(
        "Train & Test Set/{single,compound}/{no_caption,with_caption}/set_{1..5}/{train,test}.txt: file, label",
        "data/clips/<n>.mp4",
    ),
    licence="China University of Geosciences (Wuhan), for non-commercial research after a signed agreement:"
    " mafw-database.github.io/MAFW.",
    splits=("train", "test"),
    folds=5,
    options={"set": Option("one emotion a clip, or several", "single", ("single", "compound"))},
)
