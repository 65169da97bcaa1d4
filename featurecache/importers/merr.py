"""MERR: clips of MER2023 without labels of its own, annotated by models: an emotion, a caption, a reason.

Source: Emotion-LLaMA (NeurIPS 2024). Lines `video_name n_frames emotion valence`; JSON objects of clip name ->
descriptions, of which `smp_reason_caption` (fine-grained) or `caption` (coarse) is the reason. A fine-grained reason is
taken before a coarse one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Request
from featurecache.importers.findings import Findings, Vocabulary, scores, texts
from featurecache.importers.folders import MediaFolder, any_of, contents
from featurecache.importers.mer2023 import LANGUAGE, LICENCE, subtitles
from featurecache.importers.tables import read_json, read_lines

EMOTIONS = Vocabulary(
    "emotion",
    ("neutral", "angry", "happy", "sad", "worried", "surprise", "fear", "contempt", "doubt", "disgust"),
    {"anger": "angry", "happiness": "happy", "sadness": "sad", "worry": "worried", "surprised": "surprise",
     "fearful": "fear", "disgusted": "disgust"},
)  # fmt: skip
LINES = ("*fine*grained*.txt", "*coarse*grained*.txt", "*relative*.txt", "MERR*.txt")
REASONS = ("smp_reason_caption", "reason_caption", "caption")
WORDS_OF_LINE = 4


def read(request: Request, found: Findings) -> Iterator[Clip]:
    """Yield every clip of the lines and of the JSON objects."""
    described = _descriptions(request)
    lines = [path for pattern in LINES if (path := any_of(request.source, (pattern, f"*/{pattern}")))]
    labelled: dict[str, tuple[str, list[str]]] = {}
    for path in dict.fromkeys(lines):
        for place, line in read_lines(path, request.encoding):
            words = line.split()
            if len(words) < WORDS_OF_LINE - 1:
                got = f"{place}: {line[:60]}"
                raise DatasetError(str(path), expected="lines of video_name n_frames emotion valence", got=got)
            labelled.setdefault(words[0], (place, words))
    if not described and not labelled:
        raise DatasetError(
            str(request.source), expected="MERR_*_grained.json or " + ", ".join(LINES), got=contents(request.source)
        )
    said = subtitles(request.source, request, found)
    folder = any_of(request.source, ("video", "videos", "clips"))
    videos = MediaFolder(folder or request.source, deep=True)
    for clip_id in dict.fromkeys([*labelled, *described]):
        about = described.get(clip_id, {})
        labels = {}
        if clip_id in labelled:
            place, words = labelled[clip_id]
            emotion = found.label(EMOTIONS, words[2], place)
            if emotion is None:
                continue
            labels = {"emotion": emotion, **scores(valence=words[3] if len(words) >= WORDS_OF_LINE else None)}
        reason = next((str(about[key]) for key in REASONS if about.get(key)), None)
        peak = str(about.get("peak_index", ""))
        yield Clip(
            id=clip_id,
            video=videos.path_of(clip_id),
            text=str(about.get("text") or "") or said.get(clip_id) or None,
            split="train",
            dataset="merr",
            labels=labels,
            responses=texts(reason=reason),
            peak_frame=int(peak) if peak.isdigit() else None,
        )


def _descriptions(request: Request) -> dict[str, Mapping[str, Any]]:
    described: dict[str, Mapping[str, Any]] = {}
    for pattern in ("*fine*grained*.json", "*coarse*grained*.json"):
        path = any_of(request.source, (pattern, f"*/{pattern}"))
        if path is None:
            continue
        for clip_id, about in read_json(path, dict, request.encoding).items():
            if not isinstance(about, dict):
                raise DatasetError(str(path), expected="clip name -> an object", got=f"{clip_id}: {about!r:.60}")
            described.setdefault(clip_id, about)
    return described


IMPORTER = Importer(
    name="merr",
    title="MERR",
    read=read,
    layout=(
        "MERR_{fine,coarse}_grained.json: clip name -> smp_reason_caption or caption, peak_index, text",
        "MERR_{fine,coarse}_grained.txt: lines of video_name n_frames emotion valence",
        "video/<name>.{mp4,avi}",
    ),
    licence="The annotations are of the authors of Emotion-LLaMA (github.com/ZebangCheng/Emotion-LLaMA); the clips are"
    " those of MER2023. " + LICENCE,
    splits=("train",),
    options={"language": LANGUAGE},
)
