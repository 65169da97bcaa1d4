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
from fusion_train.models.trial_group import AnsweringTogether, Company
from fusion_train.prompts.prompt import find_task
from fusion_train.run_context import Workbench
from fusion_train.training.validation import HeldOut, Losses, not_finite_clips


def evaluate_together(
    bench: Workbench, company: Company, members: Sequence[EmotionLlama], clips: ClipList, task_name: str
) -> list[Evaluation]:
    """What `evaluate` gives for each of the members, all of them present in the company."""
    if not company.stacked or not members[0].abilities.batching:
        return [evaluate(replace(bench, model=member), clips, task_name) for member in members]
    task, count = find_task(task_name), len(members)
    samples = questions(bench, with_answers(clips, task), task, hidden=hidden_of(bench, task, None))
    samples = fitting_samples(samples, bench.collator, task_name, lambda text: None)
    asking = replace(bench, model=AnsweringTogether(company, members))
    rows: list[list[dict[str, Any]]] = [[] for _ in members]
    not_finite: list[str] = []
    for group in groups(samples, EVAL_BATCH_SIZE):
        answers = list(answer(asking, [*group] * count))
        for number, mine in enumerate(rows):
            own = answers[number * len(group) : (number + 1) * len(group)]
            not_finite += [sample.clip.id for sample, answered in zip(group, own, strict=True) if answered is None]
            mine += [row_of(sample) | answered | {"reference": sample.answer}
                     for sample, answered in zip(group, own, strict=True) if answered is not None]  # fmt: skip
    refuse_not_finite(f'task "{task_name}"', not_finite, len(samples) * count)
    for mine in rows:
        mine.sort(key=lambda row: row["id"])
    return [Evaluation(task_name, mine, classified(task, mine)) for mine in rows]


@dataclass
class Scored:
    """One member at one step."""

    scores: dict[str, float] = field(default_factory=dict)
    """What `HeldOut.score` gives."""
    answers: dict[str, Evaluation] = field(default_factory=dict)
    """By task."""


def score_together(
    held_out: HeldOut, company: Company, members: Sequence[EmotionLlama], halves: Sequence[Halves]
) -> list[Scored]:
    """What `HeldOut.score` gives for each member, and the answers that it rests on.

    Args:
        halves: of the held-out clips, by member.
    """
    scored = [Scored() for _ in members]
    for task in held_out.tasks:
        found = evaluate_together(held_out.bench, company, members, held_out.clips, task)
        for mine, evaluation in zip(scored, found, strict=True):
            mine.answers[task] = evaluation
    for mine, losses, own in zip(scored, _losses(held_out, company, len(members)), halves, strict=True):
        mine.scores = held_out.scores(mine.answers, losses, own)
    return scored


@torch.no_grad()
def _losses(held_out: HeldOut, company: Company, count: int) -> list[Losses]:
    losses = [Losses() for _ in range(count)]
    for batch in held_out.batches():
        outputs = company.forward(batch.to(held_out.bench.device).tensors())
        for number, output in enumerate(outputs):
            refuse_not_finite(f"held-out loss of trial {number + 1}", not_finite_clips(batch, output.sample_losses), 0)
            losses[number].add(batch, output)
    return losses
