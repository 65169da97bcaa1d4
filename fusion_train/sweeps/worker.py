"""Train one group of trials and score those that are finished. Knows no table, no other group and no engine.

Scores. A finished trial answers the question of the sweep with the weights that the sweep scores; trials on one base
answer together. A trial that answered the same clips when these weights were scored does not answer again. A
cross-fitted trial has two sets of weights: each half of the clips takes its answers from those that the other half
chose.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from featurecache.clips.clip_list import ClipList
from featurecache.errors import FeatureCacheError, WriteError
from featurecache.files.hashing import file_sha256
from featurecache.interrupt import Interrupted
from featurecache.machine import free_memory_bytes
from fusion_train import checkpoint
from fusion_train.data.answers import with_answers
from fusion_train.data.halves import NUM_HALVES, split_halves
from fusion_train.errors import ListChangedError
from fusion_train.evaluation.evaluate import Evaluation, classified, evaluate, evaluate_together
from fusion_train.models.model_group import ModelGroup, evaluating
from fusion_train.processes import this_process
from fusion_train.prompts.prompt import find_task
from fusion_train.run import Run
from fusion_train.run_context import RunContext, load_context
from fusion_train.sweeps.check import check
from fusion_train.sweeps.grouping import shares_base
from fusion_train.sweeps.job import (
    PREDICTIONS,
    PREDICTIONS_SHA256,
    Cost,
    DeviceCapacity,
    GroupResult,
    SweepSettings,
    TrialGroup,
    TrialResult,
)
from fusion_train.sweeps.scored_weights import BEST, CROSS_FITTED, keeps_halves
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.training.devices import matrix_peak
from fusion_train.training.shared_base import RunRequest, SharedBase, open_contexts
from fusion_train.training.trainer import train_runs
from fusion_train.training.training_run import TrainingRun
from fusion_train.training.validation import overall

USABLE = 0.9
"""Share of the free memory that groups may be planned with."""
ISOLATED = (FeatureCacheError, RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
"""What a trial may fail with without ending the sweep: our errors, and those of a variant's own code or of memory."""


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def error_text(error: BaseException) -> str:
    """One error, as the table holds it."""
    return str(error) if isinstance(error, FeatureCacheError) else f"{type(error).__name__}: {error}"


def _disk_refuses(error: Exception) -> WriteError:
    return WriteError(
        "sweep",
        expected="a disk that takes what trials write",
        got=str(error),
        next_step="Free space; then run the same command. No trial is marked as failed by this.",
    )


class Worker:
    """Trains groups one after another in this process; the base model of the last one stays loaded."""

    def __init__(
        self, work: SweepSettings, say: Callable[[str], None], stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Args:
        stop: asked after every step whether to save and stop there.
        """
        self._work, self._say, self._stop = work, say, stop
        self._base = SharedBase()

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        """See `check`."""
        return check(sweep, self._work.store, self._work.clips, self._say)

    def capacity(self) -> DeviceCapacity:
        """What this process's device has for a worker."""
        device = this_process().device
        if device.type == "cuda":
            free = torch.cuda.mem_get_info()[0]
        else:
            free = free_memory_bytes()
        return DeviceCapacity(int(free * USABLE), matrix_peak(device, self._work.precision))

    def answer(self, group: TrialGroup) -> GroupResult:
        """What became of a group; an error that a trial's own code may raise is part of the answer."""
        try:
            return GroupResult(tuple(self.train(group)))
        except Interrupted:
            return GroupResult(stopped=True)
        except ListChangedError as error:
            return GroupResult(halt=error)
        except WriteError as error:
            return GroupResult(halt=_disk_refuses(error))
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            return GroupResult(halt=_disk_refuses(error))
        except ISOLATED as error:
            return GroupResult(error=error_text(error), damaged=not isinstance(error, FeatureCacheError))

    def train(self, group: TrialGroup) -> list[TrialResult]:
        """Train a group to its end or pause; returns what became of each trial, in its order.

        Raises:
            ISOLATED: the group failed as a whole; which of the trials is to blame is not known.
            Interrupted: stopped on request; all are saved.
        """
        requests = [self._request(trial, group.stage) for trial in group.trials]
        unfinished = [place for place, request in enumerate(requests) if not request.run.finished]
        outcomes = [TrialResult() for _ in requests]
        runs: dict[int, TrainingRun] = {}
        if unfinished and shares_base(requests[0].config):
            trained = self._train_runs([requests[place] for place in unfinished], self._base, group.until)
            for place, run in zip(unfinished, trained, strict=True):
                outcomes[place], runs[place] = _outcome(run, len(trained), group.until), run
        else:  # nothing to share: such trials do not pause either
            for place in unfinished:
                (run,) = self._train_runs([requests[place]], None, None)
                outcomes[place], runs[place] = _outcome(run, 1, None), run
        finished = [
            place
            for place, (trial, request) in enumerate(zip(group.trials, requests, strict=True))
            if request.run.finished and group.stage == len(trial.stages) - 1
        ]
        scored = self._scored([requests[place] for place in finished], [runs.get(place) for place in finished])
        for place, evaluation in zip(finished, scored, strict=True):
            request = requests[place]
            changed: dict[str, Any] = (
                {"error": evaluation} if isinstance(evaluation, str) else {"scores": _table_scores(evaluation, request)}
            )
            outcomes[place] = replace(outcomes[place], step=request.run.result["step"], **changed)
        return outcomes

    def _train_runs(
        self, requests: Sequence[RunRequest], base: SharedBase | None, until: int | None
    ) -> list[TrainingRun]:
        def say(line: str) -> None:  # several workers print at once, so a line names its trial
            run = requests[0].run
            named = line if len(requests) > 1 else f"{run.name}: {line.removeprefix(f'{run.folder}: ')}"
            self._say(named)

        return train_runs(
            requests,
            store=self._work.store,
            clips=self._work.clips,
            base=base,
            until=until,
            say=say,
            stop=self._stop,
            clips_changed=self._work.clips_changed,
        )

    def _request(self, trial: Trial, stage: int) -> RunRequest:
        start = None if trial.fresh else self._work.initial
        before = trial.folder(self._work.out, stage - 1) if stage else start
        config, last = trial.stages[stage], stage == len(trial.stages) - 1
        return RunRequest(
            config,
            Run(trial.folder(self._work.out, stage)),
            Run(before) if before else None,
            last and keeps_halves(config, self._work.weights, self._work.split),
        )

    def _scored(self, requests: Sequence[RunRequest], runs: Sequence[TrainingRun | None]) -> list[Evaluation | str]:
        """Evaluate finished trials; where that fails for all together, each alone, and an error takes its place."""
        if not requests:
            return []
        try:
            return [*evaluate_finished(requests, runs, self._work, self._base)]
        except (WriteError, ListChangedError):
            raise  # no trial is to blame
        except ISOLATED as error:
            if len(requests) == 1:
                return [error_text(error)]
            return [self._scored([request], [run])[0] for request, run in zip(requests, runs, strict=True)]


def _table_scores(evaluation: Evaluation, request: RunRequest) -> dict[str, Any]:
    """The scores of a trial for the table, and the hash of the predictions that verdicts are formed of."""
    return {**evaluation.summary(), PREDICTIONS_SHA256: file_sha256(request.run.folder / PREDICTIONS)}


def _outcome(run: TrainingRun, together: int, until: int | None) -> TrialResult:
    error = error_text(run.error) if run.error is not None else None
    score = None
    if until is not None and error is None:
        score = overall(run.logger.scores_at(min(until, run.done)))
    return TrialResult(run.done, run.seconds, together, score, error=error)


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
