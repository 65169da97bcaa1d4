"""Ask finished trials the question of the sweep, with the weights that it scores; those on one base together.

A trial that was asked the same clips when these weights were scored is not asked again. A cross-fitted trial has two
sets of weights: each half of the clips takes its answers from those that the other half chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from featurecache.clips.clip_list import ClipList
from fusion_train import checkpoint
from fusion_train.data.answers import with_answers
from fusion_train.data.halves import NUM_HALVES, split_halves
from fusion_train.evaluation.evaluate import Evaluation, classified, evaluate
from fusion_train.models.model_group import ModelGroup, evaluating
from fusion_train.prompts.prompt import find_task
from fusion_train.run_context import RunContext, load_context
from fusion_train.sweeps.group_scoring import evaluate_together
from fusion_train.sweeps.group_training import Asked, Member, SharedBase, contexts_of
from fusion_train.sweeps.grouping import shares_base
from fusion_train.sweeps.job import PREDICTIONS, Work
from fusion_train.sweeps.scored_weights import BEST, CROSS_FITTED


def evaluate_finished(
    asked: Sequence[Asked], members: Sequence[Member | None], work: Work, base: SharedBase
) -> list[Evaluation]:
    """Evaluate runs of one group; every answer is kept in its run's folder.

    Args:
        members: those that were trained just now; None for one that was finished before this process.

    Raises:
        FeatureCacheError: a run that cannot be opened, or whose clips have no features.
    """
    config = asked[0].config
    if shares_base(config):
        known = [member.context if member is not None else None for member in members]
        opened = contexts_of(asked, known, store=work.store, clips=work.clips, base=base)
    else:
        opened = [load_context(each.run, store=work.store, clips=work.clips, which="last") for each in asked]
    first = opened[0]
    clips = first.reader.usable(first.clips.in_split(work.split), config.data.failed_clips)
    folders = [scored_checkpoints(each, work.weights) for each in asked]
    answers: list[dict[Path, Evaluation]] = [{} for _ in asked]
    for number in range(max(map(len, folders))):
        chosen = {place: own[number] for place, own in enumerate(folders) if len(own) > number}
        left = {}
        for place, folder in chosen.items():
            known_answers = _answered(members[place], folder, clips, work)
            if known_answers is not None:
                answers[place][folder] = known_answers
            elif folder not in answers[place]:
                left[place] = folder
        places = list(left)
        evaluated = _evaluate([opened[place] for place in places], list(left.values()), clips, work, base)
        for place, evaluation in zip(places, evaluated, strict=True):
            answers[place][left[place]] = evaluation
    found = []
    for place, each in enumerate(asked):
        own = [answers[place][folder] for folder in folders[place]]
        found.append(own[0] if len(own) == 1 else _cross_fitted(each, opened[place], own, folders[place], work))
        found[-1].write(each.run.folder / PREDICTIONS)
    return found


def scored_checkpoints(asked: Asked, weights: str) -> list[Path]:
    """Checkpoints whose weights are scored: one, or of a cross-fitted trial for each half what the other half chose."""
    folder = asked.run.checkpoints
    if not asked.per_half:
        return [checkpoint.choose(folder, BEST if weights == CROSS_FITTED else weights)]
    chosen = [checkpoint.best(folder, half) or checkpoint.choose(folder, "last") for half in range(NUM_HALVES)]
    return chosen[::-1]


def _cross_fitted(
    asked: Asked, context: RunContext, answers: Sequence[Evaluation], folders: Sequence[Path], work: Work
) -> Evaluation:
    """Of each half, the answers of the weights that the other half chose; a row names its half and their step."""
    halves = split_halves(context.clips.in_split(work.split), asked.run.record().halves)
    rows: list[dict[str, Any]] = []
    for number, (half, answered, folder) in enumerate(zip(map(set, halves), answers, folders, strict=True), start=1):
        beside = {"half": number, "weights_step": checkpoint.read_state(folder).step}
        rows += [row | beside for row in answered.predictions if row["id"] in half]
    rows.sort(key=lambda row: row["id"])
    return Evaluation(work.task, rows, classified(find_task(work.task), rows))


def _answered(member: Member | None, folder: Path, clips: ClipList, work: Work) -> Evaluation | None:
    """What a checkpoint's weights answered to these clips when they were scored; None if they were asked others."""
    scored = member.scored.get(checkpoint.read_state(folder).step) if member is not None else None
    evaluation = scored.answers.get(work.task) if scored is not None else None
    if evaluation is None:
        return None
    wanted = sorted(clip.id for clip in with_answers(clips, find_task(work.task)))
    return evaluation if wanted == [row["id"] for row in evaluation.predictions] else None


def _evaluate(
    opened: Sequence[RunContext], folders: Sequence[Path], clips: ClipList, work: Work, base: SharedBase
) -> list[Evaluation]:
    """Answers of runs of one group, each with the weights of a checkpoint."""
    for context, folder in zip(opened, folders, strict=True):
        checkpoint.load_model(folder, context.model, name=checkpoint.best_weights(folder))
    if not opened or not shares_base(opened[0].config):
        return [evaluate(context, clips, work.task) for context in opened]
    config = opened[0].config
    llm = base.plain(config.model.llm or "", config.model.llm_dtype)
    models = [context.model.to(next(llm.parameters()).device) for context in opened]
    if len(opened) == 1:
        return [evaluate(opened[0], clips, work.task)]
    group = ModelGroup(llm, models)
    with evaluating(group):
        return evaluate_together(opened[0], group, models, clips, work.task)
