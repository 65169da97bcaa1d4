"""Emotion datasets of dialogues: IEMOCAP, MELD, EmoryNLP, MC-EIU.

Sources: the IEMOCAP release of the SAIL laboratory; github.com/declare-lab/MELD, which
also has the tables and clips of EmoryNLP (arXiv 1708.04299); MC-EIU (Liu et al., arXiv 2407.02751).

    IEMOCAP    two actors side by side in every picture; a clip is a part, cut by time, of the recording of a dialogue
    MELD       utterances of the series Friends with emotion and sentiment
    EmoryNLP   other utterances of Friends, with the seven emotions of the feeling wheel
    MC-EIU     utterances of English and Chinese series with emotion and intent
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.clips.crop import Crop
from featurecache.errors import DatasetError
from featurecache.importers import SPLITS, Importer, Option, Request, named_split, plain_split
from featurecache.importers.findings import Findings, Vocabulary, scores
from featurecache.importers.folders import MediaFolder, any_of, first_of
from featurecache.importers.tables import Row, find_tables, read_lines, read_table

# IEMOCAP

NUM_SESSIONS = 5
IEMOCAP_CODES = {
    "neu": "neutral", "hap": "happiness", "sad": "sadness", "ang": "anger", "exc": "excited", "fru": "frustration",
    "sur": "surprise", "fea": "fear", "dis": "disgust",
}  # fmt: skip
LEFT_OUT_CODES = {"xxx": "the raters did not agree (xxx)", "oth": "another emotion (oth)"}
IEMOCAP_EMOTIONS = Vocabulary("emotion", (*IEMOCAP_CODES.values(), *LEFT_OUT_CODES), IEMOCAP_CODES)
FOUR_EMOTIONS = {
    "neutral": "neutral",
    "happiness": "happiness",
    "excited": "happiness",
    "sadness": "sadness",
    "anger": "anger",
}
FOUR_WAY_COUNTS = {"neutral": 1708, "happiness": 1636, "anger": 1103, "sadness": 1084}
FOUR_WAY_SESSION5 = 1241
EVALUATION_LINE = re.compile(r"\[\s*([\d.]+)\s*-\s*([\d.]+)\s*\]\s+(Ses\S+)\s+(\w+)\s+\[([^\]]*)\]")
TRANSCRIPTION_LINE = re.compile(r"(Ses\S+)\s+\[[^\]]*\]:\s*(.*)")
LEFT_ACTOR, SPEAKER = 5, -4
"""Characters of an utterance id that name the actor on the left and the speaker.

In `Ses05F_script03_1_M033` (session 5) the woman is on the left and the man speaks.
"""


def read_iemocap(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the utterances of every session; the session of the fold is the test split."""
    first_of(request.source, ("Session1", "Session*"), "the folders of the sessions")
    if request.options["crop"] == "side":
        findings.note("pictures are cropped to the speaker's half (--option crop=none for both people)")
    if request.options["labels"] == "four":
        findings.published_labels["train+test"] = FOUR_WAY_COUNTS
        if request.fold == NUM_SESSIONS:
            findings.published["test"] = FOUR_WAY_SESSION5
    for session in range(1, NUM_SESSIONS + 1):
        folder = request.source / f"Session{session}" / "dialog"
        split = "test" if session == request.fold else "train"
        if not request.wants(split):
            continue
        evaluations = first_of(folder, ("EmoEvaluation",), f"the evaluations of session {session}")
        videos = MediaFolder(folder / "avi" / "DivX")
        for path in sorted(evaluations.glob("Ses*.txt")):
            yield from _utterances(
                path, folder / "transcriptions" / path.name, videos.path_of(path.stem), split, request, findings
            )


def _utterances(
    evaluation: Path, transcription: Path, video: Path, split: str, request: Request, findings: Findings
) -> Iterator[Clip]:
    """Yield the utterances of one dialogue; their times count from the start of its recording."""
    texts = {}
    if transcription.is_file():
        matches = (TRANSCRIPTION_LINE.match(line) for _, line in read_lines(transcription, request.encoding))
        texts = {match[1]: match[2].strip() for match in matches if match}
    for place, line in read_lines(evaluation, request.encoding):
        match = EVALUATION_LINE.match(line)
        if not match:
            continue  # the heading, and ratings of single raters
        start, end, clip_id, code, numbers = match.groups()
        emotion = findings.label(IEMOCAP_EMOTIONS, code, place)
        if emotion is None:
            continue
        if emotion in LEFT_OUT_CODES:
            findings.leave_out(LEFT_OUT_CODES[emotion], clip_id)
            continue
        if request.options["labels"] == "four":
            if emotion not in FOUR_EMOTIONS:
                findings.leave_out("not one of the four emotions", clip_id)
                continue
            emotion = FOUR_EMOTIONS[emotion]
        valence, activation, dominance = ([*numbers.split(","), "", "", ""])[:3]
        yield Clip(
            id=clip_id,
            video=video,
            text=texts.get(clip_id) or None,
            split=split,
            dataset="iemocap",
            labels={"emotion": emotion, **scores(valence=valence, activation=activation, dominance=dominance)},
            speaker=clip_id[:LEFT_ACTOR] + clip_id[SPEAKER],
            dialogue=evaluation.stem,
            session=f"Session{int(clip_id[3:5])}",
            start_s=float(start),
            end_s=float(end),
            crop=speaker_crop(clip_id) if request.options["crop"] == "side" else None,
        )


def speaker_crop(clip_id: str) -> Crop:
    """Return the half of the picture that shows the speaker of an utterance."""
    return Crop(right=0.5) if clip_id[LEFT_ACTOR] == clip_id[SPEAKER] else Crop(left=0.5)


IEMOCAP = Importer(
    name="iemocap",
    title="IEMOCAP",
    read=read_iemocap,
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

# MELD

MELD_EMOTIONS = Vocabulary("emotion", ("neutral", "joy", "surprise", "anger", "sadness", "disgust", "fear"))
MELD_SENTIMENTS = Vocabulary("sentiment", ("neutral", "positive", "negative"))
MELD_FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete", "test": "output_repeated_splits_test"}
"""Folder of the videos, by MELD's own name of the split."""
MELD_COLUMNS = {
    name: (name,) for name in ("Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID", "Utterance_ID")
}
MELD_TIMES = {"StartTime": ("StartTime",), "EndTime": ("EndTime",)}
"""Times of an utterance in its episode: 00:16:16,059."""
TIME = re.compile(r"(\d+):(\d\d):(\d\d(?:[.,]\d+)?)")


def read_meld(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every utterance of the tables; each split numbers its utterances from 0, so ids begin with the split.

    The folders also hold `final_videos_test*` and `._*` files, which no row names; some clips of the tables do not
    exist. Some files hold minutes where the table says seconds, so the clip list states the length from the table.
    """
    for split, name in MELD_FOLDERS.items():
        if not request.wants(plain_split(split)):
            continue
        candidates = (f"{split}_sent_emo.csv", f"*/{split}_sent_emo.csv", f"*/*/{split}_sent_emo.csv")
        table = first_of(request.source, candidates, f"the table of split {split}")
        folder = any_of(request.source, (name, f"*/{name}", f"*/*/{name}", split)) or request.source / name
        videos = MediaFolder(folder)
        for row in read_table(table, MELD_COLUMNS, MELD_TIMES, request.encoding):
            emotion = findings.label(MELD_EMOTIONS, row["Emotion"], row.place)
            sentiment = findings.label(MELD_SENTIMENTS, row["Sentiment"], row.place)
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
    """Return the seconds from `start` to `end`, None if either is no time or the end is not after the start."""
    times = []
    for cell in (start, end):
        match = TIME.fullmatch(cell.strip())
        if match is None:
            return None
        hours, minutes, seconds = match.groups()
        times.append(int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(",", ".")))
    return round(times[1] - times[0], 3) if times[1] > times[0] else None


MELD = Importer(
    name="meld",
    title="MELD",
    read=read_meld,
    layout=(
        "{train,dev,test}_sent_emo.csv",
        "{train_splits,dev_splits_complete,output_repeated_splits_test}/dia{D}_utt{U}.mp4",
    ),
    licence="The annotations are GPL-3 (declare-lab); the clips are of the series Friends and belong to its owners:"
    " github.com/declare-lab/MELD.",
    splits=SPLITS,
    published={"train": 9989, "val": 1109, "test": 2610},
)

# EmoryNLP

EMORYNLP_EMOTIONS = Vocabulary("emotion", ("neutral", "joyful", "peaceful", "powerful", "scared", "mad", "sad"))
EMORYNLP_COLUMNS = {
    name: (name,) for name in ("Utterance", "Speaker", "Emotion", "Scene_ID", "Utterance_ID", "Season", "Episode")
}
EMORYNLP_TIMES = {"StartTime": ("Start_Time", "StartTime"), "EndTime": ("End_Time", "EndTime")}


def read_emorynlp(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every utterance of the tables; the speaker of a row is a list, which may name several people."""
    for split in MELD_FOLDERS:
        if not request.wants(plain_split(split)):
            continue
        name = f"emorynlp_{split}_final.csv"
        table = first_of(request.source, (name, f"*/{name}", f"*/*/{name}"), f"the table of split {split}")
        folder = f"emorynlp_{split}_splits"
        videos = MediaFolder(any_of(request.source, (folder, f"*/{folder}")) or request.source / folder)
        for row in read_table(table, EMORYNLP_COLUMNS, EMORYNLP_TIMES, request.encoding):
            emotion = findings.label(EMORYNLP_EMOTIONS, row["Emotion"], row.place)
            if emotion is None:
                continue
            scene = f"sea{row['Season']}_ep{row['Episode']}_sc{row['Scene_ID']}"
            clip_id = f"{scene}_utt{row['Utterance_ID']}"
            yield Clip(
                id=clip_id,
                video=videos.path_of(clip_id),
                text=row["Utterance"] or None,
                split=plain_split(split),
                dataset="emorynlp",
                labels={"emotion": emotion},
                speaker=re.sub(r"[\[\]'\"]", "", row["Speaker"]) or None,
                dialogue=scene,
                duration_s=_duration_s(row["StartTime"], row["EndTime"]),
            )


EMORYNLP = Importer(
    name="emorynlp",
    title="EmoryNLP",
    read=read_emorynlp,
    layout=(
        "emorynlp_{train,dev,test}_final.csv",
        "emorynlp_{train,dev,test}_splits/sea{S}_ep{E}_sc{C}_utt{U}.mp4",
    ),
    licence="The annotations are of Emory University (github.com/emorynlp/emotion-detection); the clips are of the"
    " series Friends and belong to its owners: github.com/declare-lab/MELD.",
    splits=SPLITS,
    published={"train": 7551, "val": 954, "test": 984},
)

# MC-EIU

MC_EIU_EMOTIONS = Vocabulary(
    "emotion",
    ("happy", "surprise", "sad", "disgust", "anger", "fear", "neutral"),
    {"hap": "happy", "happiness": "happy", "sur": "surprise", "sadness": "sad", "dis": "disgust", "ang": "anger",
     "angry": "anger", "fea": "fear", "neu": "neutral"},
)  # fmt: skip
MC_EIU_INTENTS = Vocabulary(
    "intent",
    ("acknowledging", "agreeing", "consoling", "encouraging", "neutral", "questioning", "suggesting", "sympathizing",
     "wishing"),
    {"ack": "acknowledging", "agr": "agreeing", "con": "consoling", "enc": "encouraging", "neu": "neutral",
     "que": "questioning", "sug": "suggesting", "sym": "sympathizing", "wis": "wishing"},
)  # fmt: skip
# The layout of the release on disk is not certain: any table with an id, an emotion and an intent is read, and videos
# are searched for in every folder.
LABEL_COLUMNS = {"emotion": ("emotion", "emotion_label"), "intent": ("intent", "intent_label")}
ID_COLUMN = {"id": ("video_id", "id", "name", "video_name", "utt_id")}
ID_PART_COLUMNS = {"dialogue": ("dialogue_id", "dia_id", "dialog_id", "dia"), "utterance": ("utterance_id", "utt")}
MC_EIU_OPTIONAL_COLUMNS = {
    "text": ("subtitle", "text", "utterance"),
    "speaker": ("speaker",),
    "split": ("mode", "split", "set"),
}
MC_EIU_ID = re.compile(r"dia_?(\d+)_utt_?(\d+)(_ch)?$")
"""`dia_<d>_utt_<u>`; Chinese clips end in `_ch`."""
SHORT_SPLIT_NAMES = {"trn": "train", "tst": "test"}


def read_mc_eiu(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the utterances of every table in the requested language."""
    layouts = ({**ID_COLUMN, **LABEL_COLUMNS}, {**ID_PART_COLUMNS, **LABEL_COLUMNS})
    tables = find_tables(request.source, layouts, request.encoding)
    videos = MediaFolder(request.source, deep=True)
    for table, columns in tables:
        for row in read_table(table, columns, MC_EIU_OPTIONAL_COLUMNS, request.encoding):
            clip = _mc_eiu_clip(row, table, videos, findings)
            language = "chinese" if clip is not None and clip.id.endswith("_ch") else "english"
            if clip is not None and request.options["language"] in ("both", language):
                yield clip


def _mc_eiu_clip(row: Row, table: Path, videos: MediaFolder, findings: Findings) -> Clip | None:
    name = row["id"].removesuffix(".mp4") or f"dia_{row['dialogue']}_utt_{row['utterance']}"
    if not row["id"] and re.search(r"ch(inese)?|mandarin", table.stem.lower()):
        name += "_ch"
    match = MC_EIU_ID.search(name)
    if not match:
        raise DatasetError(str(table), expected="ids of the form dia_<d>_utt_<u>", got=f"{row.place}: {name}")
    place = f"{row.place} ({name})"
    emotion = findings.label(MC_EIU_EMOTIONS, row["emotion"], place)
    intent = findings.label(MC_EIU_INTENTS, row["intent"], place)
    if emotion is None or intent is None:
        return None
    dialogue = f"dia_{match[1]}{match[3] or ''}"
    return Clip(
        id=name,
        video=videos.path_of(name),
        text=row["text"] or None,
        split=_mc_eiu_split(row["split"], table),
        dataset="mc_eiu",
        labels={"emotion": emotion, "intent": intent},
        speaker=f"{dialogue}_{row['speaker']}" if row["speaker"] else None,
        dialogue=dialogue,
    )


def _mc_eiu_split(cell: str, table: Path) -> str:
    """Return the split that a cell names; if it is empty, the split in the name of the table or of its folder.

    Raises:
        DatasetError: neither names a split.
    """
    words = [cell.lower()] if cell else [*re.split(r"[^a-z]+", table.stem.lower()), table.parent.name.lower()]
    split = named_split(SHORT_SPLIT_NAMES.get(word, word) for word in words)
    if split is None:
        raise DatasetError(
            str(table),
            expected="a split: a column mode, or train, val or test in the table's name",
            got=f'"{cell}"' if cell else f"none in its name, {table.name}",
        )
    return split


MC_EIU = Importer(
    name="mc-eiu",
    title="MC-EIU",
    read=read_mc_eiu,
    layout=(
        "any table (csv, xlsx) of video_id or dialogue_id and utterance_id, emotion, intent, subtitle, mode; uncertain",
        "dia_<d>_utt_<u>.mp4, dia_<d>_utt_<u>_ch.mp4 in any folder",
    ),
    licence="Inner Mongolia University (Liu et al.), for research only: huggingface.co/datasets/YulangZhuo/MC-EIU.",
    splits=SPLITS,
    published={"train+val+test": 56012},
    options={"language": Option("of the series", "both", ("both", "english", "chinese"))},
)
