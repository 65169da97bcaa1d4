"""Sentiment datasets in the format of MMSA: CMU-MOSI, CMU-MOSEI, CH-SIMS, CH-SIMS v2.

Source: MMSA (github.com/thuiar/MMSA). One table, `label.csv` or `meta.csv`, with the columns video_id, clip_id, text,
label, label_T, label_A, label_V, annotation, mode; the media are `Raw/<video_id>/<clip_id>.mp4`. The id of a clip is
`<video_id>_<clip_id>`. Its sentiment score lies between -3 and 3 (MOSI, MOSEI) or between -1 and 1 (SIMS); label_T,
label_A and label_V are the scores of text, audio and video alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from featurecache.clips.clip_list import Clip
from featurecache.importers import SPLITS, Importer, Request, plain_split
from featurecache.importers.findings import EMPTY_CELLS, Findings, Vocabulary, score, scores
from featurecache.importers.folders import MediaFolders, any_of, first_of
from featurecache.importers.tables import read_table

SENTIMENTS = Vocabulary("sentiment", ("negative", "neutral", "positive"))
COLUMNS = {"video": ("video_id",), "clip": ("clip_id",), "text": ("text",), "score": ("label",), "mode": ("mode",)}
OPTIONAL_COLUMNS = {
    "annotation": ("annotation",),
    "text_score": ("label_T",),
    "audio_score": ("label_A",),
    "video_score": ("label_V",),
}
TABLES = ("label.csv", "meta.csv", "*/label.csv", "*/meta.csv")
MULTICOMP = (
    "MultiComp Lab, Carnegie Mellon University; the videos are of their makers on YouTube:"
    " github.com/CMU-MultiComp-Lab/CMU-MultimodalSDK."
)
THUIAR = "THUIAR, Tsinghua University, for research only: thuiar.github.io/sims.github.io/chsims."


def read(dataset: str, max_score: float, request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every clip that has a score; rows without a score (unsupervised) are left out."""
    table = first_of(request.source, TABLES, "the table of scores")
    folders = MediaFolders(any_of(table.parent, ("Raw", "raw", "Video", "video")) or table.parent / "Raw")
    for row in read_table(table, COLUMNS, OPTIONAL_COLUMNS, request.encoding):
        number = score(row["score"])
        split = plain_split(row["mode"])
        if number is None or split not in SPLITS:
            findings.leave_out("no score" if number is None else f'mode "{row["mode"]}"', row.place)
            continue
        if abs(number) > max_score:
            findings.unknown.append(f"{row.place}: a score of {number:g}, outside ±{max_score:g}")
            findings.leave_out("score outside the scale", row.place)
            continue
        sign = "positive" if number > 0 else "negative" if number < 0 else "neutral"
        sentiment: str | None = sign
        if row["annotation"].lower() not in EMPTY_CELLS:
            sentiment = findings.label(SENTIMENTS, row["annotation"], row.place)
        if sentiment is None:
            continue
        if sentiment != sign:
            findings.note("some annotations are not the sign of their score; both are kept")
        video = row["video"]
        modality_scores = {name: row[f"{name}_score"] for name in ("text", "audio", "video")}
        yield Clip(
            id=f"{video}_{row['clip']}",
            video=folders[video].path_of(row["clip"], any_padding=True),
            text=row["text"] or None,
            split=split,
            dataset=dataset,
            labels={"sentiment": sentiment, "sentiment_score": number, **scores(**modality_scores)},
            dialogue=video,
        )


def _importer(
    name: str, title: str, dataset: str, max_score: float, num_clips: tuple[int, int, int], licence: str
) -> Importer:
    """Return the importer of one dataset; `num_clips` are the published clips of train, val and test."""
    return Importer(
        name=name,
        title=title,
        read=partial(read, dataset, max_score),
        layout=(
            "label.csv or meta.csv: video_id, clip_id, text, label, label_T, label_A, label_V, annotation, mode",
            "Raw/<video_id>/<clip_id>.mp4",
        ),
        licence=licence,
        splits=SPLITS,
        published=dict(zip(SPLITS, num_clips, strict=True)),
    )


# English, speakers on YouTube: monologues (MOSI) and single sentences (MOSEI).
CMU_MOSI = _importer("cmu-mosi", "CMU-MOSI", "cmu_mosi", 3.0, (1284, 229, 686), MULTICOMP)
CMU_MOSEI = _importer("cmu-mosei", "CMU-MOSEI", "cmu_mosei", 3.0, (16326, 1871, 4659), MULTICOMP)
# Chinese films and series, with a score per modality.
CH_SIMS = _importer("ch-sims", "CH-SIMS", "ch_sims", 1.0, (1368, 456, 457), THUIAR)
CH_SIMS_V2 = _importer("ch-sims-v2", "CH-SIMS v2 (supervised)", "ch_sims_v2_s", 1.0, (2722, 647, 1034), THUIAR)
