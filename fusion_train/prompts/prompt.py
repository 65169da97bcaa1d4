"""Put a clip's words, a task and an answer into token ids: the one tokenisation of training, evaluation and export.

    <s>[INST] <Vid>{448 soft}</Vid> The person in video says: {text}.  [{task}] {instruction}  [/INST]{answer}</s>

There are two spaces where two are shown; the published second stage omits the period after the text. `<Vid>` and
`[task]` are plain text. The loss is on the answer and `</s>`. The prompt of a clip without a subtitle has no sentence
about what the person says. A task on pictures (`caption`, `vqa`, `refer`) shows only the picture; its question may be
the clip's own.
Source: arXiv 2601.16449; format of the released code at 5f0a408, instructions in words of this project.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from featurecache.clips.clip_rows import SCORE_SUFFIX
from fusion_train.errors import ConfigError, DataError, refuse_unknown
from fusion_train.models.token_streams import SOFT_TOKEN
from fusion_train.prompts.encoding_text import PromptText, encode_text

MAX_TEXT_WORDS = 200
MAX_PROMPT_TOKENS = 3800
MAX_ANSWER_TOKENS = 1024
DROPPED_CHARACTERS = str.maketrans("", "", '.!"()*#:;~')
SPACED_CHARACTERS = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))


@dataclass(frozen=True)
class Task:
    """A question type: its instruction, and the part of the clip list that answers it."""

    name: str
    instruction: str
    """May hold {labels}, the closed set of answers."""
    answer: Literal["label", "labels", "response", "think", "number"]
    """One label, a list of labels, free text, reasoning with the label in <answer>, or a number such as a valence."""
    key: str
    """Key in the clip's `labels` (label, labels, number) or `responses` (response, think)."""
    label: str = "emotion"
    """The label task of the conclusion of "think"; it also replaces a response that is empty or too long."""
    argues: bool = False
    """Whether the answer is a rationale: an argument for `label`, or for the label task that the response names."""
    settled: bool = False
    """Whether only rationales for `label` answer the task; otherwise rationales for any label task do."""
    empty: str | None = None
    """The answer of an empty list of labels; None: a clip with an empty list has no answer."""
    modalities: tuple[str, ...] = ("audio", "image", "video", "text")
    """The modalities that the model is shown; a question about the sound shows only the sound."""
    picture: bool = False
    """Whether the task is for image-text sets: about the picture, not about a person who says something."""
    verbatim: bool = False
    """Whether the answer is notation, such as the corners of a box, and is never cleaned."""

    @property
    def label_key(self) -> str:
        """The label task that an answer is scored by: the task's own, or that of the rationale's conclusion."""
        return self.key if self.answer in ("label", "number") else self.label

    @property
    def closed_key(self) -> str | None:
        """The label task whose closed set the answer is chosen from; None for open tasks and for several labels."""
        key = {"label": self.key, "think": self.label}.get(self.answer)
        return None if key in TASKS and TASKS[key].answer == "labels" else key

    @property
    def full_name(self) -> str:
        """The name, or `think:intent` if a rationale is for another label task than the default one."""
        return (
            self.name
            if self.answer == "number" or self.label == TASKS[self.name].label
            else f"{self.name}:{self.label}"
        )

    def about(self, label: str) -> Task:
        """Return this rationale for one label task, with the instruction of that label task."""
        plain = TASKS[self.name]
        wording = RATIONALES[self.name].get(label) or plain.instruction.replace(plain.label, label)
        return replace(self, label=label, instruction=wording, settled=True)

    def among(self, label_tasks: Iterable[str]) -> Task:
        """Return a rationale for `label` or, if `label_tasks` does not contain it, for the first of `label_tasks`."""
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
"""Label tasks that a rationale may argue for if the response names none."""
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
"""Task -> label task of the rationale -> instruction; other label tasks use the emotion's instruction."""


def is_task(name: str) -> bool:
    """Whether a task has this name: one of `TASKS`, or a label that is a number, such as `valence_score`."""
    return name in TASKS or (name.endswith(SCORE_SUFFIX) and name != SCORE_SUFFIX)


def find_task(name: str) -> Task:
    """Return a task by name; `think:intent` is the rationale for one label task, `valence_score` asks for a number.

    Raises:
        ConfigError: no such task; the near name is suggested.
    """
    plain, colon, label = name.partition(":")
    if is_task(name) and name not in TASKS:
        return Task(name, f"How high is the {name.removesuffix(SCORE_SUFFIX)} of the person?", "number", name)
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
    """The templates of a prompt; `{soft}`, `{said}`, `{task}`, `{instruction}` and `{text}` are filled in."""

    template: str = "[INST] <Vid>{soft}</Vid>{said}  [{task}] {instruction}  [/INST]"
    """The whole prompt, with the place of the soft tokens."""
    picture_template: str | None = None
    """Template of the tasks on pictures; None: `template`."""
    said: str = " The person in video says: {text}."
    """Sentence of a clip with words; `{text}` is its subtitle."""
    said_by: str | None = None
    """Sentence for clips with a `person`, with `{person}` in it; None: `said`."""
    said_without_words: bool = False
    """Whether the prompt of a clip without words has the sentence too, with an empty text."""
    clean_text: bool = True
    """Lower-case the subtitle and drop . ! " ( ) * # : ; ~"""
    verbatim: bool = False
    """Whether texts stay as in the clip list; otherwise subtitles have single spaces and at most 200 words, and
    responses have no outer white space."""
    label_separator: str = ", "
    """Separator of the labels in an answer of several labels."""
    recalled: str = " Clips like this one: {recalled}."
    """Sentence after the clip's words if labels of the nearest clips are retrieved; semicolons separate them."""
    clean_answers: bool = False
    """Lower-case answers, replace . ! " ( ) * # : ; ~ by spaces and cut at 200 words, as the released code does."""

    instructions: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    """TASK or DATASET/TASK -> instruction that replaces the task's own; the more specific key wins. The instruction may
    hold {labels}. The key of a rationale for another label task than the emotion is `think:intent`, or `DATASET/think`.
    Of several instructions, one is drawn per training sample; everywhere else the first is used."""
    asked_as: Mapping[str, str] = field(default_factory=dict)
    """Task -> text between the brackets of the prompt; by default the task's name."""

    def wordings(self, task: Task, dataset: str | None = None) -> tuple[str, ...]:
        """Return the instructions for a task on one dataset; the task's own if no other is configured."""
        name, full_name = task.name, task.full_name
        keys = [f"{dataset or ''}/{full_name}", full_name, f"{dataset or ''}/{name}"]
        for key in (*keys, *([name] if name == full_name else [])):
            if chosen := self.instructions.get(key):
                return (chosen,) if isinstance(chosen, str) else tuple(chosen)
        return (task.instruction,)

    def worded(self, task: Task, dataset: str | None = None, draw: int = 0) -> Task:
        """Return the task with the configured instruction; `draw` chooses among several."""
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
        """Return the text before and after the soft tokens; arguments as in `pieces`."""
        before, words, question = self.pieces(text, task, labels, instruction, person)
        return str(before), str(words + question)

    def pieces(
        self,
        text: str | None,
        task: Task,
        labels: Sequence[str] = (),
        instruction: str | None = None,
        person: str | None = None,
    ) -> tuple[PromptText, PromptText, PromptText]:
        """Return three texts: before the soft tokens, from there to the end of the clip's words, and the rest.

        Retrieved labels are inserted between the last two. The clip's words, the labels and a user's question are
        external: braces in them are not filled in, and nothing in them becomes a control token.

        Args:
            text: the clip's words.
            labels: the closed set that the instruction names.
            instruction: a question that replaces the task's instruction.
            person: the person that the clip names.

        Raises:
            ConfigError: the template has no place for the soft tokens.
        """
        template = (self.picture_template or self.template) if task.picture else self.template
        before, soft, after = template.partition("{soft}")
        if not soft:
            raise ConfigError("prompt.template", expected="{soft}, the place of the soft tokens", got=template)
        values = {
            "task": PromptText.template(self.asked_as.get(task.name, task.name)),
            "instruction": _filled(
                instruction or task.instruction,
                {"labels": PromptText.external(", ".join(labels))},
                is_template=not instruction,
            ),
        }
        head, has_sentence, tail = after.partition("{said}")
        if not has_sentence:
            return PromptText.template(before), PromptText(()), _filled(head, values)
        words = PromptText.joined((_filled(head, values), self._sentence(text, person)))
        return PromptText.template(before), words, _filled(tail, values)

    def words(self, text: str | None) -> str:
        """Return the part of a clip's words that is shown, before it is cleaned."""
        return text or "" if self.verbatim else " ".join((text or "").split()[:MAX_TEXT_WORDS])

    def _sentence(self, text: str | None, person: str | None) -> PromptText:
        """Return the sentence about what the person says."""
        words = self.words(text)
        if self.clean_text:
            words = words.lower().translate(DROPPED_CHARACTERS).strip()
        if not words and not self.said_without_words:
            return PromptText(())
        sentence = self.said if self.said_by is None or not person else self.said_by
        values = {"text": PromptText.external(words), "person": PromptText.external(person or "The person")}
        return _filled(sentence, values)

    def answer(self, text: str, task: Task) -> str:
        """Return an answer as the model is trained on it."""
        if not self.clean_answers or task.verbatim:
            return text
        spaced = re.sub(r"\s{2,}", " ", text.lower().translate(SPACED_CHARACTERS)).rstrip("\n").strip(" ")
        return " ".join(spaced.split(" ")[:MAX_TEXT_WORDS])


def encode_prompt(
    tokenizer: Any,
    before: PromptText | str,
    num_soft: int,
    after: PromptText | str,
    subject: str = "prompt",
    recalled: tuple[PromptText | str, Sequence[int]] | None = None,
    limit: int | None = MAX_PROMPT_TOKENS,
) -> list[int]:
    """Return the token ids of a prompt: BOS if the tokenizer has one, `before`, `num_soft` SOFT_TOKENs, `after`.

    Args:
        subject: the clip id, for error messages.
        recalled: text and token ids of retrieved labels, which are inserted between the soft tokens and `after`.
        limit: tokens of a prompt; None for no limit.

    Raises:
        DataError: the prompt is longer than the limit, or a text holds half a character.
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
    """Return the token ids of an answer and the end-of-sequence token, which no text in the answer can write."""
    return [*encode_text(tokenizer, answer, "answer"), tokenizer.eos_token_id]


def _filled(template: str, values: Mapping[str, PromptText], *, is_template: bool = True) -> PromptText:
    """Replace each `{name}` of a template once: braces in the values stay text.

    Args:
        is_template: whether the text around the values is the prompt format's own.
    """
    parts = re.split(r"\{(" + "|".join(values) + r")\}", template)
    texts = (values[part] if number % 2 else PromptText(((part, is_template),)) for number, part in enumerate(parts))
    return PromptText.joined(texts)


def think_answer(reasoning: str, conclusion: str) -> str:
    """`<think>…</think><answer>…</answer>`."""
    return f"<think>{reasoning}</think><answer>{conclusion}</answer>"
