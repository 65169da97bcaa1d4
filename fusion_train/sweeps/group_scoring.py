"""Ask all members of a company the same held-out questions; a stacked base answers for all in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from featurecache.clips.clip_list import ClipList
from fusion_train.data.answers import with_answers
from fusion_train.data.halves import Halves
from fusion_train.data.too_long import fitting_samples
from fusion_train.evaluation.evaluate import (
    EVAL_BATCH_SIZE,
    Evaluation,
    answer,
    classified,
    evaluate,
    groups,
    hidden_of,
    questions,
    refuse_not_finite,
    row_of,
)
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.model_group import GroupAnswering, ModelGroup
from fusion_train.prompts.prompt import find_task
from fusion_train.run_context import RunContext
from fusion_train.training.validation import Losses, Validation, not_finite_clips


def evaluate_together(
    context: RunContext, group: ModelGroup, members: Sequence[EmotionLlama], clips: ClipList, task_name: str
) -> list[Evaluation]:
    """What `evaluate` gives for each of the members, all of them present in the company."""
    if not group.stacked or not members[0].abilities.batching:
        return [evaluate(replace(context, model=member), clips, task_name) for member in members]
    task, count = find_task(task_name), len(members)
    samples = questions(context, with_answers(clips, task), task, hidden=hidden_of(context, task, None))
    samples = fitting_samples(samples, context.collator, task_name, lambda text: None)
    asking = replace(context, model=GroupAnswering(group, members))
    rows: list[list[dict[str, Any]]] = [[] for _ in members]
    not_finite: list[str] = []
    for group in groups(samples, EVAL_BATCH_SIZE):
        answers = list(answer(asking, [*group] * count))
        for number, mine in enumerate(rows):
            own = answers[number * len(group) : (number + 1) * len(group)]
            not_finite += [sample.clip.id for sample, answered in zip(group, own, strict=True) if answered is None]
            mine += [
                row_of(sample) | answered | {"reference": sample.answer}
                for sample, answered in zip(group, own, strict=True)
                if answered is not None
            ]
    refuse_not_finite(f'task "{task_name}"', not_finite, len(samples) * count)
    for mine in rows:
        mine.sort(key=lambda row: row["id"])
    return [Evaluation(task_name, mine, classified(task, mine)) for mine in rows]


@dataclass
class Scored:
    """One member at one step."""

    scores: dict[str, float] = field(default_factory=dict)
    """What `Validation.score` gives."""
    answers: dict[str, Evaluation] = field(default_factory=dict)
    """By task."""


def score_together(
    validation: Validation, group: ModelGroup, members: Sequence[EmotionLlama], halves: Sequence[Halves]
) -> list[Scored]:
    """What `Validation.score` gives for each member, and the answers that it rests on.

    Args:
        halves: of the held-out clips, by member.
    """
    scored = [Scored() for _ in members]
    for task in validation.tasks:
        found = evaluate_together(validation.context, group, members, validation.clips, task)
        for mine, evaluation in zip(scored, found, strict=True):
            mine.answers[task] = evaluation
    for mine, losses, own in zip(scored, _losses(validation, group, len(members)), halves, strict=True):
        mine.scores = validation.scores(mine.answers, losses, own)
    return scored


@torch.no_grad()
def _losses(validation: Validation, group: ModelGroup, count: int) -> list[Losses]:
    losses = [Losses() for _ in range(count)]
    for batch in validation.batches():
        outputs = group.forward(batch.to(validation.context.device).tensors())
        for number, output in enumerate(outputs):
            refuse_not_finite(f"held-out loss of trial {number + 1}", not_finite_clips(batch, output.sample_losses), 0)
            losses[number].add(batch, output)
    return losses
