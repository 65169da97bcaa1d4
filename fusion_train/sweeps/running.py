"""Run a sweep: check it, then per round group the trials, train them, record results and stop variants that are behind.

    sweep -> rounds (early_stopping) -> trial groups -> workers (`dispatch`, engines) -> table -> judge -> next round

A trial that fails is recorded in the table, and the others go on. A group that fails as a whole (a user's fusion
raises, memory runs out, the system kills its process) is split: its trials train one by one, so that only the trial at
fault is recorded as failed. The same command resumes a sweep. Only this module writes the table.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featurecache.files.lease import sole_writer
from featurecache.files.publish import make_folder
from featurecache.interrupt import Interrupted
from featurecache.terminal import duration
from fusion_train.data.pool import CLIP_LIST, list_hashes
from fusion_train.data.samples import DRAW_RULE
from fusion_train.documents import read_document, write_document
from fusion_train.errors import DataError, ListChangedError
from fusion_train.run import LOCK, Run, relative
from fusion_train.sweeps.budget import admitted, estimate, used_up, waiting_seeds
from fusion_train.sweeps.early_stopping import (
    SweepRound,
    probe_round,
    probes_of,
    rounds,
    stop_by_probe,
    stop_those_behind,
)
from fusion_train.sweeps.engines import Executor, here
from fusion_train.sweeps.expected_power import power_notice
from fusion_train.sweeps.grouping import group_trials, shares_base
from fusion_train.sweeps.job import ABOUT, PREDICTIONS, Cost, GroupResult, SweepSettings, TrialGroup, TrialResult
from fusion_train.sweeps.scored_weights import BEST, choosing_splits, refuse_without_halves, resolve_scoring
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.sweeps.trials import DONE, FAILED, WAITING, Outcome, TrialTable

DESCRIPTION, DELETE_IT = "the description of a sweep", "Delete it and run the same command."

OpenExecutor = Callable[[SweepSettings, Callable[[str], None]], AbstractContextManager[Executor]]


@dataclass
class SweepProgress:
    """A sweep at work: its table, its costs and the executor that trains its trials."""

    sweep: Sweep
    table: TrialTable
    costs: dict[str, Cost | None]
    executor: Executor
    say: Callable[[str], None]

    def is_waiting(self, trial: Trial) -> bool:
        return self.table.outcome(trial).state == WAITING

    def fail(self, trial: Trial, error: str, **values: Any) -> None:
        self.say(f"{trial.name} failed: {error}")
        self.table.write(trial, state=FAILED, error=error, **values)


def run_sweep(
    sweep: Sweep,
    *,
    store: str,
    clips: str,
    out: Path,
    initial: Run | None = None,
    retry: bool = False,
    clips_changed: bool = False,
    open_executor: OpenExecutor = here.executor,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Train and score every trial that is not done; returns the outcome of each trial, in the order of the sweep.

    Args:
        initial: run that the first stage of every trial starts from.
        retry: take failed trials up again.
        clips_changed: go on though the clip list changed since the sweep began, and record that.
        open_executor: opens the workers that train; see `engines`.

    Raises:
        ConfigError: the budget has no room for one seed, or a device is not there.
        DataError: a variant cannot run, or an earlier release began trials; nothing was started.
        ListChangedError: the clip list is another one; nothing was started, all trials are as they were.
        WriteError: another process is running this sweep.
        Interrupted: stopped on request; the same command goes on.
    """
    sweep = resolve_scoring(sweep, clips)
    _refuse_other_draws(sweep, out)
    work = SweepSettings(
        store,
        clips,
        out,
        sweep.task,
        sweep.split,
        sweep.weights,
        str(initial.folder) if initial else None,
        sweep.trials[0].config.optim.precision,
        clips_changed,
    )
    with sole_writer(out / LOCK, out), open_executor(work, say) as executor:
        lists = _lists(sweep, clips, out, clips_changed, say)
        refuse_without_halves(sweep, all_trials(sweep), out)
        costs = executor.check(sweep)
        return _run(SweepProgress(sweep, _table(sweep, clips, out, retry, lists), costs, executor, say))


def all_trials(sweep: Sweep) -> list[Trial]:
    """All trials of a sweep, and the probes of its probe tier."""
    return [*sweep.trials, *(probe for probes in probes_of(sweep).values() for probe in probes)]


def _refuse_other_draws(sweep: Sweep, out: Path) -> None:
    """Raise DataError where trials would go on, or stand beside others, that draw their samples by another rule."""
    stages = [[Run(trial.folder(out, number)) for number in range(len(trial.stages))] for trial in all_trials(sweep)]
    other = [run.name for runs in stages for run in runs if run.exists and run.record().draw_rule != DRAW_RULE]
    if other and not all(runs[-1].finished for runs in stages):
        raise DataError(
            str(out),
            expected="trials that draw their samples by the rule of this release",
            got=f"{len(other)} that an earlier release began, and others that are not finished",
            next_step="Finish the sweep with that release, or run it in another folder: --out.",
            problems=other[:12],
        )


def _lists(sweep: Sweep, clips: str, out: Path, accept: bool, say: Callable[[str], None]) -> dict[str, str]:
    """Return the hashes of the clip list and of the files laid over it.

    Raises:
        ListChangedError: one of them changed since the first trial of this sweep began, and this is not accepted.
    """
    hashes: dict[str, str] = {}
    for config in (config for trial in sweep.trials for config in trial.stages):
        hashes |= list_hashes(config, clips)
    stages = [[Run(trial.folder(out, number)) for number in range(len(trial.stages))] for trial in sweep.trials]
    num_begun = sum(any(run.exists for run in runs) for runs in stages)
    if not num_begun or all(runs[-1].finished for runs in stages) or not (out / ABOUT).is_file():
        return hashes
    recorded = read_document(out / ABOUT, DataError, DESCRIPTION, DELETE_IT).get("lists", {})
    if not recorded and not accept:
        return {}  # written by an earlier release: each trial has its own record of the lists
    names = [
        clips if name == CLIP_LIST else name for name in recorded if name in hashes and hashes[name] != recorded[name]
    ]
    if not names:
        return hashes
    if not accept:
        raise ListChangedError(
            ", ".join(names),
            expected=f"the clips that {out} began with",
            got="another file",
            next_step="Take it from a copy and run the same command, or accept it with --clips-changed: trials left "
            f"would learn from other clips than the {num_begun} begun. No trial is marked as failed by this.",
        )
    say(
        f"{', '.join(names)}: changed since {out} began; accepted. {num_begun} of its trials began with the earlier "
        "clips"
    )
    return hashes


def _table(sweep: Sweep, clips: str, out: Path, retry: bool, lists: dict[str, str]) -> TrialTable:
    """Write the sweep's description for `report`, and return the table with all trials in it."""
    make_folder(out)
    about = {
        "name": sweep.name,
        "task": sweep.task,
        **asdict(sweep.measure),
        "split": sweep.split,
        "weights": sweep.weights,
        "why_weights": sweep.why_weights,
        "chosen_on": choosing_splits(sweep),
        "reference": sweep.reference,
        "variants": sweep.variants,
        "halving": sweep.halving and sweep.halving.model_dump(),
        "clips": relative(clips, out),
        "lists": lists,
        "told_before": power_notice(sweep, clips),
        "keys": [trial.key for trial in sweep.trials],
        "probes": {name: [probe.key for probe in probes] for name, probes in probes_of(sweep).items()},
    }
    table = TrialTable(out)
    table.add(all_trials(sweep))
    previous = about
    if (out / ABOUT).is_file():
        previous = read_document(out / ABOUT, DataError, DESCRIPTION, DELETE_IT)
    scoring_changed = any(previous.get(name, BEST) != about[name] for name in ("task", "split", "weights"))
    retrain = {FAILED: retry, DONE: scoring_changed}
    for trial in all_trials(sweep):
        state = table.outcome(trial).state
        unanswered = state == DONE and not (trial.folder(out, len(trial.stages) - 1) / PREDICTIONS).is_file()
        if retrain.get(state) or unanswered:
            table.write(trial, state=WAITING, error=None)
    write_document(out / ABOUT, about)
    return table


def _run(running: SweepProgress) -> list[Outcome]:
    sweep, table = running.sweep, running.table
    times = estimate(sweep, table, running.costs, lambda: running.executor.capacity().peak_flops)
    admitted_keys = {trial.key for trial in admitted(sweep, table, times, running.say)}
    if (probing := probe_round(sweep)) is not None:
        _run_round(running, probing, list(probing.trials))
        stop_by_probe(sweep, table, running.say)
    for sweep_round in rounds(sweep):
        _run_round(running, sweep_round, [trial for trial in sweep_round.trials if trial.key in admitted_keys])
        if used_up(sweep, table, 0.0):
            waiting = [trial for trial in sweep.trials if running.is_waiting(trial)]
            if waiting:
                running.say(
                    f"the budget is used up ({duration(table.spent())} of device time); a larger one goes on "
                    f"with {waiting_seeds(waiting)}"
                )
            break
    return [table.outcome(trial) for trial in sweep.trials]


def _run_round(running: SweepProgress, sweep_round: SweepRound, trials: list[Trial]) -> None:
    waiting = [trial for trial in trials if running.is_waiting(trial)]
    if sweep_round.until is not None:  # a trial that trains alone is not judged before its end
        waiting = [trial for trial in waiting if shares_base(trial.stages[sweep_round.stage])]
    if waiting and not used_up(running.sweep, running.table, 0.0):
        capacity = running.executor.capacity()
        grouped = group_trials(
            waiting,
            sweep_round.stage,
            lambda trial: running.costs.get(trial.variant),
            capacity.free_bytes,
            running.executor.count,
        )
        groups = [TrialGroup(tuple(group), sweep_round.stage, sweep_round.until) for group in grouped]
        for group, result, seconds in dispatch(
            running.executor, groups, running.say, lambda at_work_s: used_up(running.sweep, running.table, at_work_s)
        ):
            running.table.spend(seconds)
            _keep(running, group, result)
    if sweep_round.until is not None and not used_up(running.sweep, running.table, 0.0):
        stop_those_behind(running.sweep, running.table, sweep_round.judged, sweep_round.until, running.say)


def _keep(running: SweepProgress, group: TrialGroup, result: GroupResult) -> None:
    """Record the results of the trials of a group."""
    if result.error is not None and len(group.trials) == 1 and not result.lost:
        running.fail(group.trials[0], result.error)
    for trial, trial_result in zip(group.trials, result.trained, strict=bool(result.trained)):
        _keep_trial(running, trial, group, trial_result)


def _keep_trial(running: SweepProgress, trial: Trial, group: TrialGroup, trained: TrialResult) -> None:
    values: dict[str, Any] = {}
    if trained.step is not None:
        before = running.table.outcome(trial)
        values = {
            "step": trained.step,
            "seconds": (before.seconds or 0.0) + trained.seconds,
            "together": max(before.together or 0, trained.together),
        }
        if trained.score is not None and group.stage == len(trial.stages) - 1:
            values["rungs"] = {**before.rungs, str(group.until): trained.score}
    if trained.error is not None:
        running.fail(trial, trained.error, **values)
    elif trained.scores is not None:
        running.table.write(trial, state=DONE, scores=trained.scores, **values)
    elif values:
        running.table.write(trial, **values)


def dispatch(
    executor: Executor,
    groups: Iterable[TrialGroup],
    say: Callable[[str], None],
    used_up: Callable[[float], bool] = lambda at_work_s: False,
) -> Iterator[tuple[TrialGroup, GroupResult, float]]:
    """Train groups, as many at once as there are workers; yields each group with its result and its seconds.

    A group of several trials that failed, or whose worker died, is split: its trials train one by one, so that the
    trial at fault is found.

    Args:
        used_up: receives the total running time of active groups; when it returns True, no new group starts.

    Raises:
        FeatureCacheError: an error that is no trial's fault, such as a full disk; active groups resume from their
        checkpoints.
        Interrupted: a stop was requested; all active groups are saved.
    """
    queue = deque(groups)
    active: dict[int, tuple[TrialGroup, float]] = {}
    stopped = False
    while True:
        idle = [worker for worker in range(executor.count) if worker not in active]
        now = time.perf_counter()
        while (
            idle
            and queue
            and not executor.stopping
            and not used_up(sum(now - start_s for _, start_s in active.values()))
        ):
            worker, group = idle.pop(0), queue.popleft()
            active[worker] = group, now
            executor.begin(worker, group)
        if not active:
            break
        for worker, result in executor.answers():
            group, start_s = active.pop(worker)
            if result.halt is not None:
                raise result.halt
            if result.lost:
                queue.appendleft(group)
            elif result.error is not None and len(group.trials) > 1:
                say(f"{len(group.trials)} together failed ({result.error}); one by one now")
                queue.extendleft(replace(group, trials=(trial,)) for trial in reversed(group.trials))
            stopped = stopped or result.stopped
            yield group, result, time.perf_counter() - start_s
    if stopped or (queue and executor.stopping):
        raise Interrupted("stopped. Go on with the same command.")
