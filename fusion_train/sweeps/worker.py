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
from fusion_train.sweeps.group_training import Asked, Member, SharedBase, train_together
from fusion_train.sweeps.grouping import shares_base
from fusion_train.sweeps.job import PREDICTIONS, PREDICTIONS_SHA256, Answer, Cost, Group, Room, Trained, Work
from fusion_train.sweeps.scored_weights import keeps_halves
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.training.devices import matrix_peak
from fusion_train.training.train import train
from fusion_train.training.validation import overall

USABLE = 0.9
"""Share of the free memory that groups may be planned with."""
ISOLATED = (FeatureCacheError, RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
"""What a trial may fail with without ending the sweep: our errors, and those of a variant's own code or of memory."""


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def said(error: BaseException) -> str:
    """What the table keeps of an error."""
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

    def __init__(self, work: Work, say: Callable[[str], None], stop: Callable[[], bool] = lambda: False) -> None:
        """Args:
        stop: asked after every step whether to save and stop there.
        """
        self._work, self._say, self._stop = work, say, stop
        self._base = SharedBase()

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        """See `check`."""
        return check(sweep, self._work.store, self._work.clips, self._say)

    def room(self) -> Room:
        """What this process's device has for a worker."""
        device = this_process().device
        if device.type == "cuda":
            free = torch.cuda.mem_get_info()[0]
        else:
            free = free_memory_bytes()
        return Room(int(free * USABLE), matrix_peak(device, self._work.precision))

    def answer(self, group: Group) -> Answer:
        """What became of a group; an error that a trial's own code may raise is part of the answer."""
        try:
            return Answer(tuple(self.train(group)))
        except Interrupted:
            return Answer(stopped=True)
        except ListChangedError as error:
            return Answer(halt=error)
        except WriteError as error:
            return Answer(halt=_disk_refuses(error))
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            return Answer(halt=_disk_refuses(error))
        except ISOLATED as error:
            return Answer(error=said(error), damaged=not isinstance(error, FeatureCacheError))

    def train(self, group: Group) -> list[Trained]:
        """Train a group to its end or pause; returns what became of each trial, in its order.

        Raises:
            ISOLATED: the group failed as a whole; which of the trials is to blame is not known.
            Interrupted: stopped on request; all are saved.
        """
        asked = [self._asked(trial, group.stage) for trial in group.trials]
        left = [place for place, each in enumerate(asked) if not each.run.finished]
        found = [Trained() for _ in asked]
        trained: dict[int, Member] = {}
        if left and shares_base(asked[0].config):
            members = train_together(
                [asked[place] for place in left],
                store=self._work.store,
                clips=self._work.clips,
                base=self._base,
                until=group.until,
                say=self._say,
                stop=self._stop,
                clips_changed=self._work.clips_changed,
            )
            for place, member in zip(left, members, strict=True):
                found[place] = _trained(member, len(members), group.until)
                trained[place] = member
        else:
            for place in left:
                found[place] = self._train_alone(asked[place])
        finished = [
            place
            for place, (trial, each) in enumerate(zip(group.trials, asked, strict=True))
            if each.run.finished and group.stage == len(trial.stages) - 1
        ]
        scored = self._scored([asked[place] for place in finished], [trained.get(place) for place in finished])
        for place, outcome in zip(finished, scored, strict=True):
            own = {"error": outcome} if isinstance(outcome, str) else {"scores": _kept(outcome, asked[place])}
            found[place] = replace(found[place], step=asked[place].run.result["step"], **own)
        return found

    def _asked(self, trial: Trial, stage: int) -> Asked:
        start = None if trial.fresh else self._work.initial
        before = trial.folder(self._work.out, stage - 1) if stage else start
        config, last = trial.stages[stage], stage == len(trial.stages) - 1
        return Asked(
            config,
            Run(trial.folder(self._work.out, stage)),
            Run(before) if before else None,
            last and keeps_halves(config, self._work.weights, self._work.split),
        )

    def _train_alone(self, asked: Asked) -> Trained:
        def say(line: str) -> None:  # several workers speak at once
            self._say(f"{asked.run.name}: {line.removeprefix(f'{asked.run.folder}: ')}")

        result = train(
            asked.config,
            store=self._work.store,
            clips=self._work.clips,
            run=asked.run,
            initial=asked.initial,
            say=say,
            stop=self._stop,
            clips_changed=self._work.clips_changed,
            per_half=asked.per_half,
        )
        return Trained(result["step"], result["seconds"], together=1)

    def _scored(self, asked: Sequence[Asked], members: Sequence[Member | None]) -> list[Evaluation | str]:
        """Answers of finished trials, or the error of one; asked one by one where that fails together."""
        if not asked:
            return []
        try:
            return [*evaluate_finished(asked, members, self._work, self._base)]
        except (WriteError, ListChangedError):
            raise  # nobody's fault
        except ISOLATED as error:
            if len(asked) == 1:
                return [said(error)]
            return [self._scored([each], [member])[0] for each, member in zip(asked, members, strict=True)]


def _kept(outcome: Evaluation, asked: Asked) -> dict[str, Any]:
    """What the table keeps of a trial's answers: the scores, and the hash of the file that verdicts are formed of."""
    return {**outcome.summary(), PREDICTIONS_SHA256: file_sha256(asked.run.folder / PREDICTIONS)}


def _trained(member: Member, together: int, until: int | None) -> Trained:
    error = said(member.error) if member.error is not None else None
    score = None
    if until is not None and error is None:
        score = overall(member.logger.scores_at(min(until, member.done)))
    return Trained(member.done, member.seconds, together, score, error=error)
