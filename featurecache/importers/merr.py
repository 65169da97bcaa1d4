"""MERR: unlabelled clips of MER2023 that models annotated with an emotion, a caption and a rationale.

Source: Emotion-LLaMA (NeurIPS 2024). Text files with lines `video_name n_frames emotion valence`, and JSON objects of
clip name -> descriptions. The rationale is `smp_reason_caption` (fine-grained) or `caption` (coarse); where a clip has
both, the fine-grained one is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from featurecache.clips.clip_list import Clip
from featurecache.errors import DatasetError
from featurecache.importers import Importer, Request
from featurecache.importers.findings import Findings, Vocabulary, scores, texts
from featurecache.importers.folders import MediaFolder, any_of, contents
from featurecache.importers.mer import EMOTIONS, LANGUAGE, LICENCE, subtitles
from featurecache.importers.tables import read_json, read_lines

MERR_EMOTIONS = Vocabulary(
    "emotion",
    (*EMOTIONS.labels, "fear", "contempt", "doubt", "disgust"),
    {**EMOTIONS.aliases, "fearful": "fear", "disgusted": "disgust"},
)
LABEL_FILES = ("*fine*grained*.txt", "*coarse*grained*.txt", "*relative*.txt", "MERR*.txt")
REASON_KEYS = ("smp_reason_caption", "reason_caption", "caption")
WORDS_PER_LINE = 4


def read(request: Request, findings: Findings) -> Iterator[Clip]:
    """Yield every clip that the text files or the JSON files name."""
    descriptions = _descriptions(request)
    label_files = [path for pattern in LABEL_FILES if (path := any_of(request.source, (pattern, f"*/{pattern}")))]
    labelled: dict[str, tuple[str, list[str]]] = {}
    for path in dict.fromkeys(label_files):
        for place, line in read_lines(path, request.encoding):
            words = line.split()
            if len(words) < WORDS_PER_LINE - 1:
                got = f"{place}: {line[:60]}"
                raise DatasetError(str(path), expected="lines of video_name n_frames emotion valence", got=got)
            labelled.setdefault(words[0], (place, words))
    if not descriptions and not labelled:
        raise DatasetError(
            str(request.source),
            expected="MERR_*_grained.json or " + ", ".join(LABEL_FILES),
            got=contents(request.source),
        )
    text_of = subtitles(request, findings)
    folder = any_of(request.source, ("video", "videos", "clips"))
    videos = MediaFolder(folder or request.source, deep=True)
    for clip_id in dict.fromkeys([*labelled, *descriptions]):
        description = descriptions.get(clip_id, {})
        labels = {}
        if clip_id in labelled:
            place, words = labelled[clip_id]
            emotion = findings.label(MERR_EMOTIONS, words[2], place)
            if emotion is None:
                continue
            labels = {"emotion": emotion, **scores(valence=words[3] if len(words) >= WORDS_PER_LINE else None)}
        reason = next((str(description[key]) for key in REASON_KEYS if description.get(key)), None)
        peak = str(description.get("peak_index", ""))
        yield Clip(
            id=clip_id,
            video=videos.path_of(clip_id),
            text=str(description.get("text") or "") or text_of.get(clip_id) or None,
            split="train",
            dataset="merr",
            labels=labels,
            responses=texts(reason=reason),
            peak_frame=int(peak) if peak.isdigit() else None,
        )


def _descriptions(request: Request) -> dict[str, Mapping[str, Any]]:
    """Return clip name -> descriptions, fine-grained before coarse."""
    descriptions: dict[str, Mapping[str, Any]] = {}
    for pattern in ("*fine*grained*.json", "*coarse*grained*.json"):
        path = any_of(request.source, (pattern, f"*/{pattern}"))
        if path is None:
            continue
        for clip_id, description in read_json(path, dict, request.encoding).items():
            if not isinstance(description, dict):
                raise DatasetError(str(path), expected="clip name -> an object", got=f"{clip_id}: {description!r:.60}")
            descriptions.setdefault(clip_id, description)
    return descriptions


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
