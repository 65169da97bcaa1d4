"""MER challenges: MER2023, MER2024, EMER, MERR, and OV-MERD, OV-MERD+ and MER-Caption+ of MER2025.

Sources: the MER 2023, 2024 and 2025 challenges, MER-UniBench, AffectGPT (arXiv 2306.15401) for EMER, Emotion-LLaMA
(NeurIPS 2024) for MERR. The clips come from Chinese films and series. Subtitles are in a separate table whose file name
varies.

    MER2023              six emotions and a valence; split test3 has no valence
    MER2024              labelled clips, and the SEMI track, whose labels were published after the challenge
    EMER                 100 clips of MER2023, each with a rationale that people wrote
    MERR                 unlabelled clips of MER2023 that models annotated: text files with lines `video_name n_frames
                         emotion valence`, and JSON objects of clip name -> descriptions. The rationale is
                         `smp_reason_caption` (fine-grained) or `caption` (coarse); fine-grained is preferred
    OV-MERD, OV-MERD+,   any number of emotion words per clip (column `openset`, a list as Python writes it; an empty
    MER-Caption+         list means neutral) and rationales; the file name of a table says which dataset it belongs to
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Option, Request
from featurecache.importers.findings import Findings, Vocabulary, list_of, scores, texts
from featurecache.importers.folders import MediaFolder, any_of, contents, first_of
from featurecache.importers.tables import Columns, Row, has_columns, read_json, read_lines, read_table, tables_in

LICENCE = (
    "The MER challenge organisers (Institute of Automation, CAS) give access against a signed EULA,"
    " for research only: huggingface.co/MERChallenge."
)
EMOTIONS = Vocabulary(
    "emotion",
    ("neutral", "angry", "happy", "sad", "worried", "surprise"),
    {"anger": "angry", "happiness": "happy", "sadness": "sad", "worry": "worried", "surprised": "surprise"},
)
NAME = ("name", "names", "video_name", "video_id")
EMOTION_COLUMNS = {"name": NAME, "emotion": ("discrete", "emotion")}
VALENCE_COLUMN = {"valence": ("valence",)}
SUBTITLES: dict[str, Columns] = {
    "english": {"name": NAME, "text": ("english", "subtitle_eng", "sentence")},
    "chinese": {"name": NAME, "text": ("chinese", "subtitle_chi", "sentence")},
}
LANGUAGE = Option("language of the subtitles", "english", ("english", "chinese"))


def subtitles(request: Request, findings: Findings) -> dict[str, str]:
    """Return clip name -> subtitle, from the first table that has subtitles in the requested language."""
    columns = SUBTITLES[request.options["language"]]
    for table in tables_in(request.source):
        if has_columns(table, columns, request.encoding):
            rows = read_table(table, columns, encoding=request.encoding)
            return {row["name"]: row["text"] for row in rows}
    findings.note(f"no table of subtitles in {request.options['language']} ({' or '.join(columns['text'])})")
    return {}


def _labelled_clips(
    rows: Iterable[Row], videos: MediaFolder, text_of: Mapping[str, str], findings: Findings
) -> Iterator[Clip]:
    """Yield the clips of rows that have an emotion, with valence and split where the table has them."""
    for row in rows:
        emotion = findings.label(EMOTIONS, row["emotion"], row.place)
        if emotion is not None:
            yield Clip(
                id=row["name"],
                video=videos.path_of(row["name"]),
                text=text_of.get(row["name"]) or None,
                split=row["split"].lower() or None,
                labels={"emotion": emotion, **scores(valence=row["valence"])},
            )


# MER2023

MER2023_SPLITS = ("train", "test1", "test2", "test3")


def read_mer2023(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the clips of every split; each split has its own table and its own folder."""
    text_of = subtitles(request, findings)
    for split in MER2023_SPLITS:
        if not request.wants(split):
            continue
        table = first_of(request.source, (f"{split}-label.csv", f"{split}_label.csv"), f"labels of split {split}")
        folder = any_of(request.source, (split, f"test/{split}", f"video/{split}")) or request.source / split
        videos = MediaFolder(folder)
        rows = read_table(table, EMOTION_COLUMNS, VALENCE_COLUMN, request.encoding)
        for clip in _labelled_clips(rows, videos, text_of, findings):
            yield replace(clip, split=split, dataset="mer2023")


MER2023 = Importer(
    name="mer2023",
    title="MER2023",
    read=read_mer2023,
    layout=(
        "{train,test1,test2,test3}-label.csv: name, discrete, valence (test3 without)",
        "{train,test1,test2,test3}/<name>.{avi,mp4}",
        "any table of name, chinese, english",
    ),
    licence=LICENCE,
    splits=MER2023_SPLITS,
    published={"train": 3373, "test1": 411, "test2": 412, "test3": 834},
    options={"language": LANGUAGE},
)

# MER2024

SEMI_LABELS = {"sad": 317, "happy": 246, "neutral": 201, "angry": 163, "worried": 159, "surprise": 83}
NUM_SEMI = sum(SEMI_LABELS.values())
SPLIT_COLUMN = {"split": ("split", "mode", "mer2024_mode")}
SPLIT_NAMES = {"test_semi": "semi", "test-semi": "semi"}


def read_mer2024(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the clips of every table of labels.

    Copies of the dataset mark the SEMI track in different ways: a table named `*semi*.csv`, a column `split` or `mode`,
    or a folder that holds SEMI only, recognised by its 1169 rows.
    """
    text_of = subtitles(request, findings)
    main_table = first_of(
        request.source, ("label-disdim.csv", "label*disdim*.csv", "*semi*.csv"), "the table of labels"
    )
    semi_table = any_of(request.source, ("*semi*.csv",))
    folder = any_of(request.source, ("video-labeled", "video*labeled*", "video", "videos"))
    videos = MediaFolder(folder or request.source / "video-labeled")
    for table in sorted({main_table} | ({semi_table} if semi_table else set())):
        rows = read_table(table, EMOTION_COLUMNS, {**VALENCE_COLUMN, **SPLIT_COLUMN}, request.encoding)
        table_split = "semi" if "semi" in table.stem.lower() or len(rows) == NUM_SEMI else "train"
        table_split = request.options["split"] or table_split
        for clip in _labelled_clips(rows, videos, text_of, findings):
            split = clip.split or table_split
            yield replace(clip, split=SPLIT_NAMES.get(split, split), dataset="mer2024")


MER2024 = Importer(
    name="mer2024",
    title="MER2024",
    read=read_mer2024,
    layout=(
        "label-disdim.csv: name, discrete, valence",
        "*semi*.csv: the same of the SEMI track",
        "video-labeled/<name>.mp4",
        "any table of name, chinese, english",
    ),
    licence=LICENCE,
    published={"semi": NUM_SEMI},
    published_labels={"semi": SEMI_LABELS},
    options={"language": LANGUAGE, "split": Option("the split that label-disdim.csv is, where no column says it")},
)

# EMER

EMER_COLUMNS = {
    "name": ("names", "name"),
    "emotions": ("emotions", "emotion", "eng_emotions", "chi_emotions"),
    "subtitles": ("subtitles", "subtitle", "eng_subtitles", "chi_subtitles"),
    "reasons": ("reasons", "reason", "eng_reasons", "chi_reasons"),
}
EMER_TABLES = {"english": ("gt-eng.csv", "*eng*.csv", "gt*.csv", "*.csv"), "chinese": ("gt-chi.csv", "*chi*.csv")}


def read_emer(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every clip of the table."""
    table = first_of(request.source, EMER_TABLES[request.options["language"]], "the table of reasons")
    folder = any_of(request.source, ("video", "videos", "clips", "train"))
    videos = MediaFolder(folder or request.source, deep=True)
    for row in read_table(table, EMER_COLUMNS, encoding=request.encoding):
        yield Clip(
            id=row["name"],
            video=videos.path_of(row["name"]),
            text=row["subtitles"] or None,
            split="test",
            dataset="emer",
            labels={"openset": list_of(row["emotions"])},
            responses=texts(reason=row["reasons"]),
        )


EMER = Importer(
    name="emer",
    title="EMER",
    read=read_emer,
    layout=("gt-eng.csv, or any table of names, emotions, subtitles, reasons", "video/<name>.{mp4,avi}"),
    licence=LICENCE,
    splits=("test",),
    published={"test": 100},
    options={"language": Option("language of the table", "english", ("english", "chinese"))},
)

# MER2025: OV-MERD, OV-MERD+, MER-Caption+

OPENSET_COLUMNS = {"name": NAME, "openset": ("openset",)}
REASON_COLUMNS = {"name": NAME, "reason": ("reason",)}
FILE_MARKS = {"mer-caption-plus": "mercaptionplus", "ov-merd-plus": "ovmerdplus", "ov-merd": "ovmerd"}
"""Text in the file names of a dataset's tables, without - and _ and with "plus" for +; longer marks come first."""


def read_mer2025(name: str, split: str, request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every clip that has emotion words or a rationale."""
    openset_cells = _cells(name, OPENSET_COLUMNS, "openset", request)
    reasons = _cells(name, REASON_COLUMNS, "reason", request)
    if not openset_cells and not reasons:
        raise DatasetError(
            str(request.source), expected="a table of name, openset or of name, reason", got=contents(request.source)
        )
    text_of = subtitles(request, findings)
    videos = MediaFolder(any_of(request.source, ("video", "videos", "Video")) or request.source / "video")
    for clip_id in dict.fromkeys([*openset_cells, *reasons]):
        labels = {"openset": list_of(openset_cells[clip_id])} if clip_id in openset_cells else {}
        if labels.get("openset") == []:
            findings.note("clips whose list of words is empty are neutral")
        yield Clip(
            id=clip_id,
            video=videos.path_of(clip_id),
            text=text_of.get(clip_id) or None,
            split=split,
            dataset=name.replace("-", "_"),
            labels=labels,
            responses=texts(reason=reasons.get(clip_id)),
        )


def _cells(name: str, columns: dict[str, tuple[str, ...]], column: str, request: Request) -> dict[str, str]:
    """Return clip name -> cell of `column`, over the tables of one dataset.

    Tables whose file names hold the mark of the dataset count; if there are none, tables without any mark count.
    """
    tables = [table for table in tables_in(request.source) if has_columns(table, columns, request.encoding)]
    dataset_of = {table: _dataset_of(table) for table in tables}
    tables = [table for table in tables if dataset_of[table] == name] or [
        table for table in tables if dataset_of[table] is None
    ]
    return {
        row["name"]: row[column] for table in tables for row in read_table(table, columns, encoding=request.encoding)
    }


def _dataset_of(table: Path) -> str | None:
    plain = table.stem.lower().replace("-", "").replace("_", "").replace("+", "plus")
    return next((name for name, mark in FILE_MARKS.items() if mark in plain), None)


def _mer2025(name: str, title: str, split: str, published: dict[str, int]) -> Importer:
    mark = FILE_MARKS[name]
    return Importer(
        name=name,
        title=title,
        read=partial(read_mer2025, name, split),
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


OV_MERD = _mer2025("ov-merd", "OV-MERD", "train", {})
OV_MERD_PLUS = _mer2025("ov-merd-plus", "OV-MERD+", "test", {"test": 532})
MER_CAPTION_PLUS = _mer2025("mer-caption-plus", "MER-Caption+", "train", {})


# MERR

MERR_EMOTIONS = Vocabulary(
    "emotion",
    (*EMOTIONS.labels, "fear", "contempt", "doubt", "disgust"),
    {**EMOTIONS.aliases, "fearful": "fear", "disgusted": "disgust"},
)
LABEL_FILES = ("*fine*grained*.txt", "*coarse*grained*.txt", "*relative*.txt", "MERR*.txt")
REASON_KEYS = ("smp_reason_caption", "reason_caption", "caption")
WORDS_PER_LINE = 4


def read_merr(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every clip that the text files or the JSON files name."""
    descriptions = _merr_descriptions(request)
    label_files = [path for pattern in LABEL_FILES if (path := any_of(request.source, (pattern, f"*/{pattern}")))]
    labelled: dict[str, tuple[str, list[str]]] = {}
    for path in dict.fromkeys(label_files):
        for place, line in read_lines(path, request.encoding):
            words = line.split()
            if len(words) < WORDS_PER_LINE - 1:
                got = f"{place}: {line[:60]}"
                raise DatasetError(str(path), expected="lines of video_name n_frames emotion valence", got=got)
            labelled.setdefault(words[0], (place, words))
    if not descriptions and not labelled:
        raise DatasetError(
            str(request.source),
            expected="MERR_*_grained.json or " + ", ".join(LABEL_FILES),
            got=contents(request.source),
        )
    text_of = subtitles(request, findings)
    folder = any_of(request.source, ("video", "videos", "clips"))
    videos = MediaFolder(folder or request.source, deep=True)
    for clip_id in dict.fromkeys([*labelled, *descriptions]):
        description = descriptions.get(clip_id, {})
        labels = {}
        if clip_id in labelled:
            place, words = labelled[clip_id]
            emotion = findings.label(MERR_EMOTIONS, words[2], place)
            if emotion is None:
                continue
            labels = {"emotion": emotion, **scores(valence=words[3] if len(words) >= WORDS_PER_LINE else None)}
        reason = next((str(description[key]) for key in REASON_KEYS if description.get(key)), None)
        peak = str(description.get("peak_index", ""))
        yield Clip(
            id=clip_id,
            video=videos.path_of(clip_id),
            text=str(description.get("text") or "") or text_of.get(clip_id) or None,
            split="train",
            dataset="merr",
            labels=labels,
            responses=texts(reason=reason),
            peak_frame=int(peak) if peak.isdigit() else None,
        )


def _merr_descriptions(request: Request) -> dict[str, Mapping[str, Any]]:
    """Return clip name -> descriptions, fine-grained before coarse."""
    descriptions: dict[str, Mapping[str, Any]] = {}
    for pattern in ("*fine*grained*.json", "*coarse*grained*.json"):
        path = any_of(request.source, (pattern, f"*/{pattern}"))
        if path is None:
            continue
        for clip_id, description in read_json(path, dict, request.encoding).items():
            if not isinstance(description, dict):
                raise DatasetError(str(path), expected="clip name -> an object", got=f"{clip_id}: {description!r:.60}")
            descriptions.setdefault(clip_id, description)
    return descriptions


MERR = Importer(
    name="merr",
    title="MERR",
    read=read_merr,
    layout=(
        "MERR_{fine,coarse}_grained.json: clip name -> smp_reason_caption or caption, peak_index, text",
        "MERR_{fine,coarse}_grained.txt: lines of video_name n_frames emotion valence",
        "video/<name>.{mp4,avi}",
    ),
    licence="The annotations are of the authors of Emotion-LLaMA (github.com/ZebangCheng/Emotion-LLaMA); the clips are"
    " those of MER2023. " + LICENCE,
    splits=("train",),
    options={"language": LANGUAGE},
)
