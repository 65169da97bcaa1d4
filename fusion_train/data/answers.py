"""Find the answers of a clip to a task: a label, several labels, a number, a text, or a rationale that ends in a label.

A rationale argues for one label task: the label task that the clip's response names; else the emotion; else, if the
clip has no emotion, its first label. The rationale's question, its conclusion and the label that replaces it are those
of that label task. Knows the clip list, not the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.responses import response_texts
from featurecache.outside_text import shown
from fusion_train.config import DataConfig
from fusion_train.errors import DataError
from fusion_train.prompts.limits import longest
from fusion_train.prompts.prompt import MAX_ANSWER_TOKENS, TASKS, PromptFormat, Task, encode_answer, think_answer

LabelSets = Mapping[str, Mapping[str, Sequence[str]]]
"""Dataset -> label task -> closed set of answers, sorted."""
PLAIN = PromptFormat()


@dataclass(frozen=True)
class ClipAnswer:
    """One answer of a clip to a task."""

    task: Task
    """The task; for a rationale, the task for the label task that it argues for."""
    text: str
    """Empty if the clip list has an empty text among several."""
    question: str | None = None
    """The clip's own question, which replaces the task's instruction."""


def closed_set(sets: LabelSets, clip: Clip, task: Task) -> tuple[str, ...]:
    """Return the labels that `task` chooses among for clips of this dataset; empty for open tasks."""
    return () if task.closed_key is None else tuple(sets.get(clip.dataset or "", {}).get(task.closed_key, ()))


def answer_of(clip: Clip, task: Task) -> str | None:
    """Return the first answer of a clip to a task, or None."""
    return next((answer.text for answer in answers_of(clip, task)), None)


def with_answers(clips: ClipList, task: Task) -> list[Clip]:
    """Return the clips that have an answer to a task.

    Raises:
        DataError: no clip has one.
    """
    answered = [clip for clip in clips if answers_of(clip, task)]
    if not answered:
        raise DataError(
            f'task "{task.full_name}"',
            expected="clips with an answer to it",
            got=f"none of {len(clips)} clips",
            next_step="Choose another with --task, or add it to the clip list.",
        )
    return answered


def answers_of(clip: Clip, task: Task, form: PromptFormat = PLAIN) -> list[ClipAnswer]:
    """Return every answer of a clip to a task that is not empty.

    Args:
        form: how labels are joined, and whether texts are trimmed.

    Raises:
        DataError: the task is answered with one label, and the list has several.
    """
    return [answer for answer in listed_answers(clip, task, form) if answer.text]


def listed_answers(clip: Clip, task: Task, form: PromptFormat = PLAIN) -> list[ClipAnswer]:
    """Return the answers as `answers_of` does, and also the empty texts that the list has among several."""
    if task.answer == "label":
        value = clip.labels.get(task.key)
        if value is not None and not isinstance(value, str):
            raise DataError(
                clip.id,
                expected=f"one label for the task {task.name}",
                got=f"labels.{task.key}: {shown(value)}",
                next_step="Give it one name of a class; lists of labels are for the tasks multi-label and openset.",
            )
        return [] if value is None else [ClipAnswer(task, value)]
    if task.answer == "number":
        value = clip.labels.get(task.key)
        return [] if value is None else [ClipAnswer(task, repr(float(value)))]
    if task.answer == "labels":
        value = clip.labels.get(task.key)
        joined = _joined(value, task, form) if isinstance(value, list | tuple) else None
        return [] if joined is None else [ClipAnswer(task, joined)]
    texts: list[tuple[str | None, str | None, str]] = []  # question of the clip, label task of a rationale, text
    texts += [(None, label_task, text) for label_task, text in response_texts(clip.responses.get(task.key))]
    texts += [(question.question, None, question.answer) for question in clip.questions if question.task == task.name]
    answers = [_text_answer(clip, task, label_task, text, question, form) for question, label_task, text in texts]
    return [answer for answer in answers if answer is not None]


def _text_answer(
    clip: Clip, task: Task, label_task: str | None, text: str, question: str | None, form: PromptFormat
) -> ClipAnswer | None:
    """Return a text as an answer; None if it argues for a label task that `task` excludes, or has no conclusion.

    Args:
        label_task: the label task that the response names; None if it names none.
    """
    if task.argues:
        argued = TASKS[task.name].among(clip.labels) if label_task is None else task.about(label_task)
        if task.settled and argued.label != task.label:
            return None
        task = argued
    if not text.strip():
        return ClipAnswer(task, "", question)
    text = text if form.verbatim else text.strip()
    if task.answer == "think" and "<answer>" not in text:
        conclusion = _conclusion(clip, task.label, form)
        if conclusion is None:
            return None
        text = think_answer(text, conclusion)
    return ClipAnswer(task, text, question)


def _conclusion(clip: Clip, label_task: str, form: PromptFormat) -> str | None:
    """Return the label, or the joined labels, that a rationale ends in."""
    value = clip.labels.get(label_task)
    if isinstance(value, list | tuple):
        return _joined(value, TASKS.get(label_task), form)
    return None if value is None else str(value)


def _joined(labels: Sequence[Any], task: Task | None, form: PromptFormat) -> str | None:
    return form.label_separator.join(map(str, labels)) or (task.empty if task is not None else None)


@dataclass(frozen=True)
class AnswerLimits:
    """How long an answer may be to be trained on."""

    tokens: int = MAX_ANSWER_TOKENS
    words: int | None = None
    count_tokens: Callable[[str], int] = len
    cut: bool = False
    """Whether an answer that is too long is cut if the clip has no label that replaces it."""

    def shortened(self, answer: str) -> str:
        """Return the longest beginning of an answer that is not too long."""
        return answer[: longest(len(answer), lambda count: not self.exceeded_by(answer[:count]))].rstrip()

    def exceeded_by(self, answer: str) -> bool:
        return self.count_tokens(answer) > self.tokens or (self.words is not None and len(answer.split()) > self.words)

    def fits(self, answer: ClipAnswer) -> bool:
        """Return whether an answer can be trained on; labels are never too long."""
        free_text = answer.task.answer in ("response", "think")
        return bool(answer.text) and not (free_text and self.exceeded_by(answer.text))


def answer_limits(data: DataConfig, tokenizer: Any) -> AnswerLimits:
    """Return the limits of a run; a probe is trained on labels only and has no tokenizer."""
    return AnswerLimits(
        data.max_answer_tokens,
        data.max_answer_words,
        lambda text: len(encode_answer(tokenizer, text)),
        cut=data.too_long == "cut",
    )
