"""Which question is asked of which clip: a pure function of (seed, index).

Without a mixture every clip comes once an epoch, in an order drawn anew for each epoch. With a mixture a dataset is
drawn by weight, then one of its clips, with replacement, as the published recipe does. Then one task is drawn
uniformly among those that the clip's dataset has; where this clip has no answer to it, or one that is too long, its
label is asked for instead: the task's own label, else the first label in the order of the configured tasks.
Source: arXiv 2601.16449 and the released sampler. Knows the clip list, not the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.clip_rows import SCORE_SUFFIX
from featurecache.outside_text import shown
from fusion_train.config import DataConfig, OnAbsent
from fusion_train.data.mixture import weigh_datasets
from fusion_train.data.pool import Pool
from fusion_train.errors import DataError
from fusion_train.prompts.limits import longest
from fusion_train.prompts.prompt import MAX_ANSWER_TOKENS, Task, encode_answer, find_task, think_answer
from fusion_train.seeding import generator

LabelSets = Mapping[str, Mapping[str, Sequence[str]]]
"""Dataset -> label task -> closed set of answers, sorted."""


@dataclass(frozen=True)
class Sample:
    """One question on one clip."""

    clip: Clip
    task: Task
    labels: tuple[str, ...]
    """The closed set that the instruction names; empty for an open task."""
    answer: str
    hidden: tuple[str, ...] = ()
    """Modalities kept from the model for this sample."""
    question: str | None = None
    """Asked in place of the task's instruction."""
    draw: int = 0
    """Chooses among the wordings of the task's instruction, where a configuration has several."""


@dataclass(frozen=True)
class Asked:
    """What a batch holds of one sample, for the account that training gives of itself."""

    dataset: str
    task: str
    num_tokens: int
    """Tokens that the language model computes for it."""
    num_supervised: int
    missing: tuple[str, ...]
    """Modalities in use that the clip does not have."""
    hidden: tuple[str, ...]
    """Those that it has and is not shown with."""


def label_sets(clips: ClipList) -> dict[str, dict[str, list[str]]]:
    """Every label that occurs, by dataset and label task; scores are numbers, not labels."""
    found: dict[str, dict[str, set[str]]] = {}
    for clip in clips:
        for task, value in clip.labels.items():
            if task.endswith(SCORE_SUFFIX):
                continue
            labels = found.setdefault(clip.dataset or "", {}).setdefault(task, set())
            labels.update(value if isinstance(value, list | tuple) else [value])
    return {dataset: {task: sorted(labels) for task, labels in tasks.items()} for dataset, tasks in found.items()}


def near_classes(sets: LabelSets) -> list[str]:
    """Say which classes of one label task differ by case or white space alone: a model is taught that they differ."""
    found = []
    for dataset, tasks in sorted(sets.items()):
        for task, labels in sorted(tasks.items()):
            alike: dict[str, list[str]] = {}
            for label in labels:
                alike.setdefault(" ".join(label.casefold().split()), []).append(f'"{label}"')
            place = f"{dataset}: " if dataset else ""
            found += [f"{place}{task}: {', '.join(names)} are classes of their own, which differ by case or space alone"
                      for names in alike.values() if len(names) > 1]  # fmt: skip
    return found


def closed_set(sets: LabelSets, clip: Clip, task: Task) -> tuple[str, ...]:
    """Labels that `task` chooses among for a clip of this dataset; empty for open tasks."""
    key = {"label": task.key, "think": task.label}.get(task.answer)
    return tuple(sets.get(clip.dataset or "", {}).get(key, ())) if key else ()


def answer_of(clip: Clip, task: Task) -> str | None:
    """The answer the clip list gives to a task, the first where there are several, or None."""
    return next((answer for _, answer in answers_of(clip, task)), None)


def with_answers(clips: ClipList, task: Task) -> list[Clip]:
    """Clips that the list has an answer for.

    Raises:
        DataError: there is none.
    """
    found = [clip for clip in clips if answers_of(clip, task)]
    if not found:
        raise DataError(
            f'task "{task.name}"', expected="clips with an answer to it", got=f"none of {len(clips)} clips",
            next_step="Choose another with --task, or add it to the clip list.",
        )  # fmt: skip
    return found


def answers_of(clip: Clip, task: Task) -> list[tuple[str | None, str]]:
    """Every (question of the clip's own or None, answer) that the clip list has for a task.

    Raises:
        DataError: the task is answered with one label, and the list has several.
    """
    if task.answer == "label":
        value = clip.labels.get(task.key)
        if value is not None and not isinstance(value, str):
            raise DataError(
                clip.id, expected=f"one label for the task {task.name}", got=f"labels.{task.key}: {shown(value)}",
                next_step="Give it one name of a class; lists of labels are for the tasks multi-label and openset.",
            )  # fmt: skip
        return [] if value is None else [(None, value)]
    if task.answer == "labels":
        value = clip.labels.get(task.key)
        answer = ", ".join(map(str, value)) or task.empty if isinstance(value, list | tuple) else None
        return [] if answer is None else [(None, answer)]
    found: list[tuple[str | None, str]] = [(None, clip.responses.get(task.key) or "")]
    found += [(question.question, question.answer) for question in clip.questions if question.task == task.name]
    answers = [(question, answer.strip()) for question, answer in found if answer.strip()]
    if task.answer == "think":
        label = clip.labels.get(task.label)
        return [
            (question, answer if "<answer>" in answer else think_answer(answer, str(label)))
            for question, answer in answers
            if "<answer>" in answer or label is not None
        ]
    return answers


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


def answer_limits(data: DataConfig, tokenizer: Any) -> AnswerLimits:
    """The limits of a run; a probe, which has no tokenizer, is taught labels alone."""
    return AnswerLimits(
        data.max_answer_tokens, data.max_answer_words, lambda text: len(encode_answer(tokenizer, text)),
        cut=data.too_long == "cut",
    )  # fmt: skip


class SampleStream:
    """An endless, indexable stream of samples."""

    def __init__(
        self,
        clips: ClipList | Pool,
        tasks: Sequence[str],
        sets: LabelSets,
        *,
        seed: int,
        modalities: Sequence[str],
        mixture: Mapping[str, float] | None = None,
        on_absent_dataset: OnAbsent = "refuse",
        hide_modality_p: float = 0.0,
        questions_per_clip: int = 1,
        limits: AnswerLimits | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Args as in `Config.data`; `clips` are those to draw from, or the pool that an earlier stream made of them;
        `modalities` are those in use, `say` takes notices about the mixture.

        Raises:
            DataError: no clip can answer any of the tasks, or the mixture names a dataset that is not there.
        """
        self._seed, self._sets, self._modalities, self._hide_p = seed, sets, tuple(modalities), hide_modality_p
        self._tasks = [find_task(name) for name in tasks]
        self._limits, self._questions = limits or AnswerLimits(), questions_per_clip
        self.pool = clips if isinstance(clips, Pool) else self._gather(clips)
        self._clips = self.pool.clips
        self._tasks_of = {name: [find_task(task) for task in tasks] for name, tasks in self.pool.tasks.items()}
        shares = weigh_datasets(mixture, self.pool.places, on_absent_dataset, say)
        self._drawn, self._shares = list(shares), np.array(list(shares.values()))

    def _gather(self, clips: Iterable[Clip]) -> Pool:
        """Find the clips that can be asked something, and by dataset what."""
        chosen: list[Clip] = []
        places: dict[str, list[int]] = {}
        found: dict[str, set[str]] = {}
        keys: set[str] = set()
        for clip in clips:
            askable = [task.name for task in self._tasks if self._can_ask(clip, task)]
            if askable:
                places.setdefault(clip.dataset or "", []).append(len(chosen))
                found.setdefault(clip.dataset or "", set()).update(askable)
                chosen.append(clip)
            else:
                keys.update((*clip.labels, *clip.responses))
        if not chosen:
            raise DataError(
                "data.tasks", expected="clips with labels or responses for one of "
                + ", ".join(task.name for task in self._tasks),
                got="only " + ", ".join(sorted(keys)) if keys else "no labels, no responses and no questions",
                next_step='Add "labels" to the clip list or set data.tasks.',
            )  # fmt: skip
        tasks = {name: [task.name for task in self._tasks if task.name in found[name]] for name in places}
        return Pool(chosen, {name: np.array(each) for name, each in places.items()}, tasks)

    def __len__(self) -> int:
        """Clips in an epoch."""
        return len(self._clips)

    def draw(self, index: int) -> Sample:
        """Return sample number `index`, from 0; `questions_per_clip` samples in a row are on one clip."""
        turn, number = divmod(index, self._questions)
        random = generator(self._seed, "sample", turn)
        if self._drawn:
            places = self.pool.places[self._drawn[random.choice(len(self._drawn), p=self._shares)]]
            clip = self._clips[places[random.integers(len(places))]]
        else:
            epoch, place = divmod(turn, len(self._clips))
            clip = self._clips[_epoch_order(self._seed, epoch, len(self._clips))[place]]
        tasks = self._tasks_of[clip.dataset or ""]
        task = tasks[random.permutation(len(tasks))[number % len(tasks)]]
        hidden = random.random() < self._hide_p
        kept = random.permutation(len(self._modalities))
        num_kept = random.random()
        if number:
            random = generator(self._seed, "question", turn, number)
        task, answers = self._answers(clip, task)
        question, answer = answers[random.integers(len(answers))]
        labels = closed_set(self._sets, clip, task)
        shown = self._hidden(task, kept, num_kept if hidden else None)
        return Sample(clip, task, labels, answer, shown, question, draw=int(random.integers(1 << 31)))

    def sampled_tasks(self) -> tuple[str, ...]:
        """Names of the configured tasks that samples are drawn of, in their order.

        A task has none where no clip of a dataset that is drawn answers it, or where all its answers are too long.
        """
        drawn = [name for name in self.pool.places if not self._drawn or name in self._drawn]
        return tuple(task.name for task in self._tasks if any(self._has_sample(name, task) for name in drawn))

    def _has_sample(self, dataset: str, task: Task) -> bool:
        if task not in self._tasks_of[dataset]:
            return False
        clips = (self._clips[place] for place in self.pool.places[dataset])
        return any(self._answers(clip, task)[0] == task for clip in clips)

    def _answers(self, clip: Clip, task: Task) -> tuple[Task, list[tuple[str | None, str]]]:
        """The task that a clip is asked where `task` was drawn, and every (question, answer) to choose from."""
        answers = self._short_enough(clip, task)
        return (task, answers) if answers else self._fall_back(clip, task)

    def _can_ask(self, clip: Clip, task: Task) -> bool:
        return bool(answers_of(clip, task)) and any(name in self._modalities for name in task.modalities)

    def _short_enough(self, clip: Clip, task: Task) -> list[tuple[str | None, str]]:
        """Answers of a clip to a task that can be trained on; labels are never too long."""
        if not self._can_ask(clip, task):
            return []
        free = task.answer in ("response", "think")
        return [
            (asked, text) for asked, text in answers_of(clip, task) if not (free and self._limits.exceeded_by(text))
        ]

    def _fall_back(self, clip: Clip, task: Task) -> tuple[Task, list[tuple[str | None, str]]]:
        labels = [other for other in self._tasks if other.answer in ("label", "labels")]
        others = [other for other in self._tasks if other not in labels]
        for other in (find_task(task.label), *labels, *others):
            if answers := self._short_enough(clip, other):
                return other, answers
        if self._limits.cut and (answers := answers_of(clip, task)):
            return task, [(question, self._limits.shortened(text)) for question, text in answers]
        raise DataError(
            clip.id, expected=f"an answer of at most {self._limits.tokens} tokens, or a label to fall back to",
            got="longer responses and no label", next_step="Shorten a response or add the label.",
        )  # fmt: skip

    def _hidden(self, task: Task, order: np.ndarray, share: float | None) -> tuple[str, ...]:
        """What is kept from the model: what the task is not about and, with a `share`, all but some of the rest."""
        shown = [name for name in (self._modalities[k] for k in order) if name in task.modalities]
        if share is not None and len(shown) > 1:
            shown = shown[: 1 + int(share * (len(shown) - 1))]
        return tuple(name for name in self._modalities if name not in shown)


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return generator(seed, "epoch", epoch).permutation(count)
