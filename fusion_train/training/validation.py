"""Scores on the held-out split during training: loss per token, and the accuracy of every task with one label.

Every scoring asks the same questions: one per clip, drawn as in training, without hidden modalities other than the
task's. Of a large split, `data.eval_clips` clips are used, always the same ones. A clip whose label no training clip
has cannot be answered correctly; it is left out, with a notice.

Where a run keeps the best weights per half of the clips (`data.halves`), each half has a score too: the mean accuracy
on its clips, or the negative loss where no task has one label per clip.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from featurecache.clips.clip_list import Clip, ClipList
from fusion_train.config import DataConfig
from fusion_train.data.answers import answer_limits, answer_of, closed_set
from fusion_train.data.halves import Halves
from fusion_train.data.samples import SampleStream
from fusion_train.data.too_long import fitting_clips
from fusion_train.errors import DataError
from fusion_train.evaluation.evaluate import (
    Evaluation,
    classified,
    closed_tasks,
    concordant,
    evaluate_together,
    number_tasks,
    refuse_not_finite,
)
from fusion_train.models.fused_layers import without_compiled_chains
from fusion_train.models.kernels import compiles
from fusion_train.models.model_group import ModelGroup, OneModel, evaluating
from fusion_train.models.probe import Probe
from fusion_train.prompts.prompt import find_task
from fusion_train.run_context import RunContext
from fusion_train.seeding import generator

LOSS_BATCH_SIZE = 8
"""Questions of a row whose loss is computed."""
AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""`optim.precision` -> dtype of autocast; fp32 has none."""
MAX_CLASSES = 20
"""Number of labels in a line of class counts."""


HALF = "score/half-"
"""Prefix of the name of a half's score; its number, from 1, follows."""


@dataclass
class Losses:
    """Loss of held-out clips, summed over supervised tokens."""

    total: float = 0.0
    tokens: int = 0
    of_clip: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Clip id -> its loss and its supervised tokens."""

    def add(self, batch: Any, output: Any) -> None:
        self.total += float(output.loss_sum)
        self.tokens += batch.num_supervised
        for clip_id, sample, loss in zip(
            batch.clip_ids, batch.sample_stats, output.sample_losses.tolist(), strict=True
        ):
            self.of_clip[clip_id] = loss, sample.num_supervised

    def mean(self) -> float:
        """Mean loss per supervised token."""
        return self.total / self.tokens

    def mean_of(self, clip_ids: Container[str]) -> float | None:
        """Mean loss per supervised token over some clips; None where none of them was scored."""
        chosen = [loss_and_tokens for clip_id, loss_and_tokens in self.of_clip.items() if clip_id in clip_ids]
        return sum(loss for loss, _ in chosen) / sum(tokens for _, tokens in chosen) if chosen else None


@dataclass
class Scored:
    """One model's answers to the held-out clips after some step."""

    scores: dict[str, float] = field(default_factory=dict)
    """`accuracy/TASK` of closed tasks, `ccc/TASK` of numbers, `eval_loss`, `score/half-N` of halves with clips."""
    answers: dict[str, Evaluation] = field(default_factory=dict)
    """By task."""


class Validation:
    """The held-out clips of a run, and their questions."""

    def __init__(self, context: RunContext) -> None:
        """Choose the clips.

        Raises:
            ClipListError, MissingFeatureError: no such split, or clips without features.
            DataError: training has the label of none of them, or texts are too long.
        """
        data, seed = context.config.data, context.config.seed
        self.split = context.clips.in_split(data.eval_split or "")
        clips, self.notices = _with_known_labels(context, self.split)
        if data.eval_clips is not None and data.eval_clips < len(clips):
            chosen = generator(seed, "held-out clips").permutation(len(clips))[: data.eval_clips]
            clips = ClipList([clips[int(place)] for place in sorted(chosen)])
        limits = answer_limits(data, context.tokenizer)
        usable = context.reader.usable(clips, data.failed_clips)
        self.context = context
        self.clips = fitting_clips(
            usable,
            data.tasks,
            context.collator,
            context.label_sets,
            limits,
            split=data.eval_split or "",
            say=self.notices.append,
        )
        self.tasks = [*closed_tasks(context, self.clips), *number_tasks(context, self.clips)]
        self._stream = SampleStream.for_validation(
            context.config,
            self.clips,
            context.label_sets,
            tokenizer=context.tokenizer,
            modalities=context.reader.modalities,
        )

    def score(
        self, models: OneModel | ModelGroup, members: Sequence[nn.Module], halves: Sequence[Halves]
    ) -> list[Scored]:
        """Ask every member all questions.

        Args:
            members: the present members of `models`, in their order.
            halves: per member, the clip ids of the two halves that choose weights; () where none do.

        Raises:
            DivergedError: a score that is NaN or infinite; the clips are named.
        """
        compiled = compiles(self.context.config.optim.compile, self.context.device.type)
        with without_compiled_chains() if compiled else nullcontext(), evaluating(models):
            scored = [Scored() for _ in members]
            for task in self.tasks:
                evaluations = evaluate_together(self.context, models, members, self.clips, task)
                for member, evaluation in zip(scored, evaluations, strict=True):
                    member.answers[task] = evaluation
            for member, losses, member_halves in zip(scored, self._losses(models, members), halves, strict=True):
                member.scores = self._scores(member.answers, losses, member_halves)
        return scored

    def _scores(self, answers: Mapping[str, Evaluation], losses: Losses, halves: Halves) -> dict[str, float]:
        """`accuracy/TASK` of closed tasks, `ccc/TASK` of numbers, `eval_loss`, `score/half-N` of halves with clips."""
        scores = {}
        for task in self.tasks:
            name, figure = ("ccc", "ccc") if answers[task].numbers is not None else ("accuracy", "accuracy")
            scores[f"{name}/{task}"] = float(answers[task].summary()[figure])
        scores["eval_loss"] = losses.mean()
        for number, half in enumerate(halves, start=1):
            score = _score_of(frozenset(half), answers, losses)
            if score is not None:
                scores[f"{HALF}{number}"] = score
        return scores

    def batches(self) -> Iterator[Any]:
        """Batches of the questions whose loss is computed, one per clip."""
        for start in range(0, len(self._stream), LOSS_BATCH_SIZE):
            indices = range(start, min(start + LOSS_BATCH_SIZE, len(self._stream)))
            yield self.context.collator([self._stream.draw(index) for index in indices])

    @torch.no_grad()
    def _losses(self, models: OneModel | ModelGroup, members: Sequence[nn.Module]) -> list[Losses]:
        """Compute the losses under the autocast of training."""
        losses = [Losses() for _ in members]
        not_finite: list[list[str]] = [[] for _ in members]
        device, dtype = self.context.device, AUTOCAST.get(self.context.config.optim.precision)
        for batch in self.batches():
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                outputs = models.forward(batch.to(device).tensors())
            for place, output in enumerate(outputs):
                not_finite[place] += not_finite_clips(batch, output.sample_losses)
                losses[place].add(batch, output)
        for clip_ids in not_finite:
            refuse_not_finite("held-out loss", clip_ids, len(self._stream))
        return losses


def _score_of(half: Container[str], answers: Mapping[str, Evaluation], losses: Losses) -> float | None:
    """The score of a half, which selects its weights; None for a half without clips."""
    accuracies = []
    for task, answered in answers.items():
        rows = [row for row in answered.predictions if row["id"] in half]
        scores = classified(find_task(task), rows) if rows else None
        accuracies += [scores.accuracy] if scores is not None else []
        if answered.numbers is not None and len({row["reference"] for row in rows}) > 1:
            numbers = concordant(find_task(task), rows)
            accuracies += [numbers.ccc] if numbers is not None else []
    if accuracies:
        return sum(accuracies) / len(accuracies)
    loss = losses.mean_of(half)
    return None if loss is None or answers else -loss


def not_finite_clips(batch: Any, sample_losses: torch.Tensor) -> list[str]:
    """Clips of a batch whose loss is NaN or infinite."""
    finite = sample_losses.isfinite().tolist()
    return [clip_id for clip_id, sound in zip(batch.clip_ids, finite, strict=True) if not sound]


def _with_known_labels(context: RunContext, clips: ClipList) -> tuple[ClipList, list[str]]:
    """Return the clips whose labels occur in training, and notices about the other clips.

    A language model answers questions on a dataset without training clips too; a probe has no classes for it.
    """
    tasks = [task for task in map(find_task, context.config.data.tasks) if task.answer == "label"]
    numbers = [task for task in map(find_task, context.config.data.tasks) if task.answer == "number"]
    unknown: Counter[str] = Counter()
    usable: list[Clip] = []
    for clip in clips:
        foreign = ""
        for task in tasks:
            known_labels, label = closed_set(context.label_sets, clip, task), answer_of(clip, task)
            if label is not None and label not in known_labels and (known_labels or isinstance(context.model, Probe)):
                foreign = f"{task.name} {label}" + ("" if known_labels or not clip.dataset else f" of {clip.dataset}")
        for task in numbers:
            if clip.labels.get(task.key) is not None and not context.collator.number_outputs.knows(clip, task):
                foreign = f"{task.name} of {clip.dataset or 'clips without a dataset'}"
        unknown.update([foreign] if foreign else [])
        usable += [] if foreign else [clip]
    if not unknown:
        return clips, []
    listed = ", ".join(f"{label} ({count})" for label, count in sorted(unknown.items()))
    split = f'split "{context.config.data.eval_split}"'
    if not usable:
        raise DataError(
            split,
            expected="clips with labels that training clips have",
            got=f"only {listed}",
            next_step="Add such clips to the training split, or set data.eval_split=null.",
        )
    left_out = f"{len(clips) - len(usable)} of {len(clips)} clips are not scored"
    return ClipList(usable), [f"{split}: {left_out}, since no training clip has their label: {listed}"]


def summarise(context: RunContext, stream: SampleStream, validation: Validation | None) -> list[str]:
    """Lines to print before training: notices on held-out clips, tasks without a clip, classes by split."""
    data = context.config.data
    splits: dict[str, Iterable[Clip]] = {data.train_split: stream.pool.clips}
    if validation is not None:
        splits[data.eval_split or ""] = validation.split
    notices = validation.notices if validation is not None else ()
    return [*notices, *_tasks_without_sample(data, stream), *class_counts(context, splits)]


def _tasks_without_sample(data: DataConfig, stream: SampleStream) -> list[str]:
    sampled = stream.sampled_tasks()
    without = [name for name in data.tasks if name not in sampled]
    return [f'split "{data.train_split}": no clip answers {", ".join(without)}'] if without else []


def class_counts(context: RunContext, splits: Mapping[str, Iterable[Clip]]) -> list[str]:
    """One line per label task and split: the number of clips per label, most frequent first; the range of numbers."""
    configured = [find_task(name) for name in context.config.data.tasks]
    tasks = dict.fromkeys(task.label_key for task in configured if task.answer != "number")
    lines = [
        _range(split, task.key, clips)
        for task in configured
        if task.answer == "number"
        for split, clips in splits.items()
    ]
    for task in tasks:
        counted = {split: _labels(clips, task) for split, clips in splits.items()}
        for split, counts in counted.items():
            if any(counted.values()):
                named = ", ".join(f"{label} {count}" for label, count in counts.most_common(MAX_CLASSES))
                more = f", and {len(counts) - MAX_CLASSES} more labels" if len(counts) > MAX_CLASSES else ""
                lines.append(f"{split}, {task}: {named or 'no label'}{more}")
    return lines


def _range(split: str, key: str, clips: Iterable[Clip]) -> str:
    """Return a line about the numbers of a split: how many clips, lowest, highest, mean."""
    numbers = [float(clip.labels[key]) for clip in clips if clip.labels.get(key) is not None]
    if not numbers:
        return f"{split}, {key}: no clip"
    mean = sum(numbers) / len(numbers)
    return f"{split}, {key}: {len(numbers)} clips, {min(numbers):g} to {max(numbers):g}, mean {mean:.3g}"


def _labels(clips: Iterable[Clip], task: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for clip in clips:
        value = clip.labels.get(task)
        counts.update(map(str, value) if isinstance(value, list | tuple) else [] if value is None else [str(value)])
    return Counter(dict(sorted(counts.items())))


def overall(scores: dict[str, float]) -> float | None:
    """The score that selects the best checkpoint: mean of accuracies and CCCs, or else the negative loss.

    None where a score is NaN or infinite.
    """
    if not all(map(math.isfinite, scores.values())):
        return None
    accuracies = [value for name, value in scores.items() if name.startswith(("accuracy/", "ccc/"))]
    if accuracies:
        return sum(accuracies) / len(accuracies)
    return -scores["eval_loss"] if "eval_loss" in scores else None
