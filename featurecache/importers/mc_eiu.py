"""MC-EIU: utterances of English and Chinese series with an emotion and an intent.

Source: Liu et al., arXiv 2407.02751. How the release lies on disk is not certain: any table with an id, an emotion and
an intent is read, and videos are looked for in every folder. Ids are `dia_<d>_utt_<u>`, with `_ch` for Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Option, Request, plain_split
from featurecache.importers.findings import Findings, Vocabulary
from featurecache.importers.folders import MediaFolder
from featurecache.importers.tables import Row, find_tables, read_table

EMOTIONS = Vocabulary(
    "emotion",
    ("happy", "surprise", "sad", "disgust", "anger", "fear", "neutral"),
    {"hap": "happy", "happiness": "happy", "sur": "surprise", "sadness": "sad", "dis": "disgust", "ang": "anger",
     "angry": "anger", "fea": "fear", "neu": "neutral"},
)  # fmt: skip
INTENTS = Vocabulary(
    "intent",
    ("acknowledging", "agreeing", "consoling", "encouraging", "neutral", "questioning", "suggesting", "sympathizing",
     "wishing"),
    {"ack": "acknowledging", "agr": "agreeing", "con": "consoling", "enc": "encouraging", "neu": "neutral",
     "que": "questioning", "sug": "suggesting", "sym": "sympathizing", "wis": "wishing"},
)  # fmt: skip
LABELS = {"emotion": ("emotion", "emotion_label"), "intent": ("intent", "intent_label")}
WHOLE_ID = {"id": ("video_id", "id", "name", "video_name", "utt_id")}
ID_PARTS = {"dialogue": ("dialogue_id", "dia_id", "dialog_id", "dia"), "utterance": ("utterance_id", "utt")}
OPTIONAL = {"text": ("subtitle", "text", "utterance"), "speaker": ("speaker",), "split": ("mode", "split", "set")}
ID = re.compile(r"dia_?(\d+)_utt_?(\d+)(_ch)?$")
SPLITS = ("train", "val", "test")
SHORT_NAMES = {"trn": "train", "tst": "test"}


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield the utterances of every table."""
    tables = find_tables(request.source, ({**WHOLE_ID, **LABELS}, {**ID_PARTS, **LABELS}), request.encoding)
    videos = MediaFolder(request.source, deep=True)
    for table, columns in tables:
        for row in read_table(table, columns, OPTIONAL, request.encoding):
            clip = _clip(row, table, videos, found)
            language = "chinese" if clip is not None and clip.id.endswith("_ch") else "english"
            if clip is not None and request.options["language"] in ("both", language):
                yield clip


def _clip(row: Row, table: Path, videos: MediaFolder, found: Findings) -> Clip | None:
    name = row["id"].removesuffix(".mp4") or f"dia_{row['dialogue']}_utt_{row['utterance']}"
    if not row["id"] and re.search(r"ch(inese)?|mandarin", table.stem.lower()):
        name += "_ch"
    match = ID.search(name)
    if not match:
        raise DatasetError(str(table), expected="ids of the form dia_<d>_utt_<u>", got=f"{row.place}: {name}")
    place = f"{row.place} ({name})"
    emotion, intent = found.label(EMOTIONS, row["emotion"], place), found.label(INTENTS, row["intent"], place)
    if emotion is None or intent is None:
        return None
    dialogue = f"dia_{match[1]}{match[3] or ''}"
    return Clip(
        id=name,
        video=videos.path_of(name),
        text=row["text"] or None,
        split=_split(row["split"], table),
        dataset="mc_eiu",
        labels={"emotion": emotion, "intent": intent},
        speaker=f"{dialogue}_{row['speaker']}" if row["speaker"] else None,
        dialogue=dialogue,
    )


def _split(cell: str, table: Path) -> str:
    """The split that a cell or, where there is none, the table's name says."""
    words = [cell.lower()] if cell else [*re.split(r"[^a-z]+", table.stem.lower()), table.parent.name.lower()]
    for word in words:
        split = plain_split(SHORT_NAMES.get(word, word))
        if split in SPLITS:
            return split
    got = f'"{cell}"' if cell else f"none in its name, {table.name}"
    raise DatasetError(
        str(table), expected="a split: a column mode, or train, val or test in the table's name", got=got
    )


IMPORTER = Importer(
    name="mc-eiu",
    title="MC-EIU",
    read=read,
    layout=(
        "any table (csv, xlsx) of video_id or dialogue_id and utterance_id, emotion, intent, subtitle, mode; uncertain",
        "dia_<d>_utt_<u>.mp4, dia_<d>_utt_<u>_ch.mp4 in any folder",
    ),
    licence="Inner Mongolia University (Liu et al.), for research only: huggingface.co/datasets/YulangZhuo/MC-EIU.",
    splits=SPLITS,
    published={"train+val+test": 56012},
    options={"language": Option("of the series", "both", ("both", "english", "chinese"))},
)
