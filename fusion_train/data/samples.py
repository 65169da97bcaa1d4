"""Draw samples, questions on clips with their answers; a sample is a pure function of (seed, index).

Without a mixture every clip is drawn once per epoch, in another order in each epoch; with a mixture, see `clip_draws`.
Then one task is drawn among the tasks that the clip's dataset has, uniformly or by weight, and one of the clip's
answers to it. Where the answer is empty or too long, a label is asked for instead: the label of the dataset's fallback
task, else of the label task that the answer argues for, else the clip's first label in the order of the configured
tasks.
Source: arXiv 2601.16449 and the released sampler. Knows the clip list, not the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.clip_rows import SCORE_SUFFIX
from fusion_train.config import Config, OnAbsent
from fusion_train.data.answers import (
    PLAIN,
    AnswerLimits,
    ClipAnswer,
    LabelSets,
    answer_limits,
    answer_of,
    answers_of,
    closed_set,
    listed_answers,
)
from fusion_train.data.clip_draws import ClipDraws, balance_labels, weigh_datasets
from fusion_train.data.pool import Pool
from fusion_train.errors import DataError
from fusion_train.prompts.prompt import TASKS, PromptFormat, Task, find_task
from fusion_train.seeding import generator

DRAW_RULE = 2
"""Number of the rule by which samples are drawn; a run continues by the rule that it began with, or is refused."""


@dataclass(frozen=True)
class Sample:
    """One question on one clip."""

    clip: Clip
    task: Task
    labels: tuple[str, ...]
    """The closed set that the instruction names; empty for an open task."""
    answer: str
    hidden: tuple[str, ...] = ()
    """Modalities that the model is not shown in this sample."""
    question: str | None = None
    """Replaces the task's instruction."""
    draw: int = 0
    """Chooses among the wordings of the task's instruction, if the configuration has several."""


@dataclass(frozen=True)
class SampleStats:
    """Statistics of one sample of a batch, for the metrics of training."""

    dataset: str
    task: str
    num_tokens: int
    """Tokens that the language model computes for the sample."""
    num_supervised: int
    missing: tuple[str, ...]
    """Modalities in use that the clip does not have."""
    hidden: tuple[str, ...]
    """Modalities that the clip has and that the model is not shown."""

    @classmethod
    def of(cls, sample: Sample, presence: Mapping[str, bool], num_tokens: int, num_supervised: int) -> SampleStats:
        """Collect the statistics; `presence`: modality -> whether the clip has it."""
        missing = tuple(name for name, has in presence.items() if not has)
        hidden = tuple(name for name, has in presence.items() if has and name in sample.hidden)
        return cls(sample.clip.dataset or "", sample.task.name, num_tokens, num_supervised, missing, hidden)


def label_sets(clips: ClipList) -> dict[str, dict[str, list[str]]]:
    """Return dataset -> label task -> every label that occurs, sorted; scores are numbers and not labels."""
    sets: dict[str, dict[str, set[str]]] = {}
    for clip in clips:
        for task, value in clip.labels.items():
            if task.endswith(SCORE_SUFFIX):
                continue
            labels = sets.setdefault(clip.dataset or "", {}).setdefault(task, set())
            labels.update(value if isinstance(value, list | tuple) else [value])
    return {dataset: {task: sorted(labels) for task, labels in tasks.items()} for dataset, tasks in sets.items()}


def with_numbers(sets: LabelSets, clips: ClipList, tasks: Sequence[str]) -> LabelSets:
    """Return the sets with an empty one for every number, such as valence_score, that `tasks` ask of a dataset."""
    keys = [task.key for task in map(find_task, tasks) if task.answer == "number"]
    extended = {dataset: dict(of_dataset) for dataset, of_dataset in sets.items()}
    for clip in clips:
        for key in keys:
            if clip.labels.get(key) is not None:
                extended.setdefault(clip.dataset or "", {})[key] = ()
    return extended


def near_classes(sets: LabelSets) -> list[str]:
    """Return one notice per group of labels that differ by case or white space only: they are trained as classes."""
    notices = []
    for dataset, tasks in sorted(sets.items()):
        for task, labels in sorted(tasks.items()):
            groups: dict[str, list[str]] = {}
            for label in labels:
                groups.setdefault(" ".join(label.casefold().split()), []).append(f'"{label}"')
            place = f"{dataset}: " if dataset else ""
            notices += [
                f"{place}{task}: {', '.join(names)} are classes of their own, which differ by case or space alone"
                for names in groups.values()
                if len(names) > 1
            ]
    return notices


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
        balanced: bool = False,
        on_absent_dataset: OnAbsent = "refuse",
        task_weights: Mapping[str, Mapping[str, int]] | None = None,
        fallback: Mapping[str, str] | None = None,
        hide_modality_p: float = 0.0,
        questions_per_clip: int = 1,
        limits: AnswerLimits | None = None,
        form: PromptFormat = PLAIN,
        say: Callable[[str], None] = print,
    ) -> None:
        """Args as in `Config.data`, and:

        clips: the clips to draw from, or the pool that an earlier stream made of them.
        modalities: the modalities in use.
        form: how the labels of an answer are joined, and whether texts are trimmed.
        say: receives notices about the mixture.

        Raises:
            DataError: no clip can answer any of the tasks, or the mixture names a dataset without clips.
        """
        self._seed, self._sets, self._modalities, self._hide_p = seed, sets, tuple(modalities), hide_modality_p
        self._tasks = [find_task(name) for name in tasks]
        self._limits, self._questions, self._form = limits or AnswerLimits(), questions_per_clip, form
        self._fallback = dict(fallback or {})
        self.pool = clips if isinstance(clips, Pool) else self._gather(clips)
        self._clips = self.pool.clips
        weights = task_weights or {}
        self._tasks_of = {
            name: [find_task(task) for task in tasks for _ in range(weights.get(name, {}).get(task, 1))]
            for name, tasks in self.pool.tasks.items()
        }
        places, shares = self.pool.places, weigh_datasets(mixture, self.pool.places, on_absent_dataset, say)
        self._drawn_datasets = list(shares)
        if balanced:
            places, shares = balance_labels(places, shares, [self._balanced_label(clip) for clip in self._clips])
        self._draws = ClipDraws(seed, places, shares)

    @classmethod
    def for_training(
        cls,
        config: Config,
        clips: ClipList | Pool,
        sets: LabelSets,
        *,
        tokenizer: Any,
        modalities: Sequence[str],
        say: Callable[[str], None] = print,
    ) -> SampleStream:
        """Return the stream that a run of this configuration trains on; raises as the constructor does."""
        data = config.data
        return cls(
            clips,
            data.tasks,
            sets,
            seed=config.seed,
            modalities=modalities,
            mixture=data.mixture,
            balanced=data.balanced,
            on_absent_dataset=data.mixture_absent,
            task_weights=data.task_weights,
            fallback=data.fallback,
            hide_modality_p=data.hide_modality_p,
            questions_per_clip=data.questions_per_clip,
            limits=answer_limits(data, tokenizer),
            form=config.prompt.format(),
            say=say,
        )

    @classmethod
    def for_validation(
        cls, config: Config, clips: ClipList, sets: LabelSets, *, tokenizer: Any, modalities: Sequence[str]
    ) -> SampleStream:
        """Return one question per validation clip: every dataset is drawn, no modality is hidden."""
        data = config.data
        return cls(
            clips,
            data.tasks,
            sets,
            seed=config.seed,
            modalities=modalities,
            task_weights=data.task_weights,
            fallback=data.fallback,
            limits=answer_limits(data, tokenizer),
            form=config.prompt.format(),
        )

    def _gather(self, clips: Iterable[Clip]) -> Pool:
        """Select the clips that answer some task, and collect the tasks of each dataset."""
        chosen: list[Clip] = []
        places: dict[str, list[int]] = {}
        tasks_of: dict[str, set[str]] = {}
        keys: set[str] = set()
        for clip in clips:
            answered = [task.name for task in self._tasks if self._shows(task) and answers_of(clip, task)]
            if answered:
                places.setdefault(clip.dataset or "", []).append(len(chosen))
                tasks_of.setdefault(clip.dataset or "", set()).update(answered)
                chosen.append(clip)
            else:
                keys.update((*clip.labels, *clip.responses))
        if not chosen:
            raise DataError(
                "data.tasks",
                expected="clips with labels or responses for one of " + ", ".join(task.name for task in self._tasks),
                got="only " + ", ".join(sorted(keys)) if keys else "no labels, no responses and no questions",
                next_step='Add "labels" to the clip list or set data.tasks.',
            )
        tasks = {name: [task.name for task in self._tasks if task.name in tasks_of[name]] for name in places}
        return Pool(chosen, {name: np.array(numbers) for name, numbers in places.items()}, tasks)

    def _balanced_label(self, clip: Clip) -> str:
        """Return the label of a clip to the first task that has one; "" for a clip without labels."""
        answers = (answer_of(clip, task) for task in self._tasks if task.answer == "label")
        return next((label for label in answers if label is not None), "")

    def __len__(self) -> int:
        """Clips per epoch."""
        return len(self._clips)

    def draw(self, index: int) -> Sample:
        """Return sample number `index`, from 0; `questions_per_clip` consecutive samples are on one clip."""
        turn, number = divmod(index, self._questions)
        clip = self._clips[self._draws[turn]]
        random = generator(self._seed, "sample", turn)
        tasks = self._tasks_of[clip.dataset or ""]
        order = [tasks[place] for place in random.permutation(len(tasks))]
        different = list({task.name: task for task in order}.values())  # a weighted task is several times in `order`
        # All questions on one clip hide the same modalities, so that they can share the prefix of their prompts.
        hides = random.random() < self._hide_p
        modality_order = random.permutation(len(self._modalities))
        shown_share = random.random()
        if number:
            random = generator(self._seed, "question", turn, number)
        answer = self._answer(clip, different[number % len(different)], random)
        labels = closed_set(self._sets, clip, answer.task)
        hidden = self._hidden(answer.task, modality_order, shown_share if hides else None)
        draw = int(random.integers(1 << 31))
        return Sample(clip, answer.task, labels, answer.text, hidden, answer.question, draw)

    def sampled_tasks(self) -> tuple[str, ...]:
        """Return the names of the configured tasks that have samples, in their order.

        A task has none if no clip of a drawn dataset answers it, or if all answers to it are too long.
        """
        drawn = [name for name in self.pool.places if not self._drawn_datasets or name in self._drawn_datasets]
        return tuple(task.name for task in self._tasks if any(self._has_sample(name, task) for name in drawn))

    def _has_sample(self, dataset: str, task: Task) -> bool:
        if task not in self._tasks_of[dataset]:
            return False
        clips = (self._clips[place] for place in self.pool.places[dataset])
        return any(self._fitting(clip, task) for clip in clips)

    def _fitting(self, clip: Clip, task: Task) -> list[ClipAnswer]:
        """Return the answers of a clip to a task that can be trained on."""
        answers = answers_of(clip, task, self._form) if self._shows(task) else []
        return [answer for answer in answers if self._limits.fits(answer)]

    def _shows(self, task: Task) -> bool:
        """Whether some modality in use is shown for the task."""
        return any(name in self._modalities for name in task.modalities)

    def _answer(self, clip: Clip, task: Task, random: np.random.Generator) -> ClipAnswer:
        """Draw an answer of a clip to a task; if it cannot be trained on, draw one to a task that replaces it."""
        listed = listed_answers(clip, task, self._form) if self._shows(task) else []
        drawn = listed[random.integers(len(listed))] if listed else ClipAnswer(task, "")
        if self._limits.fits(drawn):
            return drawn
        substitutes = self._substitutes(clip, drawn.task)
        return substitutes[random.integers(len(substitutes))]

    def _substitutes(self, clip: Clip, task: Task) -> list[ClipAnswer]:
        """Return the answers of a clip that replace one that is empty or too long."""
        labels = [other for other in self._tasks if other.answer in ("label", "labels")]
        texts = [other for other in self._tasks if other not in labels]
        preferred = [TASKS[name] for name in (self._fallback.get(clip.dataset or ""), task.label) if name in TASKS]
        for other in (*preferred, *labels, *texts):
            if fitting := self._fitting(clip, other):
                return fitting
        if self._limits.cut and (answers := answers_of(clip, task, self._form)):
            return [replace(answer, text=self._limits.shortened(answer.text)) for answer in answers]
        raise DataError(
            clip.id,
            expected=f"an answer of at most {self._limits.tokens} tokens, or a label to fall back to",
            got="longer responses and no label",
            next_step="Shorten a response or add the label.",
        )

    def _hidden(self, task: Task, order: np.ndarray, share: float | None) -> tuple[str, ...]:
        """Return the modalities that are not shown.

        Args:
            order: (M,) numbers of the modalities; the first ones stay shown.
            share: share of the task's modalities that stay shown, at least one; None for all of them.
        """
        shown = [name for name in (self._modalities[number] for number in order) if name in task.modalities]
        if share is not None and len(shown) > 1:
            shown = shown[: 1 + int(share * (len(shown) - 1))]
        return tuple(name for name in self._modalities if name not in shown)
