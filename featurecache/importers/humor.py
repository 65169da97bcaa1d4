"""Sarcasm and humor: MUStARD, MUStARD++, UR-FUNNY.

Sources: MUStARD (ACL 2019, github.com/soujanyaporia/MUStARD), MUStARD++ (LREC 2022,
github.com/cfiltnlp/MUStARD_Plus_Plus), UR-FUNNY version 2 (EMNLP 2019, github.com/ROC-HCI/UR-FUNNY).

    MUStARD      690 utterances of four series, half of them sarcastic
    MUStARD++    1,202 utterances, half of them sarcastic, each with the emotion that it hides, that which it shows,
                 valence and arousal from 1 to 9; the table also has the lines of the context, which have no labels
    UR-FUNNY     parts of TED talks that end with a punchline or do not; its tables are pickles, which are converted to
                 JSON and not read, because a pickle can run code

A sarcastic clip has the tag `sarcasm`, so that the scores of any task show what sarcasm costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError
from featurecache.importers import SPLITS, Importer, Option, Request, plain_split
from featurecache.importers.dimensional import scores_of
from featurecache.importers.findings import EMPTY_CELLS, Findings, Vocabulary
from featurecache.importers.folders import MediaFolder, any_of, contents, first_of
from featurecache.importers.tables import read_json, read_table

SARCASM = Vocabulary(
    "sarcasm",
    ("sarcastic", "not sarcastic"),
    {"true": "sarcastic", "false": "not sarcastic", "1": "sarcastic", "0": "not sarcastic", "1.0": "sarcastic",
     "0.0": "not sarcastic"},
)  # fmt: skip
SARCASM_TAG = "sarcasm"
ANONYMOUS = "PERSON"
"""Beginning of the names of speakers who are nobody in particular: PERSON, PERSON1."""


def _speaker(name: str, clip_id: str) -> str | None:
    """Return a speaker; an anonymous one is somebody else in every clip."""
    return f"{clip_id}: {name}" if name.upper().startswith(ANONYMOUS) else name or None


# MUStARD


def read_mustard(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every utterance."""
    names = ("sarcasm_data.json", "data/sarcasm_data.json", "*/sarcasm_data.json")
    path = first_of(request.source, names, "the utterances")
    folder = any_of(request.source, [f"{root}utterances_final" for root in ("", "*/", "*/*/")])
    videos = MediaFolder(folder or request.source / "utterances_final")
    for clip_id, row in read_json(path, dict, request.encoding).items():
        missing = [key for key in ("utterance", "speaker", "sarcasm") if not isinstance(row, dict) or key not in row]
        if missing:
            got = f"{clip_id}: no {', '.join(missing)}"
            raise DatasetError(str(path), expected="utterance, speaker and sarcasm for every id", got=got)
        sarcasm = findings.label(SARCASM, str(row["sarcasm"]), clip_id)
        if sarcasm is None:
            continue
        yield Clip(
            id=clip_id,
            video=videos.path_of(clip_id),
            text=str(row["utterance"]).strip() or None,
            dataset="mustard",
            labels={"sarcasm": sarcasm},
            speaker=_speaker(str(row["speaker"]).strip(), clip_id),
            tags=(SARCASM_TAG,) if sarcasm == "sarcastic" else (),
        )


MUSTARD = Importer(
    name="mustard",
    title="MUStARD",
    read=read_mustard,
    layout=(
        "sarcasm_data.json: id -> utterance, speaker, context, context_speakers, sarcasm",
        "utterances_final/<id>.mp4",
    ),
    licence="The annotations are MIT (github.com/soujanyaporia/MUStARD); the clips are of series and belong to their"
    " owners.",
    published={"": 690},
)

# MUStARD++

MUSTARD_EMOTIONS = Vocabulary(
    "emotion",
    ("anger", "disgust", "excitement", "fear", "frustration", "happiness", "neutral", "ridicule", "sadness",
     "surprise"),
)  # fmt: skip
MUSTARD_EMOTION_COLUMNS = {"hidden": "Implicit_Emotion", "shown": "Explicit_Emotion"}
MUSTARD_TYPES = Vocabulary(
    "sarcasm_type",
    ("propositional", "illocutionary", "embedded", "like-prefixed"),
    {"pro": "propositional", "ill": "illocutionary", "emb": "embedded", "lik": "like-prefixed"},
)
MUSTARD_RANGES = {"valence": (1.0, 9.0), "arousal": (1.0, 9.0)}
MUSTARD_COLUMNS = {
    "scene": ("SCENE",),
    "text": ("SENTENCE",),
    "speaker": ("SPEAKER",),
    "sarcasm": ("Sarcasm",),
    "type": ("Sarcasm_Type",),
    "valence": ("Valence",),
    "arousal": ("Arousal",),
}


def read_mustard_plus_plus(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the utterance of every scene; the other rows of a scene are its context.

    The id is `<scene>_u`, as in the column KEY, in which one row of the release has another value.
    """
    table = first_of(request.source, ("mustard++_text.csv", "*/mustard++_text.csv", "*mustard*.csv"), "the table")
    columns = {**MUSTARD_COLUMNS, "emotion": (MUSTARD_EMOTION_COLUMNS[request.options["emotion"]],)}
    folder = any_of(request.source, [f"{root}final_utterance_videos" for root in ("", "*/", "*/*/")])
    videos = MediaFolder(folder or request.source / "final_utterance_videos")
    for row in read_table(table, columns, encoding=request.encoding):
        if row["sarcasm"].lower() in EMPTY_CELLS:
            continue  # a line of the context
        sarcasm = findings.label(SARCASM, row["sarcasm"], row.place)
        emotion = findings.label(MUSTARD_EMOTIONS, row["emotion"], row.place)
        scores = scores_of(row, MUSTARD_RANGES, findings)
        if sarcasm is None or emotion is None or scores is None:
            continue
        labels: dict[str, str | float] = {"emotion": emotion, "sarcasm": sarcasm, **scores}
        if sarcasm == "sarcastic":
            kind = findings.label(MUSTARD_TYPES, row["type"], row.place)
            if kind is None:
                continue
            labels["sarcasm_type"] = kind
        clip_id = f"{row['scene']}_u"
        yield Clip(
            id=clip_id,
            video=videos.path_of(clip_id),
            text=row["text"] or None,
            dataset="mustard_plus_plus",
            labels=labels,
            speaker=_speaker(row["speaker"], row["scene"]),
            tags=(SARCASM_TAG,) if sarcasm == "sarcastic" else (),
        )


MUSTARD_PLUS_PLUS = Importer(
    name="mustard-plus-plus",
    title="MUStARD++",
    read=read_mustard_plus_plus,
    layout=(
        "mustard++_text.csv: SCENE, KEY, SENTENCE, END_TIME, SPEAKER, SHOW, Sarcasm, Sarcasm_Type,",
        "  Implicit_Emotion, Explicit_Emotion, Valence, Arousal",
        "final_utterance_videos/<scene>_u.mp4",
    ),
    licence="The annotations are of IIT Bombay (github.com/cfiltnlp/MUStARD_Plus_Plus); the clips are of series and"
    " belong to their owners.",
    published={"": 1202},
    options={"emotion": Option("the emotion that is hidden, or that which is shown", "hidden", ("hidden", "shown"))},
)

# UR-FUNNY

HUMOR = Vocabulary("humor", ("humorous", "not humorous"), {"1": "humorous", "0": "not humorous"})
UR_FUNNY_FILES = ("data_folds", "humor_label_sdk", "language_sdk")


def read_ur_funny(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the parts of talks of every split; the words of a clip are its context and its last sentence."""
    folds, labels, words = (_converted(stem, request) for stem in UR_FUNNY_FILES)
    folder = any_of(request.source, ("urfunny2_videos", "*/urfunny2_videos"))
    videos = MediaFolder(folder or request.source / "urfunny2_videos")
    for fold, ids in folds.items():
        if not isinstance(ids, list):
            raise DatasetError("data_folds.json", expected="split -> a list of ids", got=f"{fold}: {ids!r:.60}")
        if not request.wants(plain_split(fold)):
            continue
        for clip_id in map(str, ids):
            humor = findings.label(HUMOR, str(labels.get(clip_id, "")), f"{fold} {clip_id}")
            if humor is None:
                continue
            spoken = words.get(clip_id, {})
            if not isinstance(spoken, dict):
                got = f"{clip_id}: {spoken!r:.60}"
                raise DatasetError("language_sdk.json", expected="id -> an object of sentences", got=got)
            sentences = [*(spoken.get("context_sentences") or ()), spoken.get("punchline_sentence") or ""]
            yield Clip(
                id=clip_id,
                video=videos.path_of(clip_id),
                text=" ".join(filter(None, map(_sentence, sentences))) or None,
                split=plain_split(fold),
                dataset="ur_funny",
                labels={"humor": humor},
            )


def _converted(stem: str, request: Request) -> dict[str, Any]:
    """Return one of the dictionaries of the release, from JSON.

    Raises:
        DatasetError: there is no such file, or only the pickle.
    """
    if path := any_of(request.source, (f"{stem}.json", f"*/{stem}.json")):
        document: dict[str, Any] = read_json(path, dict, request.encoding)
        return document
    pickled = any_of(request.source, (f"{stem}.pkl", f"*/{stem}.pkl"))
    raise DatasetError(
        str(request.source),
        expected=f"{stem}.json",
        got=f"{pickled.name}, a pickle, which could run code" if pickled else contents(request.source),
        next_step="Convert the pickles that you trust as docs/guides/datasets.md shows.",
    )


def _sentence(words: str | Sequence[str]) -> str:
    """Return a sentence that is a text or a list of words."""
    return (words if isinstance(words, str) else " ".join(map(str, words))).strip()


UR_FUNNY = Importer(
    name="ur-funny",
    title="UR-FUNNY (version 2)",
    read=read_ur_funny,
    layout=(
        "data_folds.json: train, dev, test -> ids; humor_label_sdk.json: id -> 0 or 1",
        "language_sdk.json: id -> punchline_sentence, context_sentences; all converted from the pickles",
        "urfunny2_videos/<id>.mp4",
    ),
    licence="University of Rochester and Carnegie Mellon University; the talks are of TED:"
    " github.com/ROC-HCI/UR-FUNNY.",
    splits=SPLITS,
)
