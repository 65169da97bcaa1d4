"""What is asked of every clip, settled once: the task, the words, the closed set of answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featurecache.clips.clip_list import Clip
from featurecache.errors import suggest
from fusion_train.errors import ConfigError
from fusion_train.prompts.prompt import Task, find_task
from fusion_train.remote.processing_emotion_llama import EmotionLlamaProcessor

MAX_NEW_TOKENS = 200


@dataclass(frozen=True)
class Question:
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


def make_question(
    processor: EmotionLlamaProcessor,
    task: str | None,
    words: str | None = None,
    choices: Sequence[str] = (),
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> Question:
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
    return Question(found, (words or "").strip() or None, tuple(choices), max_new_tokens)
