"""What the clip list answers to a task: a label, several labels, a text, or a rationale that concludes with a label.

A rationale argues for one label task: the one that the clip's response names, else the emotion or, where the clip has
no emotion, its first label. Its question, its conclusion and the label that stands in for it are those of that label
task. Knows the clip list, not the store.
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
class Answer:
    """One answer of a clip to a task."""

    task: Task
    """The task; of a rationale, for the label task that it argues for."""
    text: str
    """Empty where the clip list has an empty text among several."""
    question: str | None = None
    """Of the clip's own, in place of the task's instruction."""


def closed_set(sets: LabelSets, clip: Clip, task: Task) -> tuple[str, ...]:
    """Labels that `task` chooses among for a clip of this dataset; empty for open tasks."""
    return () if task.closed_key is None else tuple(sets.get(clip.dataset or "", {}).get(task.closed_key, ()))


def answer_of(clip: Clip, task: Task) -> str | None:
    """The answer the clip list gives to a task, the first where there are several, or None."""
    return next((answer.text for answer in answers_of(clip, task)), None)


def with_answers(clips: ClipList, task: Task) -> list[Clip]:
    """Clips that the list has an answer for.

    Raises:
        DataError: there is none.
    """
    found = [clip for clip in clips if answers_of(clip, task)]
    if not found:
        raise DataError(
            f'task "{task.full_name}"',
            expected="clips with an answer to it",
            got=f"none of {len(clips)} clips",
            next_step="Choose another with --task, or add it to the clip list.",
        )
    return found


def answers_of(clip: Clip, task: Task, form: PromptFormat = PLAIN) -> list[Answer]:
    """Every answer that the clip list has for a task; `form` says how labels are joined and whether texts are trimmed.

    Raises:
        DataError: the task is answered with one label, and the list has several.
    """
    return [answer for answer in listed_answers(clip, task, form) if answer.text]


def listed_answers(clip: Clip, task: Task, form: PromptFormat = PLAIN) -> list[Answer]:
    """As `answers_of`, with the empty texts that stand for answers that were not written."""
    if task.answer == "label":
        value = clip.labels.get(task.key)
        if value is not None and not isinstance(value, str):
            raise DataError(
                clip.id,
                expected=f"one label for the task {task.name}",
                got=f"labels.{task.key}: {shown(value)}",
                next_step="Give it one name of a class; lists of labels are for the tasks multi-label and openset.",
            )
        return [] if value is None else [Answer(task, value)]
    if task.answer == "labels":
        value = clip.labels.get(task.key)
        joined = _joined(value, task, form) if isinstance(value, list | tuple) else None
        return [] if joined is None else [Answer(task, joined)]
    found = [(None, label, text) for label, text in response_texts(clip.responses.get(task.key))]
    found += [(one.question, None, one.answer) for one in clip.questions if one.task == task.name]
    answers = [_written(clip, task, label, text, question, form) for question, label, text in found]
    return [answer for answer in answers if answer is not None]


def _written(
    clip: Clip, task: Task, label: str | None, text: str, question: str | None, form: PromptFormat
) -> Answer | None:
    """A text as an answer; None where it argues for another label task than asked, or has no conclusion."""
    if task.argues:
        argued = TASKS[task.name].among(clip.labels) if label is None else task.about(label)
        if task.settled and argued.label != task.label:
            return None
        task = argued
    if not text.strip():
        return Answer(task, "", question)
    text = text if form.verbatim else text.strip()
    if task.answer == "think" and "<answer>" not in text:
        conclusion = _conclusion(clip, task.label, form)
        if conclusion is None:
            return None
        text = think_answer(text, conclusion)
    return Answer(task, text, question)


def _conclusion(clip: Clip, label_task: str, form: PromptFormat) -> str | None:
    value = clip.labels.get(label_task)
    if isinstance(value, list | tuple):
        return _joined(value, TASKS.get(label_task), form)
    return None if value is None else str(value)


def _joined(labels: Sequence[Any], task: Task | None, form: PromptFormat) -> str | None:
    return form.label_separator.join(map(str, labels)) or (task.empty if task is not None else None)


@dataclass(frozen=True)
class AnswerLimits:
    """What is too long to be trained on."""

    tokens: int = MAX_ANSWER_TOKENS
    words: int | None = None
    count_tokens: Callable[[str], int] = len
    cut: bool = False
    """Whether an answer that is too long is cut, where a clip has no label to fall back to."""

    def shortened(self, answer: str) -> str:
        """The longest beginning of an answer that is not too long."""
        return answer[: longest(len(answer), lambda count: not self.exceeded_by(answer[:count]))].rstrip()

    def exceeded_by(self, answer: str) -> bool:
        return self.count_tokens(answer) > self.tokens or (self.words is not None and len(answer.split()) > self.words)

    def fits(self, answer: Answer) -> bool:
        """Whether an answer can be trained on; labels are never too long."""
        free = answer.task.answer in ("response", "think")
        return bool(answer.text) and not (free and self.exceeded_by(answer.text))


def answer_limits(data: DataConfig, tokenizer: Any) -> AnswerLimits:
    """The limits of a run; a probe, which has no tokenizer, is taught labels alone."""
    return AnswerLimits(
        data.max_answer_tokens,
        data.max_answer_words,
        lambda text: len(encode_answer(tokenizer, text)),
        cut=data.too_long == "cut",
    )
