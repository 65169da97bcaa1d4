"""The clip list: the clips of a dataset, the paths of their media, and their labels and texts.

A clip list is a JSONL file with one line per clip. CSV, and with pyarrow Parquet, are read too:

    {"id": "a1", "video": "clips/a1.mp4", "text": "I see.", "split": "train", "dataset": "demo",
     "labels": {"emotion": "happy", "sentiment_score": 1.8}, "responses": {"reason": "…"},
     "questions": [{"task": "vqa", "question": "…", "answer": "…"}], "speaker": "Ann", "dialogue": "7",
     "session": "Session1", "person": "the woman",
     "tags": ["sarcasm"], "peak_frame": 12, "start_s": 0.5, "end_s": 2.5, "duration_s": 2.0, "crop": {"right": 0.5},
     "mute": true}

`id` and at least one of `video`, `audio`, `image` or `text` are required; media paths are relative to the list. A label
is a string, a list of strings or, if its name ends in `_score`, a number; null and NaN mean that there is no label. A
response is a text, a list of texts, or an object from label task to text (`responses`). All problems of a list are
reported together, each with its line. This module opens no media file.

File names may be spelt in another Unicode form than the list spells them: macOS writes é as e and an accent (NFD),
tables mostly use one character (NFC). Linux treats these as two names, so paths are compared in NFC where a file is
not found (`with_media_found`).
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, overload

from featurecache.clips.clip_rows import SCORE_SUFFIX, csv_rows, parquet_rows
from featurecache.clips.crop import Crop, parse_crop
from featurecache.clips.responses import Response, is_missing, response_problem, without_nulls
from featurecache.errors import ClipListError, suggest
from featurecache.files.jsonl import read_objects
from featurecache.outside_text import first_ids, shown

MEDIA_KINDS = ("video", "audio", "image")
MAX_ID_BYTES = 255
MAX_FRAMES = 2**31
MAX_UNKNOWN_KEYS = 3
MAX_DEPTH = 9
"""Nesting depth to which values are searched for invalid text; deeper values are refused by their own rule."""
NO_VALUES = frozenset({"nan", "NaN", "NAN", "null", "NULL", "None", "<NA>", "NaT"})
"""Texts that programs write for a missing value; none of them is a class."""


@dataclass(frozen=True)
class Question:
    """One question about a clip, and its answer; without a question, the task's instruction is the question."""

    task: str
    answer: str
    question: str | None = None


@dataclass(frozen=True)
class Clip:
    """One clip, with media paths resolved against the list's folder and all other values as in the list."""

    id: str
    video: Path | None = None
    audio: Path | None = None
    """Sound in a separate file; without it the sound track of `video` is used."""
    image: Path | None = None
    """A still image; it is the global frame even if the clip has a video."""
    text: str | None = None
    split: str | None = None
    dataset: str | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)
    responses: Mapping[str, Response] = field(default_factory=dict)
    """Task -> text, list of texts, or object from label task to a text that argues for its label; see `responses`."""
    questions: tuple[Question, ...] = ()
    """Any number per task: captions, questions about a picture."""
    person: str | None = None
    """The person that the clip is about, in the words of a prompt: `the woman`."""
    speaker: str | None = None
    dialogue: str | None = None
    """Clips of one dialogue (or speaker) depend on each other; confidence intervals are clustered by it."""
    session: str | None = None
    """Recording session, which several dialogues and speakers share; folds may be divided by it."""
    tags: tuple[str, ...] = ()
    """Properties of the clip (sarcasm, …); scores are also reported per tag, for clips with it and without it."""
    peak_frame: int | None = None
    """Index of the frame of strongest expression among the decoded frames of the clip."""
    start_s: float | None = None
    end_s: float | None = None
    duration_s: float | None = None
    """Length of the clip by the dataset's table; clips whose files have a very different length are reported."""
    crop: Crop | None = None
    """The part of every picture that this clip is about."""
    mute: bool = False
    """Whether the sound is not that of the person, who is seen while another speaks; no encoder hears it."""


class ClipList(Sequence[Clip]):
    """Clips in list order, with lookup by id."""

    def __init__(self, clips: Iterable[Clip], notices: Iterable[str] = ()) -> None:
        self._clips = list(clips)
        self.notices = list(notices)
        """Lines about the list for the user."""
        self._by_id: dict[str, Clip] = {}
        repeated: list[str] = []
        for clip in self._clips:
            if clip.id in self._by_id:
                repeated.append(clip.id)
            self._by_id[clip.id] = clip
        if repeated:
            raise ClipListError(
                "clip list", expected="every id once", got=f"{len(repeated)} repeated", problems=repeated
            )

    def __len__(self) -> int:
        return len(self._clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self._clips)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> ClipList: ...
    def __getitem__(self, index: int | slice) -> Clip | ClipList:
        return ClipList(self._clips[index]) if isinstance(index, slice) else self._clips[index]

    @property
    def ids(self) -> list[str]:
        return [clip.id for clip in self._clips]

    @property
    def splits(self) -> list[str]:
        """Sorted names of all splits."""
        return sorted({clip.split for clip in self._clips if clip.split})

    def by_id(self, clip_id: str) -> Clip:
        """Return the clip of an id.

        Raises:
            ClipListError: no clip has this id; the nearest id is suggested.
        """
        try:
            return self._by_id[clip_id]
        except KeyError:
            raise ClipListError(
                clip_id, got="no clip of this id in the list", next_step=suggest(clip_id, self._by_id).strip() or None
            ) from None

    def in_split(self, split: str) -> ClipList:
        """Return the clips of one split.

        Raises:
            ClipListError: no clip has this split; the existing splits are named.
        """
        clips_of_split = [clip for clip in self._clips if clip.split == split]
        if not clips_of_split:
            raise ClipListError(
                f'split "{split}"',
                expected="one of " + (", ".join(self.splits) or "no split at all: the list names none"),
                got="no clip",
                next_step='Set "split" in the clip list.' + suggest(split, self.splits),
            )
        return ClipList(clips_of_split)


def load_clips(path: str | Path, media_root: str | Path | None = None) -> ClipList:
    """Read and validate a clip list (.jsonl, .csv or .parquet).

    Media paths are resolved against `media_root`, by default the folder of the list, and may not leave it.

    Raises:
        ClipListError: no such file, an unknown ending, an empty list, or lines with problems; all lines are named.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipListError(
            str(path),
            expected="a clip list",
            got="a folder" if path.is_dir() else "no such file",
            next_step='Write one JSON object per line, like {"id": "a1", "video": "a1.mp4"}, and name it with --clips.',
        )
    readers = {".jsonl": read_objects, ".csv": csv_rows, ".parquet": parquet_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ClipListError(str(path), expected="an ending of " + ", ".join(readers), got=repr(path.suffix))
    root = Path(media_root) if media_root is not None else path.parent
    problems: list[str] = []
    clips: list[Clip] = []
    first_line: dict[str, int] = {}
    for line, row in reader(path):
        problem, clip = (row, None) if isinstance(row, str) else parse_row(row, root)
        if problem:
            problems.append(f"line {line}: {problem}")
        if clip is not None:
            if clip.id in first_line:
                problems.append(f'line {line}: id "{clip.id}" stands already on line {first_line[clip.id]}')
            else:
                first_line[clip.id] = line
                clips.append(clip)
    if problems:
        raise ClipListError(
            str(path),
            expected="a valid clip list",
            got=f"{len(problems)} problem{'s' if len(problems) > 1 else ''}",
            next_step="Mend these lines:",
            problems=problems,
        )
    if not clips:
        raise ClipListError(str(path), expected="at least one clip", got="an empty list")
    return with_media_found(clips)


def with_media_found(clips: Iterable[Clip]) -> ClipList:
    """Return the clips with the paths of files whose names have another Unicode form, and a notice about them."""
    resolved: list[Clip] = []
    respelt_ids: list[str] = []
    names_in = lru_cache(maxsize=256)(_names_by_nfc)  # not longer than this call: files may be renamed afterwards
    for clip in clips:
        named = {kind: path for kind in MEDIA_KINDS if (path := getattr(clip, kind)) and not str(path).isascii()}
        respelt: dict[str, Any] = {
            kind: other
            for kind, path in named.items()
            if not path.exists() and (other := _in_other_form(path, names_in))
        }
        respelt_ids += [clip.id] if respelt else []
        resolved.append(replace(clip, **respelt) if respelt else clip)
    count = len(respelt_ids)
    notices = [
        f"media of {count} clip{'s' if count > 1 else ''} found whose names are spelt in another Unicode"
        f" form (as macOS does): {first_ids(respelt_ids)}"
    ]
    return ClipList(resolved, notices if respelt_ids else ())


NamesIn = Callable[[Path], Mapping[str, Sequence[str]]]
"""Folder -> its names, grouped by their NFC form."""


def _in_other_form(path: Path, names_in: NamesIn) -> Path | None:
    """Return the file or folder whose name equals `path` in NFC; None if there is none, or more than one."""
    resolved = Path(path.anchor)
    for part in path.parts[1:] if path.anchor else path.parts:
        if not (resolved / part).exists():
            names = names_in(resolved).get(unicodedata.normalize("NFC", part), ())
            if len(names) != 1:
                return None
            part = names[0]
        resolved /= part
    return resolved


def _names_by_nfc(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return the names in a folder, grouped by their NFC form."""
    names: dict[str, tuple[str, ...]] = {}
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            form = unicodedata.normalize("NFC", entry.name)
            names[form] = (*names.get(form, ()), entry.name)
    return names


_KEYS = [f.name for f in fields(Clip)]
_QUESTION_KEYS = [f.name for f in fields(Question)]


def parse_row(row: dict[str, Any], root: Path) -> tuple[str, Clip | None]:
    """Return the problems of a row as one text, empty if there are none, and its clip.

    A row with problems but a valid id gives a clip with this id only, so that repeated ids are reported too.
    """
    problems = _unknown_keys(row) + [
        f"{key}: expected text, got a lone surrogate (half a character of UTF-16)"
        for key in _KEYS
        if key in row and not _is_text(row[key], paths=key in MEDIA_KINDS)
    ]
    clip_id = row.get("id")
    id_problem = _id_problem(clip_id)
    if id_problem:
        problems.append(id_problem)
    values: dict[str, Any] = {}
    for kind in MEDIA_KINDS:
        if row.get(kind) is not None:
            problem = _path_problem(kind, row[kind])
            if problem:
                problems.append(problem)
            else:
                values[kind] = root / row[kind]
    for key in ("text", "split", "dataset", "person", "speaker", "dialogue", "session"):
        value = row.get(key)
        if value is not None and not isinstance(value, str):
            problems.append(f"{key}: expected a string, got {shown(value)}")
        values[key] = value
    for key, problem_of in (("labels", _label_problem), ("responses", _response_problem)):
        value = {} if is_missing(row.get(key)) else row[key]
        if isinstance(value, dict):
            if key == "responses":
                value = {name: without_nulls(item) for name, item in value.items()}
            value = {name: item for name, item in value.items() if not is_missing(item)}
            checked = ((name, problem_of(name, item)) for name, item in value.items())
            problems += islice((f"{key}.{name[:80]}: {wrong}" for name, wrong in checked if wrong), MAX_UNKNOWN_KEYS)
        else:
            problems.append(f"{key}: expected an object of task to value, got {shown(value)}")
        values[key] = value
    tags = () if row.get("tags") is None else row["tags"]
    if isinstance(tags, list | tuple) and all(isinstance(tag, str) and tag for tag in tags):
        values["tags"] = tuple(tags)
    else:
        problems.append(f"tags: expected a list of texts, got {shown(tags)}")
    question_problem, values["questions"] = _questions(() if row.get("questions") is None else row["questions"])
    problems += [question_problem] if question_problem else []
    if row.get("crop") is not None:
        crop_problem, values["crop"] = parse_crop(row["crop"])
        problems += [crop_problem] if crop_problem else []
    peak = row.get("peak_frame")
    if peak is not None and (not isinstance(peak, int) or isinstance(peak, bool) or not 0 <= peak < MAX_FRAMES):
        problems.append(f"peak_frame: expected a whole number from 0, got {shown(peak)}")
    values["peak_frame"] = peak
    mute = False if row.get("mute") is None else row["mute"]
    if not isinstance(mute, bool):
        problems.append(f"mute: expected true or false, got {shown(mute)}")
    elif mute and row.get("audio") is not None:
        problems.append("mute: a clip that is mute has no audio file")
    values["mute"] = mute
    problems += _time_problems(row, values)
    if not any(row.get(key) is not None for key in (*MEDIA_KINDS, "text")):
        problems.append("expected at least one of video, audio, image, text")
    if problems:
        return "; ".join(problems), None if id_problem else Clip(id=str(clip_id))
    return "", Clip(id=str(clip_id), **values)


def _unknown_keys(row: Mapping[str, Any]) -> list[str]:
    unknown = [key for key in row if key not in _KEYS]
    more = [f"{len(unknown) - MAX_UNKNOWN_KEYS} more unknown keys"] if len(unknown) > MAX_UNKNOWN_KEYS else []
    return [f'unknown key "{key[:80]}".{_suggested_key(key)}' for key in unknown[:MAX_UNKNOWN_KEYS]] + more


@lru_cache(1024)
def _suggested_key(key: str) -> str:
    return suggest(key, _KEYS) if len(key) <= MAX_ID_BYTES else ""


def _label_problem(name: str, value: Any) -> str:
    if name.endswith(SCORE_SUFFIX):
        return "" if _is_number(value) else f"expected a number, got {shown(value)}"
    if isinstance(value, list | tuple):
        invalid = [item for item in value if not isinstance(item, str) or not item.strip() or item in NO_VALUES]
        return f"expected a list of names of classes, got {shown(invalid[0])} in it" if invalid else ""
    if not isinstance(value, str):
        return f"expected the name of a class, got {shown(value)}"
    if not value.strip() or value in NO_VALUES:
        return f"expected the name of a class, got {shown(value)}; leave it out, or write null, for no label"
    return ""


def _response_problem(name: str, value: Any) -> str:
    return response_problem(value)


def _is_text(value: Any, *, paths: bool = False, depth: int = 0) -> bool:
    """Whether every text in a value can be encoded as UTF-8; file names may hold bytes that are not UTF-8."""
    if isinstance(value, str):
        try:
            return value.isascii() or bool(value.encode("utf-8", "surrogateescape" if paths else "strict"))
        except UnicodeEncodeError:
            return False
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return depth >= MAX_DEPTH or all(_is_text(item, paths=paths, depth=depth + 1) for item in value)
    return True


def _id_problem(clip_id: Any) -> str:
    if not isinstance(clip_id, str) or not clip_id:
        return f"id: expected a string, got {shown(clip_id)}"
    if len(clip_id.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        return f"id: expected at most {MAX_ID_BYTES} bytes, got {len(clip_id)} characters"
    if not clip_id.isprintable() or clip_id != clip_id.strip():
        return f"id: expected printable text without outer spaces, got {shown(clip_id)}"
    parts = clip_id.split("/")
    if "\\" in clip_id or any(part in ("", ".", "..") for part in parts):
        return f"id: expected no path escape, got {shown(clip_id)}"
    return ""


def _path_problem(kind: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        return f"{kind}: expected a path, got {shown(value)}"
    if value[0] != "/" and not any(mark in value for mark in ("..", "\\", ":")):
        return ""  # nearly every path; the checks below take longer than reading the line
    if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
        return f"{kind}: expected a path relative to the list, got {shown(value)} (for others use --media-root)"
    depth = 0
    for part in PurePosixPath(value).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return f'{kind}: "{value}" leaves the folder of the list (use --media-root for media elsewhere)'
    return ""


def _time_problems(row: dict[str, Any], values: dict[str, Any]) -> list[str]:
    problems = []
    for key in ("start_s", "end_s", "duration_s"):
        value = row.get(key)
        if value is not None and (not _is_number(value) or value < 0):
            problems.append(f"{key}: expected seconds from 0, got {shown(value)}")
            value = None
        values[key] = None if value is None else float(value)
    if values["start_s"] is not None and values["end_s"] is not None and values["end_s"] <= values["start_s"]:
        problems.append(f"end_s: expected more than start_s {values['start_s']}, got {values['end_s']}")
    return problems


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _questions(value: Any) -> tuple[str, tuple[Question, ...]]:
    """Return the first problem of the value, empty if there is none, and the questions."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, dict) for item in value):
        return f"questions: expected a list of objects of {', '.join(_QUESTION_KEYS)}, got {shown(value)}", ()
    for number, item in enumerate(value):
        unknown = [key for key in item if key not in _QUESTION_KEYS]
        if unknown:
            return f'questions[{number}]: unknown key "{unknown[0]}".{suggest(unknown[0], _QUESTION_KEYS)}', ()
        texts = [
            item.get("task"),
            item.get("answer"),
            *([item["question"]] if item.get("question") is not None else []),
        ]
        if not all(isinstance(text, str) and text for text in texts):
            return f"questions[{number}]: expected texts for task and answer, got {shown(item)}", ()
    return "", tuple(Question(**item) for item in value)
