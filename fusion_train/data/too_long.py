"""Find the clips whose texts are longer than the model takes, before the first step.

Lengths are counted in tokens, by the code that encodes the samples. A text has at most as many tokens as bytes, so only
clips with long texts are encoded for this. The setting `data.too_long` decides what happens to them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.responses import named_texts
from fusion_train.data.answers import AnswerLimits, LabelSets, answers_of, closed_set
from fusion_train.data.batches import Collator
from fusion_train.data.samples import Sample
from fusion_train.errors import DataError
from fusion_train.prompts.prompt import TASKS, Task, find_task

MAX_NAMED_CLIPS = 5
"""Clips that a notice names."""
LABEL_TASKS = tuple(name for name, task in TASKS.items() if task.answer in ("label", "labels"))
MAX_RECALLED_TOKENS = 2000
"""No clip has as many recalled tokens; a prompt that would be too long with them is encoded to find out."""


def fitting_clips(
    clips: ClipList,
    tasks: Sequence[str],
    collator: object,
    sets: LabelSets,
    limits: AnswerLimits,
    *,
    split: str,
    say: Callable[[str], None],
) -> ClipList:
    """Return the clips whose prompts and answers fit for all `tasks`, by the rule of `data.too_long`.

    Args:
        collator: the collator of the run; that of a probe encodes no text, so every clip fits.
        split: name of the split, for messages.
        say: receives a notice about clips that are cut or left out.

    Raises:
        DataError: clips do not fit and must not be left out, or no clip is left; the error names all of them.
    """
    if not isinstance(collator, Collator):
        return clips
    lengths = _Lengths(collator, [find_task(name) for name in tasks], sets, limits)
    return ClipList(_apply_rule(clips, {clip.id: lengths.problem(clip) for clip in clips}, collator, split, say))


def fitting_samples(samples: Sequence[Sample], collator: object, name: str, say: Callable[[str], None]) -> list[Sample]:
    """Return the samples whose prompts fit, by the rule of `data.too_long`.

    Raises:
        DataError: as `fitting_clips` does.
    """
    if not isinstance(collator, Collator):
        return list(samples)
    limit, frames = collator.limits.answering, dict[tuple[object, ...], int]()
    problems = {}
    for sample in samples:
        kind = (sample.task.full_name, sample.labels, sample.clip.dataset)
        if kind not in frames:
            frame = replace(sample, clip=Clip(id="", text="x", dataset=sample.clip.dataset), question=None)
            frames[kind] = _frame_tokens(collator, frame) + MAX_RECALLED_TOKENS * collator.recalls
        bound = frames[kind] + _word_tokens(collator, sample.clip) + _max_tokens(sample.question or "")
        problems[sample.clip.id] = _prompt_problem(collator, sample, limit) if bound > limit else ""
    fitting = {clip.id for clip in _apply_rule([sample.clip for sample in samples], problems, collator, name, say)}
    return [sample for sample in samples if sample.clip.id in fitting]


class _Lengths:
    """Finds the texts of a clip that are too long."""

    def __init__(self, collator: Collator, tasks: Sequence[Task], sets: LabelSets, limits: AnswerLimits) -> None:
        self._collator, self._tasks, self._sets, self._limits = collator, tasks, sets, limits
        self._frame = lru_cache(None)(self._longest_frame)

    def problem(self, clip: Clip) -> str:
        """Return which text of a clip is too long; an empty string if all fit."""
        if self._surely_fits(clip):
            return ""
        limits = self._collator.limits
        usable = 0
        for task in self._tasks:
            for answer in answers_of(clip, task, self._collator.form):
                if not self._limits.fits(answer):
                    continue
                usable += 1
                labels = closed_set(self._sets, clip, answer.task)
                sample = Sample(clip, answer.task, labels, answer.text, question=answer.question)
                answer_tokens = len(self._collator.answer_ids(sample))
                limit = min(limits.answering, limits.beside(answer_tokens))
                for worded in self._wordings(sample):
                    if problem := _prompt_problem(self._collator, worded, limit):
                        if limits.too_long == "cut":  # raises if the prompt is too long even without the clip's words
                            self._collator.prompt_ids(worded, self._collator.present(clip), answer_tokens)
                        return problem
        if usable or not any(answers_of(clip, task) for task in self._tasks):
            return ""
        return f"answers of more than {self._limits.tokens} tokens, and no label in their place"

    def _surely_fits(self, clip: Clip) -> bool:
        """Whether prompt and answer fit even if every byte of the clip's texts were a token."""
        question = max((_max_tokens(question.question or "") for question in clip.questions), default=0)
        texts = [*(text for *_, text in named_texts(clip.responses)), *(question.answer for question in clip.questions)]
        answer = max(map(_max_tokens, texts), default=0)
        prompt = self._frame(clip.dataset) + _word_tokens(self._collator, clip) + question
        limits = self._collator.limits
        return answer <= self._limits.tokens and prompt <= min(limits.answering, limits.beside(answer))

    def _longest_frame(self, dataset: str | None) -> int:
        """Return the tokens of a dataset's longest prompt without the words of a clip, with every soft token."""
        clip = Clip(id="", dataset=dataset, text="x")
        label_tasks = [*self._sets.get(dataset or "", {}), *LABEL_TASKS]
        tasks = [
            variant for task in self._tasks for variant in (task, *map(task.about, label_tasks if task.argues else ()))
        ]
        samples = (Sample(clip, task, closed_set(self._sets, clip, task), "") for task in tasks)
        frames = (_frame_tokens(self._collator, worded) for sample in samples for worded in self._wordings(sample))
        return max(frames) + MAX_RECALLED_TOKENS * self._collator.recalls

    def _wordings(self, sample: Sample) -> Iterator[Sample]:
        """Yield the sample with each instruction that it may be asked with."""
        for draw in range(self._collator.wordings(sample.task, sample.clip.dataset)):
            yield replace(sample, draw=draw)


def _prompt_problem(collator: Collator, sample: Sample, limit: int) -> str:
    shown = collator.present(sample.clip, sample.hidden)
    tokens = collator.prompt_tokens(sample, shown)
    return f"a prompt of {tokens:,} tokens, of at most {limit:,}" if tokens > limit else ""


def _frame_tokens(collator: Collator, sample: Sample) -> int:
    """Return the tokens of a prompt around a clip's words; the longer one of with and without a person's name."""
    with_person = replace(sample, clip=replace(sample.clip, person="x"))
    return max(map(collator.frame_tokens, (sample, with_person)))


def _word_tokens(collator: Collator, clip: Clip) -> int:
    """Return a bound on the tokens of the words and the person that a clip's prompt shows."""
    return _max_tokens(collator.form_of(clip.dataset).words(clip.text)) + _max_tokens(clip.person or "")


def _max_tokens(text: str) -> int:
    """Return a bound on the tokens of a text for any tokenizer: one per byte, in any form of normalisation."""
    return len(text) if text.isascii() else len(unicodedata.normalize("NFKD", text).encode()) + len(text)


def _apply_rule(
    clips: Iterable[Clip], problems: dict[str, str], collator: Collator, name: str, say: Callable[[str], None]
) -> list[Clip]:
    """Return the clips that are used; `problems`: clip id -> which text is too long, or an empty string."""
    clips, too_long = list(clips), [f"{clip_id}: {problem}" for clip_id, problem in problems.items() if problem]
    if not too_long:
        return clips
    share = f"{len(too_long)} of {len(clips)} clips of {name}"
    first = "; ".join(too_long[:MAX_NAMED_CLIPS]) + ("; …" if len(too_long) > MAX_NAMED_CLIPS else "")
    fitting = [clip for clip in clips if not problems[clip.id]]
    if collator.limits.too_long == "cut":
        say(f"data.too_long: the texts of {share} are cut: {first}")
        return clips
    if collator.limits.too_long == "leave_out" and fitting:
        say(f"data.too_long: {share} are left out: {first}")
        return fitting
    raise DataError(
        "data.too_long",
        expected="texts that fit into the model",
        got=f"longer ones of {share}",
        next_step="Shorten them in the clip list, or set data.too_long to leave_out or to cut.",
        problems=too_long,
    )
