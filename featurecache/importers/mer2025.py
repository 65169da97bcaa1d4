"""MER2025: OV-MERD, OV-MERD+ and MER-Caption+, clips with any number of words for what is felt, and reasons.

Source: the MER 2025 challenge and MER-UniBench. Tables hold `name, openset` (a list as Python writes it; an empty one
means neutral), `name, reason` and `name, english`; which table is of which set, its file name tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Request
from featurecache.importers.findings import Findings, list_of, texts
from featurecache.importers.folders import MediaFolder, any_of, contents
from featurecache.importers.mer2023 import LANGUAGE, LICENCE, NAME, subtitles
from featurecache.importers.tables import has_columns, read_table, tables_in

OPENSET = {"name": NAME, "openset": ("openset",)}
REASON = {"name": NAME, "reason": ("reason",)}
MARKS = {"ov-merd": "ovmerd", "ov-merd-plus": "ovmerdplus", "mer-caption-plus": "mercaptionplus"}
"""What the name of a set's tables holds, without - and _, with "plus" for +."""


def read(name: str, split: str, request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every clip with a list of words or a reason."""
    openset = {
        row["name"]: row
        for table in _tables(name, OPENSET, request)
        for row in read_table(table, OPENSET, encoding=request.encoding)
    }
    reasons = {
        row["name"]: row["reason"]
        for table in _tables(name, REASON, request)
        for row in read_table(table, REASON, encoding=request.encoding)
    }
    if not openset and not reasons:
        raise DatasetError(
            str(request.source), expected="a table of name, openset or of name, reason", got=contents(request.source)
        )
    said = subtitles(request.source, request, found)
    videos = MediaFolder(any_of(request.source, ("video", "videos", "Video")) or request.source / "video")
    for clip_id in dict.fromkeys([*openset, *reasons]):
        labels = {"openset": list_of(openset[clip_id]["openset"])} if clip_id in openset else {}
        if labels.get("openset") == []:
            found.note("clips whose list of words is empty are neutral")
        yield Clip(
            id=clip_id,
            video=videos.path_of(clip_id),
            text=said.get(clip_id) or None,
            split=split,
            dataset=name.replace("-", "_"),
            labels=labels,
            responses=texts(reason=reasons.get(clip_id)),
        )


def _tables(name: str, columns: dict[str, tuple[str, ...]], request: Request) -> list[Path]:
    """Tables with these columns: those whose names hold the set's own, or else those that name no set."""
    tables = [table for table in tables_in(request.source) if has_columns(table, columns, request.encoding)]
    named = {table: _set_of(table) for table in tables}
    mine = [table for table, owner in named.items() if owner == name]
    return mine or [table for table, owner in named.items() if owner is None]


def _set_of(table: Path) -> str | None:
    plain = table.stem.lower().replace("-", "").replace("_", "").replace("+", "plus")
    for name in ("mer-caption-plus", "ov-merd-plus", "ov-merd"):
        if MARKS[name] in plain:
            return name
    return None


def _importer(name: str, title: str, split: str, published: dict[str, int]) -> Importer:
    mark = MARKS[name]
    return Importer(
        name=name,
        title=title,
        read=partial(read, name, split),
        layout=(
            f"*{mark}*.csv, or any table that names no set: name, openset",
            f"*{mark}*.csv, or any table that names no set: name, reason",
            "any table of name, english",
            "video/<name>.mp4",
        ),
        licence=LICENCE,
        splits=(split,),
        published=published,
        options={"language": LANGUAGE},
    )


OV_MERD = _importer("ov-merd", "OV-MERD", "train", {})
OV_MERD_PLUS = _importer("ov-merd-plus", "OV-MERD+", "test", {"test": 532})
MER_CAPTION_PLUS = _importer("mer-caption-plus", "MER-Caption+", "train", {})
