"""From a clip's words, a task and an answer to token ids; the one tokenisation of training, evaluation and export.

    <s>[INST] <Vid>{448 soft}</Vid> The person in video says: {text}.  [{task}] {instruction}  [/INST]{answer}</s>

(two spaces where shown; the published second stage leaves out the period after the text). `<Vid>` and `[task]` are
plain text. The loss is on the answer and `</s>`. A clip without a subtitle has no sentence about what is said.
A task on pictures (`caption`, `vqa`, `refer`) shows the picture alone; its question may be the clip's own.
Source: arXiv 2601.16449; format of the released code at 5f0a408, instructions of our own wording.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fusion_train.errors import ConfigError, DataError, refuse_unknown
from fusion_train.models.token_streams import SOFT_TOKEN
from fusion_train.prompts.encoding_text import Words, encode_text

MAX_TEXT_WORDS = 200
MAX_PROMPT_TOKENS = 3800
MAX_ANSWER_TOKENS = 1024
DROPPED_CHARACTERS = str.maketrans("", "", '.!"()*#:;~')
SPACED_CHARACTERS = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))


@dataclass(frozen=True)
class Task:
    """What is asked, and which part of a clip answers it."""

    name: str
    instruction: str
    """May hold {labels}, the closed set of answers."""
    answer: Literal["label", "labels", "response", "think"]
    """One label, a list of labels, free text, or reasoning with the label in <answer>."""
    key: str
    """Key in the clip's `labels` (label, labels) or `responses` (response, think)."""
    label: str = "emotion"
    """The label task that "think" concludes with and that stands in where a response is empty or too long."""
    empty: str | None = None
    """What an empty list of labels is answered with; None: such a clip is not asked."""
    modalities: tuple[str, ...] = ("audio", "image", "video")
    """What the model is shown; a description of the sound alone is asked of the sound alone."""
    picture: bool = False
    """Asked of general image-text sets: about the picture, not about a person who says something."""
    verbatim: bool = False
    """The answer is notation, such as the corners of a box, and is never cleaned."""

    @property
    def label_key(self) -> str:
        """The label task that an answer comes down to: its own, or the one that it concludes with."""
        return self.key if self.answer == "label" else self.label


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("emotion", "Which emotion does the person show? Answer with one of: {labels}.", "label", "emotion"),
        Task("sentiment", "Is the sentiment of the person one of: {labels}? Answer with it.", "label", "sentiment"),
        Task("intent", "What does the speaker intend? Answer with one of: {labels}.", "label", "intent"),
        Task(
            "multi-label",
            "Which emotions does the person show? Name all that apply, with commas between.",
            "labels",
            "multi-label",
        ),
        Task(
            "openset",
            "Which words describe the emotions of the person best? Name any number, with commas between.",
            "labels",
            "openset",
            empty="neutral",
        ),
        Task("reason", "Which emotion does the person show, and what in face, voice and words tells it?", "response",
             "reason"),
        Task("think", "Weigh face, voice and words step by step, then name the emotion, one of: {labels}.", "think",
             "think"),
        Task("audio", "Describe how the voice sounds.", "response", "audio", modalities=("audio",)),
        Task("image", "Describe the face in the picture.", "response", "image", modalities=("image",)),
        Task("caption", "Describe the picture.", "response", "caption", modalities=("image",), picture=True),
        Task("vqa", "Answer the question about the picture.", "response", "vqa", modalities=("image",), picture=True),
        Task("refer", "Where in the picture is it?", "response", "refer", modalities=("image",), picture=True,
             verbatim=True),
    )
}  # fmt: skip


def find_task(name: str) -> Task:
    """Return a task by name.

    Raises:
        ConfigError: no such task; the near name is suggested.
    """
    refuse_unknown("task", name, TASKS)
    return TASKS[name]


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt is put together. `{soft}`, `{said}`, `{task}`, `{instruction}` and `{text}` are filled in."""

    template: str = "[INST] <Vid>{soft}</Vid>{said}  [{task}] {instruction}  [/INST]"
    picture_template: str | None = None
    """Template of the tasks on pictures, where it is another one."""
    said: str = " The person in video says: {text}."
    said_without_words: bool = False
    """Whether the sentence stands in the prompt of a clip without words too, saying nothing."""
    clean_text: bool = True
    """Lower-case the subtitle and drop . ! " ( ) * # : ; ~"""
    recalled: str = " Clips like this one: {recalled}."
    """What stands after the clip's words where nearest clips are retrieved; they are joined by semicolons."""
    clean_answers: bool = False
    """Lower-case answers, put spaces for . ! " ( ) * # : ; ~ and cut at 200 words, as the released code does."""

    instructions: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """TASK or DATASET/TASK -> what is asked in place of the task's own instruction, the more specific first; may hold
    {labels}. Of several texts one is drawn for each training sample; the first is asked everywhere else."""
    asked_as: Mapping[str, str] = field(default_factory=dict)
    """Task -> what stands between the brackets of the prompt in place of its name."""

    def wordings(self, task: Task, dataset: str | None = None) -> tuple[str, ...]:
        """What may be asked for a task of one dataset; its own instruction where no other is set."""
        for key in (f"{dataset or ''}/{task.name}", task.name):
            if chosen := self.instructions.get(key):
                return (chosen,) if isinstance(chosen, str) else tuple(chosen)
        return (task.instruction,)

    def worded(self, task: Task, dataset: str | None = None, draw: int = 0) -> Task:
        """The task with the instruction that is asked; `draw` chooses among several."""
        wordings = self.wordings(task, dataset)
        return replace(task, instruction=wordings[draw % len(wordings)])

    def render(
        self, text: str | None, task: Task, labels: Sequence[str] = (), instruction: str | None = None
    ) -> tuple[str, str]:
        """Return what stands before and after the soft tokens."""
        before, said, asked = self.pieces(text, task, labels, instruction)
        return str(before), str(said + asked)

    def pieces(
        self, text: str | None, task: Task, labels: Sequence[str] = (), instruction: str | None = None
    ) -> tuple[Words, Words, Words]:
        """Return what stands before the soft tokens, after them up to the clip's words, and from there on.

        Between the last two is the place of what is recalled. The clip's words, the labels and a question of the user's
        are from outside: nothing that they hold is filled in or becomes a control token.
        """
        template = (self.picture_template or self.template) if task.picture else self.template
        before, soft, after = template.partition("{soft}")
        if not soft:
            raise ConfigError("prompt.template", expected="{soft}, the place of the soft tokens", got=template)
        named = Words.outside(", ".join(labels))
        asked = _filled(instruction or task.instruction, {"labels": named}, own=not instruction)
        values = {"task": Words.own(self.asked_as.get(task.name, task.name)), "instruction": asked}
        head, place, tail = after.partition("{said}")
        first = Words.joined((_filled(head, values), self._said(text)))
        return (Words.own(before), first, _filled(tail, values)) if place else (
            Words.own(before), Words(()), _filled(head, values))  # fmt: skip

    def _said(self, text: str | None) -> Words:
        spoken = " ".join((text or "").split()[:MAX_TEXT_WORDS])
        if self.clean_text:
            spoken = spoken.lower().translate(DROPPED_CHARACTERS).strip()
        there = spoken or self.said_without_words
        return _filled(self.said, {"text": Words.outside(spoken)}) if there else Words(())

    def answer(self, text: str, task: Task) -> str:
        """An answer as it is trained on."""
        if not self.clean_answers or task.verbatim:
            return text
        spaced = re.sub(r"\s{2,}", " ", text.lower().translate(SPACED_CHARACTERS)).strip(" \n")
        return " ".join(spaced.split(" ")[:MAX_TEXT_WORDS])


def encode_prompt(
    tokenizer: Any,
    before: Words | str,
    num_soft: int,
    after: Words | str,
    subject: str = "prompt",
    recalled: tuple[Words | str, Sequence[int]] | None = None,
    limit: int | None = MAX_PROMPT_TOKENS,
) -> list[int]:
    """Token ids of a prompt, SOFT_TOKEN at each soft token's place; one BOS where the tokenizer has one.

    Args:
        recalled: what stands between the soft tokens and what is recalled, and the token ids of that; `after` follows.

    Raises:
        DataError: longer than the prompt limit, or a text that is none.
    """
    ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids += encode_text(tokenizer, before, subject)
    ids += [SOFT_TOKEN] * num_soft
    if recalled is not None:
        ids += [*encode_text(tokenizer, recalled[0], subject), *recalled[1]]
    ids += encode_text(tokenizer, after, subject)
    if limit is not None and len(ids) > limit:
        raise DataError(
            subject, expected=f"at most {limit} prompt tokens", got=str(len(ids)),
            next_step="Shorten its text in the clip list.",
        )  # fmt: skip
    return ids


def encode_answer(tokenizer: Any, answer: str) -> list[int]:
    """Token ids of an answer and the end-of-sequence token, which no text in the answer can write."""
    return [*encode_text(tokenizer, answer, "answer"), tokenizer.eos_token_id]


def _filled(template: str, values: Mapping[str, Words], *, own: bool = True) -> Words:
    """The parts of a template with `{name}` replaced, once: braces in what is filled in are text."""
    parts = re.split(r"\{(" + "|".join(values) + r")\}", template)
    words = (values[part] if number % 2 else Words(((part, own),)) for number, part in enumerate(parts))
    return Words.joined(words)


def think_answer(reasoning: str, conclusion: str) -> str:
    """`<think>…</think><answer>…</answer>`."""
    return f"<think>{reasoning}</think><answer>{conclusion}</answer>"
