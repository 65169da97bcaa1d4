"""Clips whose texts are longer than the model takes, found before the first step.

Lengths are counted in tokens, by the code that encodes the samples. A text has no more tokens than bytes, so only
clips with long texts are encoded for this. What is done about them is the setting `data.too_long`.
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

SHOWN_CLIPS = 5
LABEL_TASKS = tuple(name for name, task in TASKS.items() if task.answer in ("label", "labels"))
RECALLED_TOKENS = 2000
"""More than what is recalled for a clip ever has; where it could matter, the prompt itself is encoded."""


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
    """Return the clips that can be asked all that `tasks` may ask of them, after `data.too_long`.

    Args:
        collator: of the run; a probe's encodes no text, and every clip fits.
        split: name of the split, for messages.

    Raises:
        DataError: there are clips that do not fit and must not be left out, or none is left; all are named.
    """
    if not isinstance(collator, Collator):
        return clips
    lengths = _Lengths(collator, [find_task(name) for name in tasks], sets, limits)
    return ClipList(_decide(clips, {clip.id: lengths.problem(clip) for clip in clips}, collator, split, say))


def fitting_samples(samples: Sequence[Sample], collator: object, name: str, say: Callable[[str], None]) -> list[Sample]:
    """Return the samples that can be answered, after `data.too_long`; raises DataError as `fitting_clips` does."""
    if not isinstance(collator, Collator):
        return list(samples)
    limit, frames = collator.limits.answering, dict[tuple[object, ...], int]()
    problems = {}
    for sample in samples:
        kind = (sample.task.full_name, sample.labels, sample.clip.dataset)
        if kind not in frames:
            bare = replace(sample, clip=Clip(id="", text="x", dataset=sample.clip.dataset), question=None)
            frames[kind] = _bare_tokens(collator, bare) + RECALLED_TOKENS * collator.recalls
        most = frames[kind] + _own_tokens(collator, sample.clip) + _most_tokens(sample.question or "")
        problems[sample.clip.id] = _prompt_problem(collator, sample, limit) if most > limit else ""
    kept = {clip.id for clip in _decide([sample.clip for sample in samples], problems, collator, name, say)}
    return [sample for sample in samples if sample.clip.id in kept]


class _Lengths:
    """Finds what is too long of a clip."""

    def __init__(self, collator: Collator, tasks: Sequence[Task], sets: LabelSets, limits: AnswerLimits) -> None:
        self._collator, self._tasks, self._sets, self._limits = collator, tasks, sets, limits
        self._frame = lru_cache(None)(self._frame_tokens)

    def problem(self, clip: Clip) -> str:
        """What is too long of a clip; an empty string where nothing is."""
        asked = max((_most_tokens(each.question or "") for each in clip.questions), default=0)
        texts = [*(text for *_, text in named_texts(clip.responses)), *(each.answer for each in clip.questions)]
        answer = max(map(_most_tokens, texts), default=0)
        prompt = self._frame(clip.dataset) + _own_tokens(self._collator, clip) + asked
        limits = self._collator.limits
        if answer <= self._limits.tokens and prompt <= min(limits.answering, limits.beside(answer)):
            return ""
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
                for worded in self._worded(sample):
                    if problem := _prompt_problem(self._collator, worded, limit):
                        if limits.too_long == "cut":  # raises where the clip's words are not what is too long
                            self._collator.prompt_ids(worded, self._collator.present(clip), answer_tokens)
                        return problem
        if usable or not any(answers_of(clip, task) for task in self._tasks):
            return ""
        return f"answers of more than {self._limits.tokens} tokens, and no label in their place"

    def _frame_tokens(self, dataset: str | None) -> int:
        """The longest prompt of a dataset around the words of a clip, with every soft token."""
        clip = Clip(id="", dataset=dataset, text="x")
        about = [*self._sets.get(dataset or "", {}), *LABEL_TASKS]
        tasks = [each for task in self._tasks for each in (task, *map(task.about, about if task.argues else ()))]
        asked = (Sample(clip, task, closed_set(self._sets, clip, task), "") for task in tasks)
        frames = (_bare_tokens(self._collator, worded) for sample in asked for worded in self._worded(sample))
        return max(frames) + RECALLED_TOKENS * self._collator.recalls

    def _worded(self, sample: Sample) -> Iterator[Sample]:
        """The sample with each instruction that it may be asked with."""
        for draw in range(self._collator.wordings(sample.task, sample.clip.dataset)):
            yield replace(sample, draw=draw)


def _prompt_problem(collator: Collator, sample: Sample, limit: int) -> str:
    shown = collator.present(sample.clip, sample.hidden)
    tokens = collator.prompt_tokens(sample, shown)
    return f"a prompt of {tokens:,} tokens, of at most {limit:,}" if tokens > limit else ""


def _bare_tokens(collator: Collator, sample: Sample) -> int:
    """Tokens of a question around a clip's words, whether it names a person or not."""
    named = replace(sample, clip=replace(sample.clip, person="x"))
    return max(map(collator.frame_tokens, (sample, named)))


def _own_tokens(collator: Collator, clip: Clip) -> int:
    """No tokenizer makes more of the words and the person that are shown of a clip."""
    return _most_tokens(collator.form_of(clip.dataset).words(clip.text)) + _most_tokens(clip.person or "")


def _most_tokens(text: str) -> int:
    """No tokenizer makes more of a text: a token a byte, of whatever form it is normalised to."""
    return len(text) if text.isascii() else len(unicodedata.normalize("NFKD", text).encode()) + len(text)


def _decide(
    clips: Iterable[Clip], problems: dict[str, str], collator: Collator, name: str, say: Callable[[str], None]
) -> list[Clip]:
    clips, long = list(clips), [f"{clip_id}: {problem}" for clip_id, problem in problems.items() if problem]
    if not long:
        return clips
    many = f"{len(long)} of {len(clips)} clips of {name}"
    first = "; ".join(long[:SHOWN_CLIPS]) + ("; …" if len(long) > SHOWN_CLIPS else "")
    kept = [clip for clip in clips if not problems[clip.id]]
    if collator.limits.too_long == "cut":
        say(f"data.too_long: the texts of {many} are cut: {first}")
        return clips
    if collator.limits.too_long == "leave_out" and kept:
        say(f"data.too_long: {many} are left out: {first}")
        return kept
    raise DataError(
        "data.too_long",
        expected="texts that fit into the model",
        got=f"longer ones of {many}",
        next_step="Shorten them in the clip list, or set data.too_long to leave_out or to cut.",
        problems=long,
    )
