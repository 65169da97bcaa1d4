"""Datasets with numbers for valence and arousal: OMG-Emotion, MSP-Podcast.

Sources: github.com/knowledgetechnologyuhh/OMGEmotionChallenge (IJCNN 2018); MSP-Podcast (Lotfian and Busso, IEEE
Transactions on Affective Computing 2019; releases 1.11 to 2.0).

    OMG-Emotion    monologues of actors on YouTube in utterances: arousal from 0 to 1, valence from -1 to 1, and the
                   emotion that most raters chose. An utterance is a file that `prepare_data.py` of the authors cut, or
                   a part, by time, of the whole video
    MSP-Podcast    spoken sentences of podcasts: arousal, valence and dominance from 1 to 7, and an emotion, which a
                   sentence lacks if the raters did not agree (X) or chose another one (O)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.importers import SPLITS, Importer, Request
from featurecache.importers.findings import EMPTY_CELLS, Findings, Vocabulary, score
from featurecache.importers.folders import VIDEO_SUFFIXES, MediaFolder, any_of, first_of
from featurecache.importers.tables import Row, read_lines, read_table

Range = tuple[float, float]


def scores_of(row: Row, ranges: Mapping[str, Range], findings: Findings) -> dict[str, float] | None:
    """Return the labels `<name>_score` of a row; None, with a finding, if a number is missing or outside its range."""
    numbers: dict[str, float] = {}
    for name, (lowest, highest) in ranges.items():
        number = score(row[name])
        if number is None:
            findings.leave_out(f"no {name}", row.place)
            return None
        if not lowest <= number <= highest:
            findings.unknown.append(f"{row.place}: {name} {number:g}, outside {lowest:g} to {highest:g}")
            findings.leave_out(f"{name} outside the scale", row.place)
            return None
        numbers[f"{name}_score"] = number
    return numbers


# OMG-Emotion

OMG_LABELS = ("anger", "disgust", "fear", "happy", "neutral", "sad", "surprise")
OMG_EMOTIONS = Vocabulary("emotion", OMG_LABELS, {str(number): label for number, label in enumerate(OMG_LABELS)})
OMG_RANGES = {"arousal": (0.0, 1.0), "valence": (-1.0, 1.0)}
OMG_COLUMNS = {name: (name,) for name in ("link", "start", "end", "video", "utterance", "arousal", "valence")}
OMG_EMOTION_COLUMN = {"emotion": ("EmotionMaxVote",)}
OMG_TRANSCRIPT_COLUMNS = {name: (name,) for name in ("video", "utterance", "transcript")}
OMG_TABLES = {
    "train": ("Train", ("omg_TrainVideos.csv",)),
    "val": ("Validation", ("omg_ValidationVideos.csv",)),
    "test": ("Test", ("omg_TestVideos_WithLabels.csv", "omg_TestVideos.csv")),
}
"""Split -> part of the name of its transcripts, and the names of its table."""
YOUTUBE_ID = re.compile(r"(?:v=|youtu\.be/)([\w-]+)")


def read_omg_emotion(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every utterance; its speaker is the YouTube video, of which several monologues may be parts."""
    videos = _OmgVideos(request.source)
    for split, (part, names) in OMG_TABLES.items():
        if not request.wants(split):
            continue
        table = first_of(request.source, [*names, *(f"*/{name}" for name in names)], f"the table of split {split}")
        text_of = _transcripts(table.parent / f"omg_{part}Transcripts.csv", request.encoding)
        for row in read_table(table, OMG_COLUMNS, OMG_EMOTION_COLUMN, request.encoding):
            labels: Mapping[str, str | float] | None = scores_of(row, OMG_RANGES, findings)
            start_s, end_s = score(row["start"]), score(row["end"])
            if labels is None:
                continue
            if start_s is None or end_s is None or not 0 <= start_s < end_s:
                findings.unknown.append(f"{row.place}: from {row['start']} s to {row['end']} s")
                findings.leave_out("times outside of the video", row.place)
                continue
            if row["emotion"].lower() not in EMPTY_CELLS:
                emotion = findings.label(OMG_EMOTIONS, row["emotion"], row.place)
                if emotion is None:
                    continue
                labels = {"emotion": emotion, **labels}
            utterance = row["utterance"].removesuffix(".mp4")
            youtube = YOUTUBE_ID.search(row["link"])
            speaker = youtube[1] if youtube else row["video"]
            path, is_whole = videos.find(row["video"], utterance, speaker)
            yield Clip(
                id=f"{row['video']}_{utterance}",
                video=path,
                text=text_of.get((row["video"], utterance)) or None,
                split=split,
                dataset="omg_emotion",
                labels=labels,
                speaker=speaker,
                dialogue=row["video"],
                start_s=start_s if is_whole else None,
                end_s=end_s if is_whole else None,
            )


class _OmgVideos:
    """The videos below a folder: `<video>/<utterance>.mp4`, cut, and `<video>.mp4` or `<YouTube id>.mp4`, whole."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._cut: dict[tuple[str, str], Path] = {}
        self._whole: dict[str, Path] = {}
        for root, folders, names in os.walk(source):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for path in (Path(root, name) for name in sorted(names)):
                if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."):
                    self._cut.setdefault((path.parent.name, path.stem), path)
                    self._whole.setdefault(path.stem, path)

    def find(self, video: str, utterance: str, youtube_id: str) -> tuple[Path, bool]:
        """Return the file of an utterance, and whether it is the whole video; the expected path if there is none."""
        cut = self._cut.get((video, utterance))
        if cut is not None:
            return cut, False
        whole = self._whole.get(video) or self._whole.get(youtube_id)
        return (whole, True) if whole else (self._source / video / f"{utterance}.mp4", False)


def _transcripts(table: Path, encoding: str) -> dict[tuple[str, str], str]:
    """Return (video, utterance) -> words; empty without the table, as of the test split."""
    if not table.is_file():
        return {}
    rows = read_table(table, OMG_TRANSCRIPT_COLUMNS, encoding=encoding)
    return {(row["video"], row["utterance"].removesuffix(".mp4")): row["transcript"] for row in rows}


OMG_EMOTION = Importer(
    name="omg-emotion",
    title="OMG-Emotion",
    read=read_omg_emotion,
    layout=(
        "omg_TrainVideos.csv, omg_ValidationVideos.csv, omg_TestVideos_WithLabels.csv:",
        "  link, start, end, video, utterance, arousal, valence, EmotionMaxVote",
        "omg_{Train,Validation}Transcripts.csv: link, video, utterance, transcript",
        "<video>/<utterance>.mp4, cut by prepare_data.py, or <video>.mp4 or <YouTube id>.mp4, in any folders",
    ),
    licence="The annotations are of the University of Hamburg, CC BY-NC-SA 3.0; the videos are of their makers on"
    " YouTube: github.com/knowledgetechnologyuhh/OMGEmotionChallenge.",
    splits=SPLITS,
)

# MSP-Podcast

MSP_LABELS = {
    "a": "anger", "s": "sadness", "h": "happiness", "u": "surprise", "f": "fear", "d": "disgust", "c": "contempt",
    "n": "neutral",
}  # fmt: skip
MSP_WITHOUT_EMOTION = {"x": "the raters did not agree (X)", "o": "another emotion (O)"}
MSP_EMOTIONS = Vocabulary("emotion", (*MSP_LABELS.values(), *MSP_WITHOUT_EMOTION), MSP_LABELS)
MSP_RANGES = {"arousal": (1.0, 7.0), "valence": (1.0, 7.0), "dominance": (1.0, 7.0)}
MSP_COLUMNS = {
    "name": ("FileName",),
    "emotion": ("EmoClass",),
    "arousal": ("EmoAct",),
    "valence": ("EmoVal",),
    "dominance": ("EmoDom",),
    "speaker": ("SpkrID",),
    "split": ("Split_Set",),
}
MSP_SPLITS = {"train": "train", "development": "val", "test1": "test1", "test2": "test2", "test3": "test3"}
MSP_TABLES = ("labels_consensus.csv", "labels_concensus.csv")
"""Early releases spell it with c."""


def read_msp_podcast(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every sentence of the table of consensus labels; the labels of test3 are not public."""
    candidates = [f"{folder}{name}" for folder in ("Labels/", "", "*/", "*/*/") for name in MSP_TABLES]
    table = first_of(request.source, candidates, "the table of consensus labels")
    folder = any_of(request.source, ("Audios", "Audio", "*/Audios")) or request.source / "Audios"
    sounds = MediaFolder(folder, (".wav",), deep=True)
    transcripts = any_of(request.source, ("Transcripts", "*/Transcripts"))
    words = MediaFolder(transcripts or request.source / "Transcripts", (".txt",), deep=True)
    for row in read_table(table, MSP_COLUMNS, encoding=request.encoding):
        split = MSP_SPLITS.get(row["split"].lower())
        if split is None:
            findings.unknown.append(f'{row.place}: Split_Set "{row["split"]}"')
            findings.leave_out("Split_Set outside the known ones", row.place)
            continue
        if not request.wants(split):
            continue
        labels: Mapping[str, str | float] | None = scores_of(row, MSP_RANGES, findings)
        emotion = findings.label(MSP_EMOTIONS, row["emotion"], row.place)
        if labels is None or emotion is None:
            continue
        if emotion in MSP_WITHOUT_EMOTION:
            findings.note(f"some clips have scores and no emotion: {MSP_WITHOUT_EMOTION[emotion]}")
        else:
            labels = {"emotion": emotion, **labels}
        name = row["name"].removesuffix(".wav")
        transcript = words.path_of(name)
        speaker = row["speaker"]
        yield Clip(
            id=name,
            audio=sounds.path_of(name),
            text=" ".join(line for _, line in read_lines(transcript, request.encoding)) or None
            if transcript.is_file()
            else None,
            split=split,
            dataset="msp_podcast",
            labels=labels,
            speaker=None if speaker.lower() in EMPTY_CELLS else speaker,
        )


MSP_PODCAST = Importer(
    name="msp-podcast",
    title="MSP-Podcast",
    read=read_msp_podcast,
    layout=(
        "Labels/labels_consensus.csv: FileName, EmoClass, EmoAct, EmoVal, EmoDom, SpkrID, Gender, Split_Set",
        "Audios/<FileName>",
        "Transcripts/<name>.txt",
    ),
    licence="Multimodal Signal Processing Laboratory (UT Dallas, now Carnegie Mellon), after a signed licence:"
    " lab-msp.com/MSP/MSP-Podcast.html.",
    splits=tuple(MSP_SPLITS.values()),
)
