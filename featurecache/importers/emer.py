"""EMER: a hundred clips of MER2023 with a reason for what is felt, written by people.

Source: AffectGPT (arXiv 2306.15401), `gt-eng.csv` or `gt-chi.csv`. The clips themselves are those of MER2023.
"""

from __future__ import annotations

from collections.abc import Iterator

from featurecache.clips.clip_list import Clip
from featurecache.importers import Importer, Option, Request
from featurecache.importers.findings import Findings, list_of, texts
from featurecache.importers.folders import MediaFolder, any_of, first_of
from featurecache.importers.mer2023 import LICENCE
from featurecache.importers.tables import read_table

COLUMNS = {
    "name": ("names", "name"),
    "emotions": ("emotions", "emotion", "eng_emotions", "chi_emotions"),
    "subtitles": ("subtitles", "subtitle", "eng_subtitles", "chi_subtitles"),
    "reasons": ("reasons", "reason", "eng_reasons", "chi_reasons"),
}
TABLES = {"english": ("gt-eng.csv", "*eng*.csv", "gt*.csv", "*.csv"), "chinese": ("gt-chi.csv", "*chi*.csv")}


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every clip of the table."""
    table = first_of(request.source, TABLES[request.options["language"]], "the table of reasons")
    folder = any_of(request.source, ("video", "videos", "clips", "train"))
    videos = MediaFolder(folder or request.source, deep=True)
    for row in read_table(table, COLUMNS, encoding=request.encoding):
        yield Clip(
            id=row["name"],
            video=videos.path_of(row["name"]),
            text=row["subtitles"] or None,
            split="test",
            dataset="emer",
            labels={"openset": list_of(row["emotions"])},
            responses=texts(reason=row["reasons"]),
        )


IMPORTER = Importer(
    name="emer",
    title="EMER",
    read=read,
    layout=("gt-eng.csv, or any table of names, emotions, subtitles, reasons", "video/<name>.{mp4,avi}"),
    licence=LICENCE,
    splits=("test",),
    published={"test": 100},
    options={"language": Option("language of the table", "english", ("english", "chinese"))},
)
