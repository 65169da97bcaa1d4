"""What is asked of every clip, settled once: the task, the words, the closed set of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featurecache.clips.clip_list import Clip, ClipList, load_clips
from featurecache.errors import ClipListError, suggest
from fusion_train.errors import ConfigError
from fusion_train.prompts.prompt import Task, find_task
from fusion_train.remote.processing_emotion_llama import EmotionLlamaProcessor

LISTS = (".jsonl", ".csv", ".parquet")
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
SOUNDS = (".aac", ".aiff", ".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma")
FILMS = (".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


def collect_clips(paths: Sequence[Path], *, split: str | None = None, text: str | None = None) -> ClipList:
    """Clips of every path, in order; the id of a file is its name, in a folder its path inside it.

    Args:
        split: of the clip lists; None takes every clip.
        text: what is said in the clips, where no list says it.

    Raises:
        ClipListError: a path that is not there, a folder without media, a bad list, or one id twice.
    """
    found: list[Clip] = []
    for path in paths:
        if path.suffix.lower() in LISTS:
            listed = load_clips(path)
            found += listed if split is None else listed.in_split(split)
        elif path.is_dir():
            found += _clips_in(path, text)
        elif path.is_file():
            found.append(_clip(path, path.name, text))
        else:
            raise ClipListError(str(path), expected="a media file, a folder or a clip list", got="no such file")
    return ClipList(found)


def _clips_in(folder: Path, text: str | None) -> list[Clip]:
    known = (*FILMS, *SOUNDS, *IMAGES)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not files:
        raise ClipListError(str(folder), expected="media files (" + ", ".join(known) + ")", got="none in this folder")
    return [_clip(path, path.relative_to(folder).as_posix(), text) for path in files]


def _clip(path: Path, clip_id: str, text: str | None) -> Clip:
    kind = {**dict.fromkeys(IMAGES, "image"), **dict.fromkeys(SOUNDS, "audio")}.get(path.suffix.lower(), "video")
    return Clip(id=clip_id, text=text, **{kind: path})


MAX_NEW_TOKENS = 200


@dataclass(frozen=True)
class PredictionRequest:
    """One question, the same for all clips of a prediction."""

    task: Task
    words: str | None = None
    """Asked in place of the task's own instruction."""
    choices: tuple[str, ...] = ()
    """Answers to choose among; without them those of the clip's dataset in training, if the task has such."""
    max_new_tokens: int = MAX_NEW_TOKENS

    def labels(self, processor: EmotionLlamaProcessor, clip: Clip) -> tuple[str, ...]:
        """The closed set that the prompt names: of the clip's dataset where training knew it, else of all."""
        if self.choices:
            return self.choices
        known = clip.dataset is not None and clip.dataset in processor.label_sets
        return processor.labels(self.task.full_name, clip.dataset if known else None)

    def closed(self, labels: Sequence[str]) -> bool:
        """Whether the answer is one of `labels`; other words than the task's own ask for free text."""
        return bool(labels) and (bool(self.choices) or (self.task.answer == "label" and self.words is None))


def make_request(
    processor: EmotionLlamaProcessor,
    task: str | None,
    words: str | None = None,
    choices: Sequence[str] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> PredictionRequest:
    """Settle a question; without a task, the first that the model was trained on.

    Raises:
        ConfigError: no such task.
    """
    trained = processor.tasks or ["emotion"]
    name = task or trained[0]
    try:
        found = find_task(name)
    except ConfigError as error:
        raise ConfigError(
            f'task "{name}"',
            expected="one that the model was trained on: " + ", ".join(trained),
            got="no such task",
            next_step=suggest(name, trained).strip() or None,
        ) from error
    return PredictionRequest(found, (words or "").strip() or None, tuple(choices), max_new_tokens)
