"""MER2024: the labelled clips, and those of the SEMI track whose labels were published after the challenge.

Source: the MER 2024 challenge. How SEMI labels lie beside the training labels differs between copies: a table named
`*semi*.csv`, a column `split` or `mode`, or a folder of SEMI alone, which its 1169 rows tell.
"""

from __future__ import annotations

from collections.abc import Iterator

from featurecache.clips.clip_list import Clip
from featurecache.importers import Importer, Option, Request
from featurecache.importers.findings import Findings, scores
from featurecache.importers.folders import MediaFolder, any_of, first_of
from featurecache.importers.mer2023 import EMOTIONS, LANGUAGE, LICENCE, NAME, subtitles
from featurecache.importers.tables import read_table

COLUMNS = {"name": NAME, "emotion": ("discrete", "emotion")}
OPTIONAL = {"valence": ("valence",), "split": ("split", "mode", "mer2024_mode")}
SEMI = {"sad": 317, "happy": 246, "neutral": 201, "angry": 163, "worried": 159, "surprise": 83}
NUM_SEMI = sum(SEMI.values())
SPLIT_NAMES = {"test_semi": "semi", "test-semi": "semi"}


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield the clips of every table of labels."""
    said = subtitles(request.source, request, found)
    main = first_of(request.source, ("label-disdim.csv", "label*disdim*.csv", "*semi*.csv"), "the table of labels")
    tables = {main} | {path for path in [any_of(request.source, ("*semi*.csv",))] if path}
    folder = any_of(request.source, ("video-labeled", "video*labeled*", "video", "videos"))
    videos = MediaFolder(folder or request.source / "video-labeled")
    for table in sorted(tables):
        rows = read_table(table, COLUMNS, OPTIONAL, request.encoding)
        whole = "semi" if "semi" in table.stem.lower() or len(rows) == NUM_SEMI else "train"
        whole = request.options["split"] or whole
        for row in rows:
            emotion = found.label(EMOTIONS, row["emotion"], row.place)
            if emotion is not None:
                split = row["split"].lower() or whole
                yield Clip(
                    id=row["name"],
                    video=videos.path_of(row["name"]),
                    text=said.get(row["name"]) or None,
                    split=SPLIT_NAMES.get(split, split),
                    dataset="mer2024",
                    labels={"emotion": emotion, **scores(valence=row["valence"])},
                )


IMPORTER = Importer(
    name="mer2024",
    title="MER2024",
    read=read,
    layout=(
        "label-disdim.csv: name, discrete, valence",
        "*semi*.csv: the same of the SEMI track",
        "video-labeled/<name>.mp4",
        "any table of name, chinese, english",
    ),
    licence=LICENCE,
    published={"semi": NUM_SEMI},
    published_labels={"semi": SEMI},
    options={"language": LANGUAGE, "split": Option("the split that label-disdim.csv is, where no column says it")},
)
