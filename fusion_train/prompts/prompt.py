"""From a clip's words, a task and an answer to token ids; the one tokenisation of training, evaluation and export.

    <s>[INST] <Vid>{448 soft}</Vid> The person in video says: {text}.  [{task}] {instruction}  [/INST]{answer}</s>

(two spaces where shown; the published second stage leaves out the period after the text). `<Vid>` and `[task]` are
plain text. The loss is on the answer and `</s>`. A clip without a subtitle has no sentence about what is said.
A task on pictures (`caption`, `vqa`, `refer`) shows the picture alone; its question may be the clip's own.
Source: arXiv 2601.16449; format of the released code at 5f0a408, instructions of our own wording.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
    argues: bool = False
    """Answered by a rationale, which argues for `label`, or for the label task that the response names."""
    settled: bool = False
    """Whether only rationales for `label` answer it; otherwise those for any label task do."""
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

    @property
    def closed_key(self) -> str | None:
        """The label task whose closed set is chosen among; None for open tasks and for several labels."""
        key = {"label": self.key, "think": self.label}.get(self.answer)
        return None if key in TASKS and TASKS[key].answer == "labels" else key

    @property
    def full_name(self) -> str:
        """`think:intent` where a rationale is about another label task than by default; else the name."""
        return self.name if self.label == TASKS[self.name].label else f"{self.name}:{self.label}"

    def about(self, label: str) -> Task:
        """This rationale for one label task, in words of its own."""
        plain = TASKS[self.name]
        wording = RATIONALES[self.name].get(label) or plain.instruction.replace(plain.label, label)
        return replace(self, label=label, instruction=wording, settled=True)

    def among(self, label_tasks: Iterable[str]) -> Task:
        """A rationale for `label` or, where that is none of these label tasks, for the first of them."""
        known = [name for name in label_tasks if name in ARGUED_FOR]
        if not self.argues or self.settled or not known or self.label in known:
            return self
        return self.about(known[0])


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
             "reason", argues=True),
        Task("think", "Weigh face, voice and words step by step, then name the emotion, one of: {labels}.", "think",
             "think", argues=True),
        Task("audio", "Describe how the voice sounds.", "response", "audio", modalities=("audio",)),
        Task("image", "Describe the face in the picture.", "response", "image", modalities=("image",)),
        Task("caption", "Describe the picture.", "response", "caption", modalities=("image",), picture=True),
        Task("vqa", "Answer the question about the picture.", "response", "vqa", modalities=("image",), picture=True),
        Task("refer", "Where in the picture is it?", "response", "refer", modalities=("image",), picture=True,
             verbatim=True),
    )
}  # fmt: skip


ARGUED_FOR = ("emotion", "sentiment", "intent", "multi-label")
"""Label tasks that a rationale may argue for without being named."""
RATIONALES: dict[str, dict[str, str]] = {
    "reason": {
        "emotion": TASKS["reason"].instruction,
        "intent": "What does the speaker intend, and what in face, voice and words tells it?",
        "multi-label": "Which emotions does the person show, and what in face, voice and words tells them?",
    },
    "think": {
        "emotion": TASKS["think"].instruction,
        "intent": "Weigh face, voice and words step by step, then name what the speaker intends, one of: {labels}.",
        "multi-label": "Weigh face, voice and words step by step, then name every emotion that applies, with commas"
        " between.",
    },
}
"""Task -> label task that a rationale argues for -> instruction; others are worded like that for the emotion."""


def find_task(name: str) -> Task:
    """Return a task by name; `think:intent` is the rationale for one label task.

    Raises:
        ConfigError: no such task; the near name is suggested.
    """
    plain, colon, label = name.partition(":")
    refuse_unknown("task", plain, TASKS)
    task = TASKS[plain]
    if not colon:
        return task
    if not task.argues or not label:
        raise ConfigError(
            f'task "{name}"',
            expected="a label task after the colon of a rationale, such as think:intent",
            got=name,
            next_step=f"Tasks with rationales are {', '.join(RATIONALES)}.",
        )
    return task.about(label)


@dataclass(frozen=True)
class PromptFormat:
    """How a prompt is put together. `{soft}`, `{said}`, `{task}`, `{instruction}` and `{text}` are filled in."""

    template: str = "[INST] <Vid>{soft}</Vid>{said}  [{task}] {instruction}  [/INST]"
    """The whole prompt, with the place of the soft tokens."""
    picture_template: str | None = None
    """Template of the tasks on pictures, where it is another one."""
    said: str = " The person in video says: {text}."
    """Sentence of a clip with words; `{text}` is its subtitle."""
    said_by: str | None = None
    """Sentence of a clip that names its `person`, with `{person}` in it; None: `said`, as for the other clips."""
    said_without_words: bool = False
    """Whether the sentence stands in the prompt of a clip without words too, saying nothing."""
    clean_text: bool = True
    """Lower-case the subtitle and drop . ! " ( ) * # : ; ~"""
    verbatim: bool = False
    """Texts as the clip list has them; otherwise white space in subtitles is one space, they are cut at 200 words, and
    responses have no outer white space."""
    label_separator: str = ", "
    """What stands between the labels of an answer of several."""
    recalled: str = " Clips like this one: {recalled}."
    """What stands after the clip's words where nearest clips are retrieved; they are joined by semicolons."""
    clean_answers: bool = False
    """Lower-case answers, put spaces for . ! " ( ) * # : ; ~ and cut at 200 words, as the released code does."""

    instructions: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """TASK or DATASET/TASK -> what is asked in place of the task's own instruction, the more specific first; may hold
    {labels}. A rationale for another label task than the emotion is `think:intent`, or `DATASET/think`. Of several
    texts one is drawn for each training sample; the first is asked everywhere else."""
    asked_as: Mapping[str, str] = field(default_factory=dict)
    """Task -> what stands between the brackets of the prompt in place of its name."""

    def wordings(self, task: Task, dataset: str | None = None) -> tuple[str, ...]:
        """What may be asked for a task of one dataset; its own instruction where no other is set."""
        name, full_name = task.name, task.full_name
        keys = [f"{dataset or ''}/{full_name}", full_name, f"{dataset or ''}/{name}"]
        for key in (*keys, *([name] if name == full_name else [])):
            if chosen := self.instructions.get(key):
                return (chosen,) if isinstance(chosen, str) else tuple(chosen)
        return (task.instruction,)

    def worded(self, task: Task, dataset: str | None = None, draw: int = 0) -> Task:
        """The task with the instruction that is asked; `draw` chooses among several."""
        wordings = self.wordings(task, dataset)
        return replace(task, instruction=wordings[draw % len(wordings)])

    def render(
        self,
        text: str | None,
        task: Task,
        labels: Sequence[str] = (),
        instruction: str | None = None,
        person: str | None = None,
    ) -> tuple[str, str]:
        """Return what stands before and after the soft tokens."""
        before, said, asked = self.pieces(text, task, labels, instruction, person)
        return str(before), str(said + asked)

    def pieces(
        self,
        text: str | None,
        task: Task,
        labels: Sequence[str] = (),
        instruction: str | None = None,
        person: str | None = None,
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
        first = Words.joined((_filled(head, values), self._said(text, person)))
        return (
            (Words.own(before), first, _filled(tail, values))
            if place
            else (Words.own(before), Words(()), _filled(head, values))
        )

    def words(self, text: str | None) -> str:
        """As much of a clip's words as is shown, before they are cleaned."""
        return text or "" if self.verbatim else " ".join((text or "").split()[:MAX_TEXT_WORDS])

    def _said(self, text: str | None, person: str | None) -> Words:
        spoken = self.words(text)
        if self.clean_text:
            spoken = spoken.lower().translate(DROPPED_CHARACTERS).strip()
        if not spoken and not self.said_without_words:
            return Words(())
        sentence = self.said if self.said_by is None or not person else self.said_by
        return _filled(sentence, {"text": Words.outside(spoken), "person": Words.outside(person or "The person")})

    def answer(self, text: str, task: Task) -> str:
        """An answer as it is trained on."""
        if not self.clean_answers or task.verbatim:
            return text
        spaced = re.sub(r"\s{2,}", " ", text.lower().translate(SPACED_CHARACTERS)).rstrip("\n").strip(" ")
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
            subject,
            expected=f"at most {limit} prompt tokens",
            got=str(len(ids)),
            next_step="Shorten its text in the clip list.",
        )
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
