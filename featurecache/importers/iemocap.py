"""IEMOCAP: two people talk; both are in every picture, side by side. Clips are parts of the recordings of dialogues.

Source: the release of the SAIL laboratory. Id `Ses05F_script03_1_F033`: session 5; F, the sixth character, is who sits
on the left; the letter fourth from the end is who speaks. Where they are the same, the speaker is in the left half of
the picture. Times count from the beginning of the recording.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.clips.crop import Crop
from featurecache.importers import Importer, Option, Request
from featurecache.importers.findings import Findings, Vocabulary, scores
from featurecache.importers.folders import MediaFolder, first_of
from featurecache.importers.tables import read_lines

NUM_SESSIONS = 5
NAMES = {
    "neu": "neutral", "hap": "happiness", "sad": "sadness", "ang": "anger", "exc": "excited", "fru": "frustration",
    "sur": "surprise", "fea": "fear", "dis": "disgust",
}  # fmt: skip
LEFT_OUT = {"xxx": "the raters did not agree (xxx)", "oth": "another emotion (oth)"}
EMOTIONS = Vocabulary("emotion", (*NAMES.values(), *LEFT_OUT), NAMES)
FOUR = {"neutral": "neutral", "happiness": "happiness", "excited": "happiness", "sadness": "sadness", "anger": "anger"}
FOUR_WAY = {"neutral": 1708, "happiness": 1636, "anger": 1103, "sadness": 1084}
FOUR_WAY_SESSION5 = 1241
UTTERANCE = re.compile(r"\[\s*([\d.]+)\s*-\s*([\d.]+)\s*\]\s+(Ses\S+)\s+(\w+)\s+\[([^\]]*)\]")
SAID = re.compile(r"(Ses\S+)\s+\[[^\]]*\]:\s*(.*)")
LEFT_PERSON, SPEAKER = 5, -4


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield the utterances of every session."""
    first_of(request.source, ("Session1", "Session*"), "the folders of the sessions")
    if request.options["crop"] == "side":
        found.note("pictures are cropped to the speaker's half (--option crop=none for both people)")
    if request.options["labels"] == "four":
        found.published_labels["train+test"] = FOUR_WAY
        if request.fold == NUM_SESSIONS:
            found.published["test"] = FOUR_WAY_SESSION5
    for session in range(1, NUM_SESSIONS + 1):
        folder = request.source / f"Session{session}" / "dialog"
        split = "test" if session == request.fold else "train"
        if not request.wants(split):
            continue
        evaluations = first_of(folder, ("EmoEvaluation",), f"the evaluations of session {session}")
        videos = MediaFolder(folder / "avi" / "DivX")
        for path in sorted(evaluations.glob("Ses*.txt")):
            yield from _dialogue(
                path, folder / "transcriptions" / path.name, videos.path_of(path.stem), split, request, found
            )


def _dialogue(
    evaluation: Path, transcription: Path, video: Path, split: str, request: Request, found: Findings
) -> Iterator[Clip]:
    said = {}
    if transcription.is_file():
        matches = (SAID.match(line) for _, line in read_lines(transcription, request.encoding))
        said = {match[1]: match[2].strip() for match in matches if match}
    for place, line in read_lines(evaluation, request.encoding):
        match = UTTERANCE.match(line)
        if not match:
            continue  # ratings of single raters, and the heading
        begin, end, clip_id, code, numbers = match.groups()
        emotion = found.label(EMOTIONS, code, place)
        if emotion is None:
            continue
        if emotion in LEFT_OUT:
            found.leave_out(LEFT_OUT[emotion], clip_id)
            continue
        if request.options["labels"] == "four":
            if emotion not in FOUR:
                found.leave_out("not one of the four emotions", clip_id)
                continue
            emotion = FOUR[emotion]
        valence, activation, dominance = ([*numbers.split(","), "", "", ""])[:3]
        yield Clip(
            id=clip_id,
            video=video,
            text=said.get(clip_id) or None,
            split=split,
            dataset="iemocap",
            labels={"emotion": emotion, **scores(valence=valence, activation=activation, dominance=dominance)},
            speaker=clip_id[:LEFT_PERSON] + clip_id[SPEAKER],
            dialogue=evaluation.stem,
            start_s=float(begin),
            end_s=float(end),
            crop=speaker_crop(clip_id) if request.options["crop"] == "side" else None,
        )


def speaker_crop(clip_id: str) -> Crop:
    """Return the half of the picture in which the speaker of an utterance is."""
    return Crop(right=0.5) if clip_id[LEFT_PERSON] == clip_id[SPEAKER] else Crop(left=0.5)


IMPORTER = Importer(
    name="iemocap",
    title="IEMOCAP",
    read=read,
    layout=(
        "Session{1..5}/dialog/EmoEvaluation/<dialogue>.txt: lines of [begin - end] utterance code [v, a, d]",
        "Session{1..5}/dialog/transcriptions/<dialogue>.txt: lines of utterance [begin-end]: text",
        "Session{1..5}/dialog/avi/DivX/<dialogue>.avi, cut by time; its sound track is used",
    ),
    licence="Signal Analysis and Interpretation Laboratory, University of Southern California; a release form must be"
    " signed: sail.usc.edu/iemocap.",
    splits=("train", "test"),
    folds=NUM_SESSIONS,
    default_fold=NUM_SESSIONS,
    options={
        "labels": Option("nine emotions, or four with excited as happiness", "all", ("all", "four")),
        "crop": Option("show the speaker's half of the picture, or both people", "side", ("side", "none")),
    },
)
