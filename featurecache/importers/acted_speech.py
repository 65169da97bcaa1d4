"""Acted emotions whose file names are the labels: RAVDESS, CREMA-D, TESS, EmoDB, SAVEE.

Sources: RAVDESS (zenodo.org/records/1188976), CREMA-D (github.com/CheyneyComputerScience/CREMA-D), TESS (University of
Toronto, doi.org/10.5683/SP2/E8H2MF), EmoDB (Burkhardt et al., Interspeech 2005), SAVEE (University of Surrey).

    RAVDESS    24 actors, 8 emotions: 03-01-06-01-02-01-12 is modality, channel, emotion, intensity, sentence,
               repetition, actor
    CREMA-D    91 actors, 6 emotions: 1001_DFA_ANG_XX is actor, sentence, emotion, level; people rated the voice, the
               face, and both
    TESS       2 women, 7 emotions: OAF_back_angry is speaker, word, emotion
    EmoDB      10 Germans, 7 emotions: 03a01Fa is speaker, sentence, emotion (initial of the German word), version
    SAVEE      4 men, 7 emotions: DC_a01, or DC/a01, is speaker, emotion, number

Every file below the folder counts, however the folders are arranged. The files of one recording make one clip: pictures
from its video, sound from its sound file. These sets have no splits: `--split SHARES --group speaker` makes some.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from featurecache.clips.clip_list import Clip
from featurecache.clips.media_files import media_files, media_kind
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Option, Request
from featurecache.importers.findings import Findings, Vocabulary
from featurecache.importers.folders import contents, first_of
from featurecache.importers.tables import read_table

LOSSLESS = (".wav", ".flac", ".aiff")
"""Endings that are preferred where a recording has several files of one kind."""


@dataclass(frozen=True)
class FileNames:
    """How the file names of one dataset say what a recording is."""

    example: str
    pattern: re.Pattern[str]
    """Matches `folder/stem`, with the groups `speaker`, `emotion` and perhaps `sentence` and `tag`."""
    emotions: Vocabulary
    """The codes of the file names are aliases."""
    recording: str = "{recording}"
    """Template of groups that is the same for all files of one recording; it is the id of the clip."""
    speakers: Mapping[str, str] = field(default_factory=dict)
    """Another spelling of a speaker -> speaker."""
    sentences: Mapping[str, str] = field(default_factory=dict)
    """Code of a sentence -> the words that are spoken."""
    carrier: str = ""
    """A sentence with {} for the spoken word, where the group `sentence` is that word."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Code of the group `tag` -> tag of the clip."""


def read_recordings(dataset: str, names: FileNames, request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield one clip per recording, in the order of ids.

    Raises:
        DatasetError: no file has a name of the dataset.
    """
    files: dict[str, dict[str, Path]] = {}
    groups: dict[str, Mapping[str, str]] = {}
    paths = media_files(request.source)
    for path in sorted(paths, key=lambda path: (path.suffix.lower() not in LOSSLESS, path.name, path)):
        match = names.pattern.fullmatch(f"{path.parent.name}/{path.stem}")
        if match is None:
            findings.leave_out(f"no file name such as {names.example}", path.name)
            continue
        recording = names.recording.format(**match.groupdict())
        first = files.setdefault(recording, {}).setdefault(media_kind(path), path)
        groups.setdefault(recording, match.groupdict())
        if first is not path:
            findings.leave_out("another file of a recording", path.relative_to(request.source).as_posix())
    if not files:
        raise DatasetError(
            str(request.source), expected=f"files with names such as {names.example}", got=contents(request.source)
        )
    for recording, group in sorted(groups.items()):
        emotion = findings.label(names.emotions, group["emotion"], recording)
        if emotion is None:
            continue
        sentence = group.get("sentence", "")
        text = names.carrier.format(sentence) if names.carrier else names.sentences.get(sentence)
        tag = names.tags.get(group.get("tag", ""))
        yield Clip(
            id=recording,
            video=files[recording].get("video"),
            audio=files[recording].get("audio"),
            text=text,
            dataset=dataset,
            labels={"emotion": emotion},
            speaker=names.speakers.get(group["speaker"], group["speaker"]),
            tags=(tag,) if tag else (),
        )


def _importer(name: str, title: str, names: FileNames, num_clips: int, layout: str, licence: str) -> Importer:
    """Return the importer of a dataset that needs nothing but its file names."""
    return Importer(
        name=name,
        title=title,
        read=partial(read_recordings, name.replace("-", "_"), names),
        layout=(layout,),
        licence=licence,
        published={"": num_clips},
    )


# RAVDESS

RAVDESS_EMOTIONS = Vocabulary(
    "emotion",
    ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised"),
    {"01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry", "06": "fearful", "07": "disgust",
     "08": "surprised"},
)  # fmt: skip
RAVDESS_NAMES = FileNames(
    example="03-01-06-01-02-01-12",
    pattern=re.compile(
        r"[^/]*/0[123]-(?P<recording>0[12]-(?P<emotion>\d\d)-(?P<tag>\d\d)-(?P<sentence>\d\d)-\d\d-(?P<speaker>\d\d))"
    ),
    emotions=RAVDESS_EMOTIONS,
    sentences={"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."},
    tags={"02": "strong"},
)
RAVDESS_CHANNELS = {"01": "speech", "02": "song"}
RAVDESS_COUNTS = {"speech": 1440, "song": 1012, "both": 2452}
"""Channel -> recordings; one actor has no songs."""


def read_ravdess(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield the recordings of one channel, or of both; the id is the file name without its modality."""
    chosen = request.options["channel"]
    findings.published[""] = RAVDESS_COUNTS[chosen]
    for clip in read_recordings("ravdess", RAVDESS_NAMES, request, findings):
        channel = RAVDESS_CHANNELS[clip.id[:2]]
        if chosen in ("both", channel):
            yield replace(clip, tags=(*clip.tags, "song")) if channel == "song" else clip
        else:
            findings.leave_out(f"{channel} (--option channel=…)", clip.id)


RAVDESS = Importer(
    name="ravdess",
    title="RAVDESS",
    read=read_ravdess,
    layout=(
        "Actor_<n>/<modality>-<channel>-<emotion>-<intensity>-<sentence>-<repetition>-<n>.{wav,mp4}, in any folders;",
        "  modality 01 is a video with sound, 02 a video without, 03 the sound",
    ),
    licence="Ryerson University (Livingstone and Russo), CC BY-NC-SA 4.0: zenodo.org/records/1188976.",
    options={"channel": Option("speech, songs, or both", "speech", ("speech", "song", "both"))},
)

# CREMA-D

CREMA_D_EMOTIONS = Vocabulary(
    "emotion",
    ("anger", "disgust", "fear", "happy", "neutral", "sad"),
    {"ang": "anger", "dis": "disgust", "fea": "fear", "hap": "happy", "neu": "neutral", "a": "anger", "d": "disgust",
     "f": "fear", "h": "happy", "n": "neutral", "s": "sad"},
)  # fmt: skip
CREMA_D_NAMES = FileNames(
    example="1001_DFA_ANG_XX",
    pattern=re.compile(
        r"[^/]*/(?P<recording>(?P<speaker>\d{4})_(?P<sentence>[A-Z]{3})_(?P<emotion>[A-Z]{3})_(?P<tag>[A-Z]{1,2}))"
    ),
    emotions=CREMA_D_EMOTIONS,
    sentences={
        "IEO": "It's eleven o'clock.",
        "TIE": "That is exactly what happened.",
        "IOM": "I'm on my way to the meeting.",
        "IWW": "I wonder what this is about.",
        "TAI": "The airplane is almost full.",
        "MTI": "Maybe tomorrow it will be cold.",
        "IWL": "I would like a new alarm clock.",
        "ITH": "I think I have a doctor's appointment.",
        "DFA": "Don't forget a jacket.",
        "ITS": "I think I've seen this before.",
        "TSI": "The surface is slick.",
        "WSI": "We'll stop in a couple of minutes.",
    },
    tags={"LO": "low", "MD": "medium", "HI": "high"},
)
CREMA_D_VOTES = {"voice": "VoiceVote", "face": "FaceVote", "both": "MultiModalVote"}
"""What the raters were shown -> column of their vote, which holds several letters if they did not agree: `A:D`."""


def read_crema_d(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every recording, with the emotion that the actor was asked for, or with that which people saw or heard."""
    clips = read_recordings("crema_d", CREMA_D_NAMES, request, findings)
    if request.options["labels"] == "intended":
        yield from clips
        return
    candidates = [f"{root}processedResults/summaryTable.csv" for root in ("", "data/InfoAndStats/")]
    table = first_of(request.source, [*candidates, "summaryTable.csv"], "the table of votes")
    columns = {"name": ("FileName",), "vote": (CREMA_D_VOTES[request.options["labels"]],)}
    votes = {row["name"]: row for row in read_table(table, columns, encoding=request.encoding)}
    for clip in clips:
        row = votes.get(clip.id)
        if row is None:
            findings.leave_out("no vote", clip.id)
        elif ":" in row["vote"]:
            findings.leave_out("the raters did not agree", clip.id)
        elif emotion := findings.label(CREMA_D_EMOTIONS, row["vote"], row.place):
            yield replace(clip, labels={"emotion": emotion})


CREMA_D = Importer(
    name="crema-d",
    title="CREMA-D",
    read=read_crema_d,
    layout=(
        "{VideoFlash,AudioWAV}/<actor>_<sentence>_<emotion>_<level>.{flv,wav}",
        "processedResults/summaryTable.csv: FileName, VoiceVote, FaceVote, MultiModalVote (--option labels=voice, …)",
    ),
    licence="Cheyney University and others, Open Database License: github.com/CheyneyComputerScience/CREMA-D.",
    published={"": 7442},
    options={
        "labels": Option(
            "what the actor meant, or what most raters took for it from voice, face or both",
            "intended",
            ("intended", *CREMA_D_VOTES),
        )
    },
)

# TESS

TESS_EMOTIONS = Vocabulary(
    "emotion",
    ("angry", "disgust", "fear", "happy", "neutral", "pleasant surprise", "sad"),
    {"ps": "pleasant surprise"},
)
TESS = _importer(
    "tess",
    "TESS",
    FileNames(
        example="OAF_back_angry",
        # One file of the release is named OA_bite_neutral.
        pattern=re.compile(r"[^/]*/(?P<recording>(?P<speaker>OAF?|YAF)_(?P<sentence>[a-z]+)_(?P<emotion>[a-z]+))"),
        emotions=TESS_EMOTIONS,
        speakers={"OA": "OAF"},
        carrier="Say the word {}.",
    ),
    2800,
    "{OAF,YAF}_<emotion>/{OAF,YAF}_<word>_<emotion>.wav, in any folders",
    "University of Toronto (Pichora-Fuller and Dupuis), CC BY-NC-ND 4.0: doi.org/10.5683/SP2/E8H2MF.",
)

# EmoDB

EMODB_EMOTIONS = Vocabulary(
    "emotion",
    ("anger", "boredom", "disgust", "fear", "happiness", "sadness", "neutral"),
    {"w": "anger", "l": "boredom", "e": "disgust", "a": "fear", "f": "happiness", "t": "sadness", "n": "neutral"},
)
EMODB = _importer(
    "emodb",
    "EmoDB",
    FileNames(
        example="03a01Fa",
        pattern=re.compile(r"[^/]*/(?P<recording>(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[A-Z])[a-z]?)"),
        emotions=EMODB_EMOTIONS,
        sentences={
            "a01": "Der Lappen liegt auf dem Eisschrank.",
            "a02": "Das will sie am Mittwoch abgeben.",
            "a04": "Heute abend könnte ich es ihm sagen.",
            "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
            "a07": "In sieben Stunden wird es soweit sein.",
            "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
            "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
            "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
            "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
            "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
        },
    ),
    535,
    "wav/<speaker><sentence><emotion><version>.wav",
    "Technical University of Berlin (Burkhardt et al.): emodb.bilderbar.info.",
)

# SAVEE

SAVEE_EMOTIONS = Vocabulary(
    "emotion",
    ("anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"),
    {"a": "anger", "d": "disgust", "f": "fear", "h": "happiness", "n": "neutral", "sa": "sadness", "su": "surprise"},
)
SAVEE = _importer(
    "savee",
    "SAVEE",
    FileNames(
        example="DC_a01 or DC/a01",
        pattern=re.compile(r"(?:[^/]*/)?(?P<speaker>DC|JE|JK|KL)[_/](?P<emotion>[a-z]{1,2})(?P<number>\d{1,2})"),
        emotions=SAVEE_EMOTIONS,
        recording="{speaker}_{emotion}{number:0>2}",
    ),
    480,
    "AudioData/<speaker>/<emotion><n>.wav, AudioVisualClip/<speaker>/<emotion><n>.avi, or <speaker>_<emotion><n>.wav",
    "University of Surrey, for research after registration: kahlan.eps.surrey.ac.uk/savee.",
)
