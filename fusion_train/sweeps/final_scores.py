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
from fusion_train.evaluation.evaluate import Evaluation, classified, evaluate, evaluate_together
from fusion_train.models.model_group import ModelGroup, evaluating
from fusion_train.prompts.prompt import find_task
from fusion_train.run_context import RunContext, load_context
from fusion_train.sweeps.grouping import shares_base
from fusion_train.sweeps.job import PREDICTIONS, SweepSettings
from fusion_train.sweeps.scored_weights import BEST, CROSS_FITTED
from fusion_train.training.shared_base import RunRequest, SharedBase, open_contexts
from fusion_train.training.training_run import TrainingRun


def evaluate_finished(
    requests: Sequence[RunRequest], runs: Sequence[TrainingRun | None], work: SweepSettings, base: SharedBase
) -> list[Evaluation]:
    """Evaluate the finished runs of one group, and write the predictions of each into its run's folder.

    Args:
        runs: per request the run that this process trained; None for a run that was finished before.

    Raises:
        FeatureCacheError: a run that cannot be opened, or whose clips have no features.
    """
    config = requests[0].config
    if shares_base(config):
        trained = [run.context if run is not None else None for run in runs]
        contexts = open_contexts(requests, trained, store=work.store, clips=work.clips, base=base)
    else:
        contexts = [load_context(request.run, store=work.store, clips=work.clips, which="last") for request in requests]
    clips = contexts[0].reader.usable(contexts[0].clips.in_split(work.split), config.data.failed_clips)
    folders = [scored_checkpoints(request, work.weights) for request in requests]
    answers: list[dict[Path, Evaluation]] = [{} for _ in requests]
    for number in range(max(map(len, folders))):  # one pass per set of weights: a group has one set loaded at a time
        unanswered: dict[int, Path] = {}
        for place, folders_of_run in enumerate(folders):
            if number >= len(folders_of_run) or folders_of_run[number] in answers[place]:
                continue
            folder = folders_of_run[number]
            evaluation = _answered(runs[place], folder, clips, work)
            if evaluation is not None:
                answers[place][folder] = evaluation
            else:
                unanswered[place] = folder
        opened = [contexts[place] for place in unanswered]
        evaluated = _evaluate(opened, list(unanswered.values()), clips, work, base)
        for (place, folder), evaluation in zip(unanswered.items(), evaluated, strict=True):
            answers[place][folder] = evaluation
    evaluations = []
    for place, request in enumerate(requests):
        by_half = [answers[place][folder] for folder in folders[place]]
        evaluation = (
            by_half[0] if len(by_half) == 1 else _cross_fitted(request, contexts[place], by_half, folders[place], work)
        )
        evaluation.write(request.run.folder / PREDICTIONS)
        evaluations.append(evaluation)
    return evaluations


def scored_checkpoints(request: RunRequest, weights: str) -> list[Path]:
    """Checkpoints whose weights are scored: one, or for each half of a cross-fitted trial the one of the other half."""
    folder = request.run.checkpoints
    if not request.per_half:
        return [checkpoint.choose(folder, BEST if weights == CROSS_FITTED else weights)]
    chosen = [checkpoint.best(folder, half) or checkpoint.choose(folder, "last") for half in range(NUM_HALVES)]
    return chosen[::-1]


def _cross_fitted(
    request: RunRequest,
    context: RunContext,
    answers: Sequence[Evaluation],
    folders: Sequence[Path],
    work: SweepSettings,
) -> Evaluation:
    """Join, per half, the answers of the weights that the other half chose; a row names its half and their step."""
    halves = split_halves(context.clips.in_split(work.split), request.run.record().halves)
    rows: list[dict[str, Any]] = []
    for number, (half, answered, folder) in enumerate(zip(map(set, halves), answers, folders, strict=True), start=1):
        source = {"half": number, "weights_step": checkpoint.read_state(folder).step}
        rows += [row | source for row in answered.predictions if row["id"] in half]
    rows.sort(key=lambda row: row["id"])
    return Evaluation(work.task, rows, classified(find_task(work.task), rows))


def _answered(run: TrainingRun | None, folder: Path, clips: ClipList, work: SweepSettings) -> Evaluation | None:
    """What the weights of a checkpoint answered when training scored them; None where the clips were not the same."""
    scored = run.answers.get(checkpoint.read_state(folder).step) if run is not None else None
    evaluation = scored.answers.get(work.task) if scored is not None else None
    if evaluation is None:
        return None
    wanted = sorted(clip.id for clip in with_answers(clips, find_task(work.task)))
    return evaluation if wanted == [row["id"] for row in evaluation.predictions] else None


def _evaluate(
    contexts: Sequence[RunContext], folders: Sequence[Path], clips: ClipList, work: SweepSettings, base: SharedBase
) -> list[Evaluation]:
    """Evaluate runs of one group, each with the weights of one of its checkpoints."""
    for context, folder in zip(contexts, folders, strict=True):
        checkpoint.load_model(folder, context.model, name=checkpoint.best_weights(folder))
    if not contexts or not shares_base(contexts[0].config):
        return [evaluate(context, clips, work.task) for context in contexts]
    config = contexts[0].config
    llm = base.plain(config.model.llm or "", config.model.llm_dtype)
    models = [context.model.to(next(llm.parameters()).device) for context in contexts]
    if len(contexts) == 1:
        return [evaluate(contexts[0], clips, work.task)]
    group = ModelGroup(llm, models)
    with evaluating(group):
        return evaluate_together(contexts[0], group, models, clips, work.task)
