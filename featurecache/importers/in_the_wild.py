"""Emotion datasets of single clips from films, series and the web: DFEW, MAFW, CAER, BoLD, E3.

Sources: dfew-dataset.github.io (the single-labelled part), mafw-database.github.io, caer-dataset.github.io, the BoLD
release (ARBEE, IJCV 2020), E3 (Feng et al., NeurIPS 2024).

    DFEW    one of seven emotions, five folds; tables number the emotions from 1 to 7
    MAFW    one of eleven emotions (set single) or several (set compound), five folds
    CAER    one of seven emotions; one folder per split and emotion
    BoLD    strengths of 26 emotion categories in the body and face of one person; test labels are not public
    E3      videos of a body-worn camera in segments; the emotion of one person per segment
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError
from featurecache.importers import SPLITS, Importer, Option, Request, named_split, plain_split
from featurecache.importers.findings import Findings, Vocabulary, score, scores
from featurecache.importers.folders import VIDEO_SUFFIXES, MediaFolder, MediaFolders, any_of, first_of
from featurecache.importers.tables import find_tables, read_lines, read_table

# DFEW

DFEW_LABELS = ("happy", "sad", "neutral", "angry", "surprise", "disgust", "fear")
DFEW_EMOTIONS = Vocabulary(
    "emotion", DFEW_LABELS, {str(number): label for number, label in enumerate(DFEW_LABELS, start=1)}
)
DFEW_COLUMNS = {"name": ("video_name", "video"), "label": ("label",)}
DFEW_ID_DIGITS = 5
"""Copies of the dataset pad the clip numbers differently; here every id has five digits."""


def read_dfew(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the clips of one fold."""
    folder = any_of(request.source, ("Clip/original", "clip/original", "Clip", "original"))
    videos = MediaFolder(folder or request.source / "Clip" / "original")
    findings.note(f"fold {request.fold} of 5 (--fold)")
    for split in ("train", "test"):
        if not request.wants(split):
            continue
        folder_names = [f"{split}(single-labeled)", f"{split}(single_labeled)", f"{split}*single*labeled*"]
        candidates = [
            f"{root}{name}/set_{request.fold}.csv" for root in ("EmoLabel_DataSplit/", "") for name in folder_names
        ]
        table = first_of(request.source, candidates, f"the table of split {split}")
        for row in read_table(table, DFEW_COLUMNS, encoding=request.encoding):
            name = row["name"].rsplit(".", 1)[0]
            emotion = findings.label(DFEW_EMOTIONS, row["label"], row.place)
            if emotion is not None:
                yield Clip(
                    id=name.zfill(DFEW_ID_DIGITS),
                    video=videos.path_of(name, any_padding=True),
                    split=split,
                    dataset="dfew",
                    labels={"emotion": emotion},
                )


DFEW = Importer(
    name="dfew",
    title="DFEW",
    read=read_dfew,
    layout=(
        "EmoLabel_DataSplit/{train,test}(single-labeled)/set_{1..5}.csv: video_name, label",
        "Clip/original/<n>.mp4",
    ),
    licence="Southeast University, for academic research after a signed agreement: dfew-dataset.github.io.",
    splits=("train", "test"),
    folds=5,
    published={"train+test": 11697},
)

# MAFW

MAFW_LABELS = (
    "anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise", "contempt", "anxiety", "helplessness",
    "disappointment",
)  # fmt: skip
MAFW_EMOTIONS = Vocabulary("emotion", MAFW_LABELS)
MAFW_MULTI_LABELS = Vocabulary("multi-label", MAFW_LABELS)
MAFW_LINE = re.compile(r"(\S+\.\w{3,4})\s+([A-Za-z_]+)")
"""`03747.mp4 anger`; in the compound set `20045.mp4 anger_disgust_anxiety`; a caption may follow the label."""


def read_mafw(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the clips of one fold."""
    folder = any_of(request.source, ("data/clips", "clips", "data"))
    videos = MediaFolder(folder or request.source / "data" / "clips")
    label_set = request.options["set"]
    findings.note(f"the {label_set} set, fold {request.fold} of 5 (--option set=…, --fold)")
    for split in ("train", "test"):
        if not request.wants(split):
            continue
        kinds = ("no_caption", "with_caption")
        roots = ("Train & Test Set/", "*Test*Set*/", "")
        candidates = [f"{root}{label_set}/{kind}/set_{request.fold}/{split}.txt" for root in roots for kind in kinds]
        path = first_of(request.source, candidates, f"the lines of split {split}")
        for place, line in read_lines(path, request.encoding):
            match = MAFW_LINE.match(line)
            if not match:
                raise DatasetError(str(path), expected="lines such as 03747.mp4 anger", got=f"{place}: {line[:60]}")
            name, cell = match[1].rsplit(".", 1)[0], match[2]
            labels: dict[str, str | list[str] | float] = {}
            if label_set == "compound":
                if multi_label := findings.labels(MAFW_MULTI_LABELS, cell.split("_"), place):
                    labels["multi-label"] = multi_label
            elif emotion := findings.label(MAFW_EMOTIONS, cell, place):
                labels["emotion"] = emotion
            if labels:
                video = videos.path_of(name, any_padding=True)
                yield Clip(id=name, video=video, split=split, dataset="mafw", labels=labels)


MAFW = Importer(
    name="mafw",
    title="MAFW",
    read=read_mafw,
    layout=(
        "Train & Test Set/{single,compound}/{no_caption,with_caption}/set_{1..5}/{train,test}.txt: file, label",
        "data/clips/<n>.mp4",
    ),
    licence="China University of Geosciences (Wuhan), for non-commercial research after a signed agreement:"
    " mafw-database.github.io/MAFW.",
    splits=("train", "test"),
    folds=5,
    options={"set": Option("one emotion per clip, or several", "single", ("single", "compound"))},
)

# CAER

CAER_EMOTIONS = Vocabulary("emotion", ("anger", "disgust", "fear", "happy", "neutral", "sad", "surprise"))


def read_caer(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every video; each emotion folder numbers its files from 1, so an id is `<split>_<emotion>_<number>`."""
    for split in ("train", "validation", "test"):
        if not request.wants(plain_split(split)):
            continue
        split_folder = first_of(request.source, (split, f"CAER/{split}"), f"the folder of split {split}")
        folders = (path for path in split_folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        for folder in sorted(folders):
            emotion = findings.label(CAER_EMOTIONS, folder.name, f"{split}/{folder.name}")
            if emotion is None:
                continue
            for path in sorted(folder.iterdir()):
                if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith("."):
                    yield Clip(
                        id=f"{split}_{folder.name}_{path.stem}",
                        video=path,
                        split=plain_split(split),
                        dataset="caer",
                        labels={"emotion": emotion},
                    )


CAER = Importer(
    name="caer",
    title="CAER",
    read=read_caer,
    layout=("{train,validation,test}/{Anger,Disgust,Fear,Happy,Neutral,Sad,Surprise}/<n>.avi",),
    licence="Yonsei University, for non-commercial research: caer-dataset.github.io.",
    splits=SPLITS,
    published={"train+val+test": 13201},
)

# BoLD

BOLD_CATEGORIES = (
    "peace", "affection", "esteem", "anticipation", "engagement", "confidence", "happiness", "pleasure", "excitement",
    "surprise", "sympathy", "doubt/confusion", "disconnection", "fatigue", "embarrassment", "yearning", "disapproval",
    "aversion", "annoyance", "anger", "sensitivity", "sadness", "disquietment", "fear", "pain", "suffering",
)  # fmt: skip
BOLD_THRESHOLD = 0.5
"""A clip has a category from this strength on."""
BOLD_FIRST_STRENGTH = 4
"""Index of the first strength in a row; before it are video, person, start frame and end frame."""
BOLD_FIRST_DIMENSION = BOLD_FIRST_STRENGTH + len(BOLD_CATEGORIES)
BOLD_MIN_CELLS = BOLD_FIRST_DIMENSION + 3  # valence, arousal, dominance


def read_bold(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield one clip per person of every video; the tables have no header."""
    root = first_of(request.source, ("BOLD_public", "annotations"), "the release")
    root = root if root.name == "BOLD_public" else request.source
    for split in ("train", "val"):
        if request.wants(split):
            table = first_of(root, (f"annotations/{split}.csv",), f"the table of split {split}")
            for place, line in read_lines(table, request.encoding):
                clip = _bold_clip(table, place, [cell.strip() for cell in line.split(",")], split, root, findings)
                if clip is not None:
                    yield clip


def _bold_clip(table: Path, place: str, cells: list[str], split: str, root: Path, findings: Findings) -> Clip | None:
    """Return the clip of one row, None if a strength is outside 0 to 1.

    A video may show several people, so an id is `<film>_<video>_<person>`; the frames show the whole scene.
    """
    numbers = [score(cell) for cell in cells[BOLD_FIRST_STRENGTH:BOLD_FIRST_DIMENSION]]
    strengths = {name: number for name, number in zip(BOLD_CATEGORIES, numbers, strict=False) if number is not None}
    if len(cells) < BOLD_MIN_CELLS or len(strengths) < len(BOLD_CATEGORIES):
        raise DatasetError(
            str(table),
            expected=f"{BOLD_MIN_CELLS} cells or more: video, person, start, end, 26 scores, 3 dimensions, …",
            got=f"{place}: {len(cells)} cells",
        )
    outside = [f"{name} {strength:g}" for name, strength in strengths.items() if not 0 <= strength <= 1]
    if outside:
        findings.unknown.append(f"{place}: strengths outside 0 to 1: {', '.join(outside)}")
        findings.leave_out("strengths outside 0 to 1", place)
        return None
    categories = [name for name, strength in strengths.items() if strength >= BOLD_THRESHOLD]
    if not categories:
        findings.note("clips in which no category reaches 0.5 have an empty list")
    name = PurePosixPath(cells[0])
    film = name.parent.name.removesuffix(".mp4")
    valence, arousal, dominance = cells[BOLD_FIRST_DIMENSION:BOLD_MIN_CELLS]
    person = cells[1].removesuffix(".0")
    return Clip(
        id=f"{film}_{name.stem}_{person}",
        video=root / "videos" / name,
        split=split,
        dataset="bold",
        labels={"multi-label": categories, **scores(valence=valence, arousal=arousal, dominance=dominance)},
        speaker=f"{film}_{name.stem}_{person}",
        dialogue=film,
    )


BOLD = Importer(
    name="bold",
    title="BoLD",
    read=read_bold,
    layout=(
        "BOLD_public/annotations/{train,val}.csv, without header: video, person, start, end, 26 scores, valence, …",
        "BOLD_public/videos/<video>",
    ),
    licence="Pennsylvania State University, for research after an agreement; the films' owners hold their rights:"
    " cydar.ist.psu.edu/emotionchallenge.",
    splits=("train", "val"),
)

# E3

E3_EMOTIONS = Vocabulary(
    "emotion",
    ("angry", "disgusted", "happy", "sad", "sarcastic", "scared", "shy", "surprised"),
    {
        "anger": "angry",
        "disgust": "disgusted",
        "happiness": "happy",
        "sadness": "sad",
        "sarcasm": "sarcastic",
        "fear": "scared",
        "shyness": "shy",
        "surprise": "surprised",
    },
)
# The published description does not give the headers of the tables, so each column is accepted under several names.
E3_COLUMNS = {
    "video": ("video", "video_name", "video_id", "vid"),
    "segment": ("segment", "segment_id", "clip", "clip_id"),
    "emotion": ("emotion", "emotion_label", "label"),
}
E3_OPTIONAL_COLUMNS = {
    "person": ("person", "character", "who"),
    "text": ("conversation", "text", "subtitle"),
    "split": ("mode", "split", "set"),
}


def read_e3(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the segments of every table; `person` describes whose emotion it is (`a woman in blue`)."""
    tables = find_tables(request.source, (E3_COLUMNS,), request.encoding)
    folders = MediaFolders(any_of(request.source, ("E3", "videos", "video")) or request.source / "E3")
    for table, columns in tables:
        for row in read_table(table, columns, E3_OPTIONAL_COLUMNS, request.encoding):
            emotion = findings.label(E3_EMOTIONS, row["emotion"], row.place)
            if emotion is None:
                continue
            video, segment = row["video"].removesuffix(".mp4"), row["segment"].removesuffix(".mp4")
            words = [row["split"].lower()] if row["split"] else re.split(r"[^a-z]+", table.stem.lower())
            yield Clip(
                id=f"{video}_{segment}",
                video=folders[video].path_of(segment, any_padding=True),
                text=row["text"] or None,
                split=named_split(words) or row["split"] or None,
                dataset="e3",
                labels={"emotion": emotion},
                person=row["person"] or None,
                speaker=f"{video}: {row['person']}" if row["person"] else None,
                dialogue=video,
            )


E3 = Importer(
    name="e3",
    title="E3",
    read=read_e3,
    layout=(
        "any table (xlsx, csv) of video, segment, emotion, person, conversation, mode; headers not certain",
        "E3/<video>/<segment>.mp4",
    ),
    licence="Zhejiang University (Feng et al.): github.com/Exploring-Embodied-Emotion-official/E3.",
)
