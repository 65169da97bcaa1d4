"""MELD: utterances of the series Friends, with emotion and sentiment.

Source: github.com/declare-lab/MELD. Utterances are numbered anew in every split, so ids carry it: `test_dia0_utt0`.
The archives also hold `final_videos_test*` and `._*` files, which are no clips; some clips of the tables do not exist.
The files of some hold minutes where the table says seconds, so the table's length goes into the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from featurecache.clips.clip_list import Clip
from featurecache.importers import Importer, Request, plain_split
from featurecache.importers.findings import Findings, Vocabulary
from featurecache.importers.folders import MediaFolder, any_of, first_of
from featurecache.importers.tables import read_table

EMOTIONS = Vocabulary("emotion", ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear"))
SENTIMENTS = Vocabulary("sentiment", ("neutral", "positive", "negative"))
FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
"""By the dataset's own name of the split."""
COLUMNS = {
    name: (name,) for name in ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
}  # fmt: skip
TIMES = {"StartTime": ("StartTime",), "EndTime": ("EndTime",)}
"""Of an utterance in its episode: 00:16:16,059."""
TIME = re.compile(r"(\d+):(\d\d):(\d\d(?:[.,]\d+)?)")


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every utterance of the tables."""
    for split, name in FOLDERS.items():
        if not request.wants(plain_split(split)):
            continue
        candidates = (f"{split}_sent_emo.csv", f"*/{split}_sent_emo.csv", f"*/*/{split}_sent_emo.csv")
        table = first_of(request.source, candidates, f"the table of split {split}")
        folder = any_of(request.source, (name, f"*/{name}", f"*/*/{name}", split)) or request.source / name
        videos = MediaFolder(folder)
        for row in read_table(table, COLUMNS, TIMES, request.encoding):
            emotion = found.label(EMOTIONS, row["Emotion"], row.place)
            sentiment = found.label(SENTIMENTS, row["Sentiment"], row.place)
            if emotion is None or sentiment is None:
                continue
            dialogue, utterance = row["Dialogue_ID"], row["Utterance_ID"]
            yield Clip(
                id=f"{split}_dia{dialogue}_utt{utterance}",
                video=videos.path_of(f"dia{dialogue}_utt{utterance}"),
                text=row["Utterance"] or None,
                split=plain_split(split),
                dataset="meld",
                labels={"emotion": emotion, "sentiment": sentiment},
                speaker=row["Speaker"] or None,
                dialogue=f"{split}_dia{dialogue}",
                duration_s=_duration_s(row["StartTime"], row["EndTime"]),
            )


def _duration_s(start: str, end: str) -> float | None:
    """Return the seconds between two times of a table; None where either is none."""
    times = []
    for cell in (start, end):
        found = TIME.fullmatch(cell.strip())
        if found is None:
            return None
        hours, minutes, seconds = found.groups()
        times.append(int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", ".")))
    return round(times[1] - times[0], 3) if times[1] > times[0] else None


IMPORTER = Importer(
    name="meld",
    title="MELD",
    read=read,
    layout=(
        "{train,dev,test}_sent_emo.csv",
        "{train_splits,dev_splits_complete,output_repeated_splits_test}/dia{D}_utt{U}.mp4",
    ),
    licence="The annotations are GPL-3 (declare-lab); the clips are of the series Friends and belong to its owners:"
    " github.com/declare-lab/MELD.",
    splits=("train", "val", "test"),
    published={"train": 9989, "val": 1109, "test": 2610},
)
