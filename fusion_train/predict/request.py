"""Define what a prediction asks: which clips (files, folders, clip lists), and one question for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from featurecache.clips.clip_list import Clip, ClipList, load_clips
from featurecache.clips.media_files import MEDIA_SUFFIXES, file_clip, media_files
from featurecache.errors import ClipListError, suggest
from fusion_train.errors import ConfigError
from fusion_train.prompts.prompt import Task, find_task
from fusion_train.remote.clip_processor import ClipProcessor
from fusion_train.remote.processing_emotion_probe import EmotionProbeProcessor

CLIP_LIST_SUFFIXES = (".jsonl", ".csv", ".parquet")
MAX_NEW_TOKENS = 200


def collect_clips(
    paths: Sequence[Path],
    *,
    split: str | None = None,
    text: str | None = None,
    dataset: str | None = None,
    media_root: str | None = None,
) -> ClipList:
    """Return the clips of every path, in order.

    The id of a clip is the name of its file, or its path inside the folder that was named.

    Args:
        paths: media files, folders of media files, or clip lists.
        split: split of the clip lists; None takes every clip.
        text: transcript of the clips that do not come from a clip list.
        dataset: dataset of training whose labels are meant, for clips whose list names none.
        media_root: folder that the media paths of clip lists are relative to; None: the folder of each list.

    Raises:
        ClipListError: a missing path, a folder without media, an invalid list, or two clips with one id.
    """
    clips: list[Clip] = []
    for path in paths:
        if path.suffix.lower() in CLIP_LIST_SUFFIXES:
            listed = load_clips(path, media_root)
            clips += listed if split is None else listed.in_split(split)
        elif path.is_dir():
            clips += _clips_in(path, text)
        elif path.is_file():
            clips.append(file_clip(path, path.name, text))
        else:
            raise ClipListError(str(path), expected="a media file, a folder or a clip list", got="no such file")
    return ClipList(clip if clip.dataset else replace(clip, dataset=dataset) for clip in clips)


def _clips_in(folder: Path, text: str | None) -> list[Clip]:
    files = media_files(folder)
    if not files:
        raise ClipListError(
            str(folder), expected="media files (" + ", ".join(MEDIA_SUFFIXES) + ")", got="none in this folder"
        )
    return [file_clip(path, path.relative_to(folder).as_posix(), text) for path in files]


@dataclass(frozen=True)
class PredictionRequest:
    """The question of a prediction, the same for all clips."""

    task: Task
    words: str | None = None
    """Instruction used instead of the task's own."""
    choices: tuple[str, ...] = ()
    """Answers to choose among. Empty: the labels of the clip's dataset in training, if the task has labels."""
    max_new_tokens: int = MAX_NEW_TOKENS

    def labels(self, processor: ClipProcessor, clip: Clip) -> tuple[str, ...]:
        """Return the closed set that the prompt names: of the clip's dataset if training had it, else of all
        datasets."""
        if self.choices:
            return self.choices
        known = clip.dataset is not None and clip.dataset in processor.label_sets
        return processor.labels(self.task.full_name, clip.dataset if known else None)

    def closed(self, labels: Sequence[str]) -> bool:
        """Whether the answer is one of `labels`; an instruction of the user without choices asks for free text."""
        return bool(labels) and (bool(self.choices) or (self.task.answer == "label" and self.words is None))


def make_request(
    processor: ClipProcessor,
    task: str | None,
    words: str | None = None,
    choices: Sequence[str] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> PredictionRequest:
    """Check the task and return the request.

    Args:
        task: None takes the first task that the model was trained on.
        words: instruction used instead of the task's own.
        choices: answers to choose among.

    Raises:
        ConfigError: no such task, or one that a model without a language model cannot answer.
    """
    trained = processor.tasks or ["emotion"]
    name = task or trained[0]
    try:
        checked_task = find_task(name)
    except ConfigError as error:
        raise ConfigError(
            f'task "{name}"',
            expected="one that the model was trained on: " + ", ".join(trained),
            got="no such task",
            next_step=suggest(name, trained).strip() or None,
        ) from error
    request = PredictionRequest(checked_task, (words or "").strip() or None, tuple(choices), max_new_tokens)
    if isinstance(processor, EmotionProbeProcessor):
        _refuse_unknown_to_a_probe(processor, request)
    return request


def _refuse_unknown_to_a_probe(processor: EmotionProbeProcessor, request: PredictionRequest) -> None:
    """Raise ConfigError if a request is more than a choice among labels of training."""
    known = {label for sets in processor.label_sets.values() for label in sets.get(request.task.closed_key or "", ())}
    unknown = [choice for choice in request.choices if choice not in known]
    if request.words or unknown or request.task.full_name not in processor.tasks:
        raise ConfigError(
            "this model, a probe without a language model",
            expected="one of the tasks " + ", ".join(processor.tasks) + ", with labels of its training",
            got="a question"
            if request.words
            else "the labels " + ", ".join(unknown)
            if unknown
            else f"the task {request.task.full_name}",
            next_step="Ask with --task, without --question, or export a run with a language model.",
        )
