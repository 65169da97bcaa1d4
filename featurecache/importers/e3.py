"""E3: videos filmed by a person who wears the camera, in segments, each with the emotion of one person in it.

Source: Feng et al., NeurIPS 2024. Clips lie at `E3/<video>/<segment>.mp4`; the headers of the tables (xlsx) are not
certain, so they are looked for under several names. Who is meant (`a woman in blue`) is kept as the speaker.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.importers import Importer, Request, plain_split
from featurecache.importers.findings import Findings, Vocabulary
from featurecache.importers.folders import MediaFolders, any_of
from featurecache.importers.tables import find_tables, read_table

EMOTIONS = Vocabulary(
    "emotion",
    ("angry", "disgusted", "happy", "sad", "sarcastic", "scared", "shy", "surprised"),
    {"anger": "angry", "disgust": "disgusted", "happiness": "happy", "sadness": "sad", "sarcasm": "sarcastic",
     "fear": "scared", "shyness": "shy", "surprise": "surprised"},
)  # fmt: skip
COLUMNS = {
    "video": ("video", "video_name", "video_id", "vid"),
    "segment": ("segment", "segment_id", "clip", "clip_id"),
    "emotion": ("emotion", "emotion_label", "label"),
}
OPTIONAL = {
    "person": ("person", "character", "who"),
    "text": ("conversation", "text", "subtitle"),
    "split": ("mode", "split", "set"),
}
SPLITS = ("train", "val", "test")


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield the segments of every table."""
    tables = find_tables(request.source, (COLUMNS,), request.encoding)
    folders = MediaFolders(any_of(request.source, ("E3", "videos", "video")) or request.source / "E3")
    for table, columns in tables:
        for row in read_table(table, columns, OPTIONAL, request.encoding):
            emotion = found.label(EMOTIONS, row["emotion"], row.place)
            if emotion is None:
                continue
            video, segment = row["video"].removesuffix(".mp4"), row["segment"].removesuffix(".mp4")
            yield Clip(
                id=f"{video}_{segment}",
                video=folders[video].path_of(segment, any_padding=True),
                text=row["text"] or None,
                split=_split(row["split"], table),
                dataset="e3",
                labels={"emotion": emotion},
                person=row["person"] or None,
                speaker=f"{video}: {row['person']}" if row["person"] else None,
                dialogue=video,
            )


def _split(cell: str, table: Path) -> str | None:
    words = [cell.lower()] if cell else re.split(r"[^a-z]+", table.stem.lower())
    return next((split for word in words if (split := plain_split(word)) in SPLITS), cell or None)


IMPORTER = Importer(
    name="e3",
    title="E3",
    read=read,
    layout=(
        "any table (xlsx, csv) of video, segment, emotion, person, conversation, mode; headers not certain",
        "E3/<video>/<segment>.mp4",
    ),
    licence="Zhejiang University (Feng et al.): github.com/Exploring-Embodied-Emotion-official/E3.",
)
