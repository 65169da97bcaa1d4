"""Which question is asked of which clip: a pure function of (seed, index).

Without a mixture every clip comes once an epoch, in an order drawn anew for each epoch. With a mixture a dataset is
drawn by weight, then one of its clips, each of which comes once before any comes again (`clip_draws`). Then one task
is drawn among those that the clip's dataset has, uniformly or by weight, and one of the clip's answers to it; where
that is empty or too long, a label is asked for instead: that of the dataset's fallback, else the one that the answer
argues for, else the first label in the order of the configured tasks.
Source: arXiv 2601.16449 and the released sampler. Knows the clip list, not the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.clip_rows import SCORE_SUFFIX
from fusion_train.config import OnAbsent
from fusion_train.data.answers import PLAIN, Answer, AnswerLimits, LabelSets, answers_of, closed_set, listed_answers
from fusion_train.data.clip_draws import ClipDraws
from fusion_train.data.mixture import weigh_datasets
from fusion_train.data.pool import Pool
from fusion_train.errors import DataError
from fusion_train.prompts.prompt import (
    TASKS,
    PromptFormat,
    Task,
    find_task,
)
from fusion_train.seeding import generator

DRAW_RULE = 2
"""Number of the rule by which samples are drawn; a run goes on by the rule that it began with, or not at all."""


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
class SampleStats:
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
            found += [
                f"{place}{task}: {', '.join(names)} are classes of their own, which differ by case or space alone"
                for names in alike.values()
                if len(names) > 1
            ]
    return found


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
        task_weights: Mapping[str, Mapping[str, int]] | None = None,
        fallback: Mapping[str, str] | None = None,
        hide_modality_p: float = 0.0,
        questions_per_clip: int = 1,
        limits: AnswerLimits | None = None,
        form: PromptFormat = PLAIN,
        say: Callable[[str], None] = print,
    ) -> None:
        """Args as in `Config.data`; `clips` are those to draw from, or the pool that an earlier stream made of them;
        `modalities` are those in use, `form` says how answers are written, `say` takes notices about the mixture.

        Raises:
            DataError: no clip can answer any of the tasks, or the mixture names a dataset that is not there.
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
        shares = weigh_datasets(mixture, self.pool.places, on_absent_dataset, say)
        self._drawn = list(shares)
        self._draws = ClipDraws(seed, self.pool.places, shares)

    def _gather(self, clips: Iterable[Clip]) -> Pool:
        """Find the clips that can be asked something, and by dataset what."""
        chosen: list[Clip] = []
        places: dict[str, list[int]] = {}
        found: dict[str, set[str]] = {}
        keys: set[str] = set()
        for clip in clips:
            askable = [task.name for task in self._tasks if self._shows(task) and answers_of(clip, task)]
            if askable:
                places.setdefault(clip.dataset or "", []).append(len(chosen))
                found.setdefault(clip.dataset or "", set()).update(askable)
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
        tasks = {name: [task.name for task in self._tasks if task.name in found[name]] for name in places}
        return Pool(chosen, {name: np.array(each) for name, each in places.items()}, tasks)

    def __len__(self) -> int:
        """Clips in an epoch."""
        return len(self._clips)

    def draw(self, index: int) -> Sample:
        """Return sample number `index`, from 0; `questions_per_clip` samples in a row are on one clip."""
        turn, number = divmod(index, self._questions)
        clip = self._clips[self._draws[turn]]
        random = generator(self._seed, "sample", turn)
        tasks = self._tasks_of[clip.dataset or ""]
        order = [tasks[place] for place in random.permutation(len(tasks))]
        different = list({task.name: task for task in order}.values())
        hidden = random.random() < self._hide_p
        kept = random.permutation(len(self._modalities))
        num_kept = random.random()
        if number:
            random = generator(self._seed, "question", turn, number)
        answer = self._answer(clip, different[number % len(different)], random)
        labels = closed_set(self._sets, clip, answer.task)
        shown = self._hidden(answer.task, kept, num_kept if hidden else None)
        draw = int(random.integers(1 << 31))
        return Sample(clip, answer.task, labels, answer.text, shown, answer.question, draw)

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
        return any(self._fitting(clip, task) for clip in clips)

    def _fitting(self, clip: Clip, task: Task) -> list[Answer]:
        """Answers of a clip to a task that can be trained on."""
        answers = answers_of(clip, task, self._form) if self._shows(task) else []
        return [answer for answer in answers if self._limits.fits(answer)]

    def _shows(self, task: Task) -> bool:
        return any(name in self._modalities for name in task.modalities)

    def _answer(self, clip: Clip, task: Task, random: np.random.Generator) -> Answer:
        """One answer of a clip to a task or, where that cannot be trained on, to what stands in for the task."""
        listed = listed_answers(clip, task, self._form) if self._shows(task) else []
        drawn = listed[random.integers(len(listed))] if listed else Answer(task, "")
        if self._limits.fits(drawn):
            return drawn
        others = self._stand_ins(clip, drawn.task)
        return others[random.integers(len(others))]

    def _stand_ins(self, clip: Clip, task: Task) -> list[Answer]:
        labels = [other for other in self._tasks if other.answer in ("label", "labels")]
        others = [other for other in self._tasks if other not in labels]
        named = [TASKS[name] for name in (self._fallback.get(clip.dataset or ""), task.label) if name in TASKS]
        for other in (*named, *labels, *others):
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
        """What is kept from the model: what the task is not about and, with a `share`, all but some of the rest."""
        shown = [name for name in (self._modalities[k] for k in order) if name in task.modalities]
        if share is not None and len(shown) > 1:
            shown = shown[: 1 + int(share * (len(shown) - 1))]
        return tuple(name for name in self._modalities if name not in shown)
