"""The packaging that the sentiment sets share: one table with scores and a folder of clips for every video.

Source: MMSA (github.com/thuiar/MMSA). `label.csv` or `meta.csv`: video_id, clip_id, text, label, label_T, label_A,
label_V, annotation, mode; `Raw/<video_id>/<clip_id>.mp4`. A clip's id is `<video_id>_<clip_id>`, its score -3…3 (MOSI,
MOSEI) or -1…1 (SIMS).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from featurecache.clips.clip_list import Clip
from featurecache.importers import Importer, Request, plain_split
from featurecache.importers.findings import EMPTY_CELLS, Findings, Vocabulary, score, scores
from featurecache.importers.folders import MediaFolders, any_of, first_of
from featurecache.importers.tables import read_table

SENTIMENTS = Vocabulary("sentiment", ("negative", "neutral", "positive"))
SPLITS = ("train", "val", "test")
COLUMNS = {"video": ("video_id",), "clip": ("clip_id",), "text": ("text",), "score": ("label",), "mode": ("mode",)}
OPTIONAL = {"annotation": ("annotation",), "text_score": ("label_T",), "audio_score": ("label_A",),
            "video_score": ("label_V",)}  # fmt: skip
TABLES = ("label.csv", "meta.csv", "*/label.csv", "*/meta.csv")


def read(dataset: str, largest: float, request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every clip with a score."""
    table = first_of(request.source, TABLES, "the table of scores")
    folders = MediaFolders(any_of(table.parent, ("Raw", "raw", "Video", "video")) or table.parent / "Raw")
    for row in read_table(table, COLUMNS, OPTIONAL, request.encoding):
        number = score(row["score"])
        split = plain_split(row["mode"])
        if number is None or split not in SPLITS:
            found.leave_out("no score" if number is None else f'mode "{row["mode"]}"', row.place)
            continue
        if abs(number) > largest:
            found.unknown.append(f"{row.place}: a score of {number:g}, outside ±{largest:g}")
            found.leave_out("score outside the scale", row.place)
            continue
        sign = "positive" if number > 0 else "negative" if number < 0 else "neutral"
        sentiment = sign
        if row["annotation"].lower() not in EMPTY_CELLS:
            sentiment = found.label(SENTIMENTS, row["annotation"], row.place)
        if sentiment is None:
            continue
        if sentiment != sign:
            found.note("some annotations are not the sign of their score; both are kept")
        video = row["video"]
        parts = {name: row[f"{name}_score"] for name in ("text", "audio", "video")}
        yield Clip(
            id=f"{video}_{row['clip']}",
            video=folders[video].path_of(row["clip"], any_padding=True),
            text=row["text"] or None,
            split=split,
            dataset=dataset,
            labels={"sentiment": sentiment, "sentiment_score": number, **scores(**parts)},
            dialogue=video,
        )


def importer(
    name: str, title: str, dataset: str, largest: float, sizes: tuple[int, int, int], licence: str
) -> Importer:
    """Describe one of the sets; `sizes` are the published clips of train, val and test."""
    return Importer(
        name=name,
        title=title,
        read=partial(read, dataset, largest),
        layout=(
            "label.csv or meta.csv: video_id, clip_id, text, label, label_T, label_A, label_V, annotation, mode",
            "Raw/<video_id>/<clip_id>.mp4",
        ),
        licence=licence,
        splits=SPLITS,
        published=dict(zip(SPLITS, sizes, strict=True)),
    )
