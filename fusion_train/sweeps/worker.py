"""Train one group of trials and score those that are finished. Knows no table, no other group and no engine."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from featurecache.errors import FeatureCacheError, WriteError
from featurecache.files.hashing import file_sha256
from featurecache.interrupt import Interrupted
from featurecache.machine import free_memory_bytes
from fusion_train.errors import ListChangedError
from fusion_train.evaluation.evaluate import Evaluation
from fusion_train.processes import this_process
from fusion_train.run import Run
from fusion_train.sweeps.check import check
from fusion_train.sweeps.final_scores import evaluate_finished
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
from fusion_train.sweeps.scored_weights import keeps_halves
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.training.devices import matrix_peak
from fusion_train.training.shared_base import RunRequest, SharedBase
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
