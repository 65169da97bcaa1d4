"""Run a sweep: check, then round by round: group, train, keep what became of each trial, judge; go on where it stopped.

    sweep -> rounds (scheduling) -> companies -> worker -> table -> judge -> next round

One trial's failure is kept in the table and stops nothing. A company that fails as a whole (a user's fusion raises,
memory runs out) is taken apart: its members train one by one, so that the failure is found and only it is kept.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from featurecache.store.publish import make_folder, replace_bytes
from fusion_train.assemble import relative
from fusion_train.run import Run
from fusion_train.sweeps.check import check
from fusion_train.sweeps.companies import Cost, companies, free_bytes, shares_base
from fusion_train.sweeps.judge import stop_those_behind
from fusion_train.sweeps.scheduling import Round, rounds
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.sweeps.trials import DONE, FAILED, WAITING, Outcome, TrialTable
from fusion_train.sweeps.work import ABOUT, Group, Trained, Work
from fusion_train.sweeps.worker import ISOLATED, Worker, said


@dataclass
class Running:
    """Everything that the parts of a sweep share."""

    sweep: Sweep
    table: TrialTable
    costs: dict[str, Cost | None]
    worker: Worker
    say: Callable[[str], None]

    def is_waiting(self, trial: Trial) -> bool:
        return self.table.outcome(trial).state == WAITING

    def fail(self, trial: Trial, error: str) -> None:
        self.say(f"{trial.name} failed: {error}")
        self.table.write(trial, state=FAILED, error=error)


def run_sweep(
    sweep: Sweep,
    *,
    store: str,
    clips: str,
    out: Path,
    initial: Run | None = None,
    retry: bool = False,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Train and score every trial that is not done; returns what became of each, in the order of the sweep.

    Args:
        initial: run that the first stage of every trial starts from.
        retry: take failed trials up again.

    Raises:
        DataError: a variant cannot run; nothing was started.
        Interrupted: stopped on request; the same command goes on.
    """
    costs = check(sweep, store, clips, say)
    make_folder(out)
    about = {"name": sweep.name, "task": sweep.task, **asdict(sweep.measure), "split": sweep.split,
             "reference": sweep.reference, "variants": sweep.variants,
             "halving": sweep.halving and sweep.halving.model_dump(), "clips": relative(clips, out),
             "keys": [trial.key for trial in sweep.trials]}  # fmt: skip
    replace_bytes(out / ABOUT, (json.dumps(about, indent=2) + "\n").encode())
    work = Work(store, clips, out, sweep.task, sweep.split, str(initial.folder) if initial else None)
    running = Running(sweep, TrialTable(out), costs, Worker(work, say), say)
    for trial in sweep.trials:
        running.table.add(trial)
        if retry and running.table.outcome(trial).state == FAILED:
            running.table.write(trial, state=WAITING, error=None)
    for each in rounds(sweep):
        _run_round(running, each)
    return [running.table.outcome(trial) for trial in sweep.trials]


def _run_round(running: Running, this: Round) -> None:
    left = [trial for trial in this.trials if running.is_waiting(trial)]
    judged = [trial for trial in this.judged if running.is_waiting(trial)]
    if this.until is not None:  # what trains alone is not judged before its end
        left = [trial for trial in left if shares_base(trial.stages[this.stage])]
    formed = companies(left, this.stage, lambda trial: running.costs[trial.variant], free_bytes())
    groups = deque(Group(tuple(company), this.stage, this.until) for company in formed)
    while groups:
        group = groups.popleft()
        try:
            found = running.worker.run(group)
        except ISOLATED as error:
            if len(group.trials) == 1:
                running.fail(group.trials[0], said(error))
                continue
            running.say(f"{len(group.trials)} together failed ({error}); one by one now")
            groups.extendleft(Group((trial,), group.stage, group.until) for trial in reversed(group.trials))
            continue
        for trial, trained in zip(group.trials, found, strict=True):
            _keep(running, trial, group.until, trained)
    if this.until is not None:
        stop_those_behind(running.sweep, running.table, judged, this.until, running.say)


def _keep(running: Running, trial: Trial, until: int | None, trained: Trained) -> None:
    """Write down what became of a trial."""
    if trained.step is not None:
        before = running.table.outcome(trial)
        running.table.write(trial, step=trained.step, seconds=(before.seconds or 0.0) + trained.seconds,
                            together=max(before.together or 0, trained.together))  # fmt: skip
        if trained.score is not None:
            running.table.write(trial, rungs={**before.rungs, str(until): trained.score})
    if trained.error is not None:
        running.fail(trial, trained.error)
    elif trained.scores is not None:
        running.table.write(trial, state=DONE, scores=trained.scores)
