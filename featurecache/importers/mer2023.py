"""MER2023: clips of Chinese films and series with one of six emotions and a valence.

Source: the MER 2023 challenge. `test3` has no valence. Subtitles stand in a table of their own, whose name varies.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.importers import Importer, Option, Request
from featurecache.importers.findings import Findings, Vocabulary, scores
from featurecache.importers.folders import MediaFolder, any_of, first_of
from featurecache.importers.tables import Columns, has_columns, read_table, tables_in

SPLITS = ("train", "test1", "test2", "test3")
EMOTIONS = Vocabulary(
    "emotion",
    ("neutral", "angry", "happy", "sad", "worried", "surprise"),
    {"anger": "angry", "happiness": "happy", "sadness": "sad", "worry": "worried", "surprised": "surprise"},
)
NAME = ("name", "names", "video_name", "video_id")
SUBTITLES: dict[str, Columns] = {
    "english": {"name": NAME, "text": ("english", "subtitle_eng", "sentence")},
    "chinese": {"name": NAME, "text": ("chinese", "subtitle_chi", "sentence")},
}
LANGUAGE = Option("language of the subtitles", "english", ("english", "chinese"))
LICENCE = (
    "The MER challenge organisers (Institute of Automation, CAS) give access against a signed EULA,"
    " for research only: huggingface.co/MERChallenge."
)


def subtitles(folder: Path, request: Request, found: Findings) -> dict[str, str]:
    """Return clip name -> what is said, of the first table that has subtitles in the language asked for."""
    columns = SUBTITLES[request.options["language"]]
    for table in tables_in(folder):
        if has_columns(table, columns, request.encoding):
            rows = read_table(table, columns, encoding=request.encoding)
            return {row["name"]: row["text"] for row in rows}
    found.note(f"no table of subtitles in {request.options['language']} ({' or '.join(columns['text'])})")
    return {}


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield the clips of every split."""
    said = subtitles(request.source, request, found)
    for split in SPLITS:
        if not request.wants(split):
            continue
        table = first_of(request.source, (f"{split}-label.csv", f"{split}_label.csv"), f"labels of split {split}")
        folder = any_of(request.source, (split, f"test/{split}", f"video/{split}")) or request.source / split
        videos = MediaFolder(folder)
        columns = {"name": NAME, "emotion": ("discrete", "emotion")}
        for row in read_table(table, columns, {"valence": ("valence",)}, request.encoding):
            emotion = found.label(EMOTIONS, row["emotion"], row.place)
            if emotion is not None:
                yield Clip(
                    id=row["name"],
                    video=videos.path_of(row["name"]),
                    text=said.get(row["name"]) or None,
                    split=split,
                    dataset="mer2023",
                    labels={"emotion": emotion, **scores(valence=row["valence"])},
                )


IMPORTER = Importer(
    name="mer2023",
    title="MER2023",
    read=read,
    layout=(
        "{train,test1,test2,test3}-label.csv: name, discrete, valence (test3 without)",
        "{train,test1,test2,test3}/<name>.{avi,mp4}",
        "any table of name, chinese, english",
    ),
    licence=LICENCE,
    splits=SPLITS,
    published={"train": 3373, "test1": 411, "test2": 412, "test3": 834},
    options={"language": LANGUAGE},
)
