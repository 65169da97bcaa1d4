"""Which question is asked of which clip: a pure function of (seed, index).

Without a mixture every clip comes once an epoch, in an order drawn anew for each epoch. With a mixture a dataset is
drawn by weight, then one of its clips, with replacement, as the published recipe does. One task is drawn uniformly
among those that the clip can answer; a response that is empty or longer than 1024 tokens falls back to its label.
Source: arXiv 2601.16449 and the released sampler. Knows the clip list, not the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from featurecache.clip_rows import SCORE_SUFFIX
from featurecache.clips import Clip, ClipList
from featurecache.errors import suggest
from fusion_train.errors import DataError
from fusion_train.prompts import MAX_ANSWER_TOKENS, Task, find_task, think_answer
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


def label_sets(clips: ClipList) -> dict[str, dict[str, list[str]]]:
    """Every label that occurs, by dataset and label task; scores are numbers, not labels."""
    found: dict[str, dict[str, set[str]]] = {}
    for clip in clips:
        for task, value in clip.labels.items():
            if task.endswith(SCORE_SUFFIX):
                continue
            labels = found.setdefault(clip.dataset or "", {}).setdefault(task, set())
            labels.update(map(str, value) if isinstance(value, list | tuple) else [str(value)])
    return {dataset: {task: sorted(labels) for task, labels in tasks.items()} for dataset, tasks in found.items()}


def closed_set(sets: LabelSets, clip: Clip, task: Task) -> tuple[str, ...]:
    """Labels that `task` chooses among for a clip of this dataset; empty for open tasks."""
    key = {"label": task.key, "think": task.label}.get(task.answer)
    return tuple(sets.get(clip.dataset or "", {}).get(key, ())) if key else ()


def answer_of(clip: Clip, task: Task) -> str | None:
    """The answer the clip list gives to a task, or None."""
    if task.answer == "label":
        value = clip.labels.get(task.key)
        return None if value is None else str(value)
    if task.answer == "labels":
        value = clip.labels.get(task.key)
        return ", ".join(map(str, value)) if isinstance(value, list | tuple) and value else None
    response = (clip.responses.get(task.key) or "").strip()
    if not response:
        return None
    if task.answer == "think" and "<answer>" not in response:
        label = clip.labels.get(task.label)
        return None if label is None else think_answer(response, str(label))
    return response


class SampleStream:
    """An endless, indexable stream of samples."""

    def __init__(
        self,
        clips: ClipList,
        tasks: Sequence[str],
        sets: LabelSets,
        *,
        seed: int,
        modalities: Sequence[str],
        mixture: Mapping[str, float] | None = None,
        hide_modality_p: float = 0.0,
        answer_length: Callable[[str], int] = len,
    ) -> None:
        """Args as in `Config.data`; `modalities` are those in use, `answer_length` counts an answer's tokens.

        Raises:
            DataError: no clip can answer any of the tasks, or the mixture names a dataset that is not there.
        """
        self._seed, self._sets, self._modalities, self._hide_p = seed, sets, tuple(modalities), hide_modality_p
        self._tasks = [find_task(name) for name in tasks]
        self._answer_length = answer_length
        self._clips = [clip for clip in clips if any(self._can_ask(clip, task) for task in self._tasks)]
        if not self._clips:
            keys = sorted({key for clip in clips for key in (*clip.labels, *clip.responses)})
            raise DataError(
                "data.tasks", expected="clips with labels or responses for one of " + ", ".join(tasks),
                got="only " + ", ".join(keys) if keys else "no labels and no responses",
                next_step='Add "labels" to the clip list or set data.tasks.',
            )  # fmt: skip
        self._pools, self._weights = self._mixture_pools(mixture or {})

    def __len__(self) -> int:
        """Clips in an epoch."""
        return len(self._clips)

    def draw(self, index: int) -> Sample:
        """Return sample number `index`, from 0."""
        random = generator(self._seed, "sample", index)
        if self._pools:
            pool = self._pools[random.choice(len(self._pools), p=self._weights)]
            clip = pool[random.integers(len(pool))]
        else:
            epoch, place = divmod(index, len(self._clips))
            clip = self._clips[_epoch_order(self._seed, epoch, len(self._clips))[place]]
        askable = [task for task in self._tasks if self._can_ask(clip, task)]
        task = askable[random.integers(len(askable))]
        task, answer = self._answerable(clip, task)
        return Sample(clip, task, closed_set(self._sets, clip, task), answer, self._hidden(task, random))

    def _can_ask(self, clip: Clip, task: Task) -> bool:
        return answer_of(clip, task) is not None and any(name in self._modalities for name in task.modalities)

    def _answerable(self, clip: Clip, task: Task) -> tuple[Task, str]:
        answer = answer_of(clip, task)
        too_long = task.answer in ("response", "think") and self._answer_length(answer or "") > MAX_ANSWER_TOKENS
        if too_long:
            task = find_task(task.label)
            answer = answer_of(clip, task)
        if answer is None:
            raise DataError(
                clip.id, expected=f"an answer of at most {MAX_ANSWER_TOKENS} tokens, or a label to fall back to",
                got="a longer response and no label", next_step="Shorten the response or add the label.",
            )  # fmt: skip
        return task, answer

    def _hidden(self, task: Task, random: np.random.Generator) -> tuple[str, ...]:
        shown = [name for name in self._modalities if name in task.modalities]
        if len(shown) > 1 and random.random() < self._hide_p:
            kept = random.permutation(len(shown))[: random.integers(1, len(shown))]
            shown = [shown[k] for k in kept]
        return tuple(name for name in self._modalities if name not in shown)

    def _mixture_pools(self, mixture: Mapping[str, float]) -> tuple[list[list[Clip]], np.ndarray]:
        by_dataset: dict[str, list[Clip]] = {}
        for clip in self._clips:
            by_dataset.setdefault(clip.dataset or "", []).append(clip)
        unknown = [name for name in mixture if name not in by_dataset]
        if unknown:
            raise DataError(
                "data.mixture", expected="datasets of the clip list: " + ", ".join(sorted(by_dataset)),
                got=", ".join(unknown), next_step=suggest(unknown[0], by_dataset).strip() or None,
            )  # fmt: skip
        weights = np.array([float(weight) for weight in mixture.values()])
        if len(weights) and (weights.min() < 0 or not weights.sum() > 0):
            raise DataError("data.mixture", expected="weights from 0 that do not sum to 0", got=str(dict(mixture)))
        return [by_dataset[name] for name in mixture], weights / weights.sum() if len(weights) else weights


@lru_cache(maxsize=2)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return generator(seed, "epoch", epoch).permutation(count)
