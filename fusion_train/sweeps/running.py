"""Run a sweep: check, group, train company by company, judge at rungs, score; go on where it was stopped.

    trials -> stage by stage of their chains -> companies -> rung by rung -> predictions and scores -> table

One trial's failure is kept in the table and stops nothing. A company that fails as a whole (a user's fusion raises,
memory runs out) is taken apart: its members train one by one, so that the failure is found and only it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featurecache.clips import load_clips
from featurecache.errors import FeatureCacheError
from featurecache.store.publish import make_folder, replace_bytes
from fusion_train import checkpoint
from fusion_train.assemble import Workbench, reassemble, relative
from fusion_train.comparison import detectable_before
from fusion_train.data.batches import FeatureReader
from fusion_train.data.prompts import find_task
from fusion_train.errors import DataError
from fusion_train.evaluation.evaluate import Evaluation, evaluate, with_answers
from fusion_train.run import Run
from fusion_train.sweeps.companies import Cost, companies, cost_of, free_bytes, shares_base
from fusion_train.sweeps.halving import rung_steps, survivors
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.sweeps.together import Asked, Member, SharedBase, train_together
from fusion_train.sweeps.trials import DONE, FAILED, STOPPED, WAITING, Outcome, TrialTable
from fusion_train.training.held_out import overall
from fusion_train.training.train import train

ISOLATED = (FeatureCacheError, RuntimeError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
"""What a trial may fail with without ending the sweep: our errors, and those of a variant's own code or of memory."""
PREDICTIONS = "predictions.jsonl"
ABOUT = "sweep.json"
"""What `report` reads beside the table: names, the reference, where the clip list is."""


@dataclass
class Running:
    """Everything that the parts of a sweep share."""

    sweep: Sweep
    store: str
    clips: str
    out: Path
    initial: Run | None
    table: TrialTable
    costs: dict[str, Cost | None]
    base: SharedBase
    say: Callable[[str], None]

    def waiting(self) -> list[Trial]:
        return [trial for trial in self.sweep.trials if self.table.outcome(trial).state == WAITING]

    def fail(self, trial: Trial, error: Exception) -> None:
        said = str(error) if isinstance(error, FeatureCacheError) else f"{type(error).__name__}: {error}"
        self.say(f"{trial.name} failed: {said}")
        self.table.write(trial, state=FAILED, error=said)


def check(sweep: Sweep, store: str, clips: str, say: Callable[[str], None]) -> dict[str, Cost | None]:
    """Build every variant without weights, find every feature, count costs.

    Raises:
        DataError: variants that cannot run; all are listed, with what the sweep file says about their needs.
    """
    costs: dict[str, Cost | None] = {}
    problems = []
    for trial in {trial.variant: trial for trial in sweep.trials}.values():
        try:
            for config in trial.stages:
                FeatureReader.open(store, config.features.used)
            costs[trial.variant] = cost_of(trial.config, store, clips)
        except FeatureCacheError as error:
            problems.append(f"{trial.variant}: {error}")
    if problems:
        raise DataError(
            f"sweep {sweep.name}", expected="variants that can all be trained",
            got=f"{len(problems)} of {len(sweep.variants)} that cannot", next_step=sweep.needs or None,
            problems=problems,
        )  # fmt: skip
    for variant, cost in costs.items():
        if cost is not None:
            say(f"{variant}: {cost.trained:,} trained parameters, {cost.soft_tokens} soft tokens, "
                f"{cost.flops / 1e12:,.1f} TFLOP a trial, memory {cost.shared_bytes / 2**20:,.0f} MiB shared "
                f"+ {cost.own_bytes / 2**20:,.0f} MiB of its own")  # fmt: skip
    clip_list = load_clips(clips)
    asked = len(with_answers(clip_list.in_split(sweep.split), find_task(sweep.task)))
    least = detectable_before(asked, len(sweep.variants) - 1)
    say(f"{sweep.task} on {asked} clips of {sweep.split}, {len(sweep.variants) - 1} comparisons with "
        f"{sweep.reference}: differences from about {least * 100:.1f} points can be told from chance")  # fmt: skip
    return costs


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
             "reference": sweep.reference,
             "variants": sweep.variants, "halving": sweep.halving and sweep.halving.model_dump(),
             "clips": relative(clips, out), "keys": [trial.key for trial in sweep.trials]}  # fmt: skip
    replace_bytes(out / ABOUT, (json.dumps(about, indent=2) + "\n").encode())
    running = Running(sweep, store, clips, out, initial, TrialTable(out), costs, SharedBase(), say)
    for trial in sweep.trials:
        running.table.add(trial)
        if retry and running.table.outcome(trial).state == FAILED:
            running.table.write(trial, state=WAITING, error=None)
    for stage in range(max(len(trial.stages) for trial in sweep.trials)):
        _run_stage(running, stage)
    return [running.table.outcome(trial) for trial in sweep.trials]


def _run_stage(running: Running, stage: int) -> None:
    """Train one stage of every chain that has it; the last stage of a trial is judged at rungs and scored."""
    having = [trial for trial in running.waiting() if stage < len(trial.stages)]
    final = [trial for trial in having if stage == len(trial.stages) - 1]
    steps = max((trial.config.optim.steps for trial in final), default=0)
    for rung in [*rung_steps(running.sweep.halving, steps), None]:
        waiting = {trial.key for trial in running.waiting()}
        alive = [trial for trial in having if trial.key in waiting]
        for company in companies(alive, stage, lambda trial: running.costs[trial.variant], free_bytes()):
            _train_company(running, company, stage, rung)
        if rung is not None and running.sweep.halving:
            _judge(running, [trial for trial in final if trial.key in waiting], rung)


def _train_company(running: Running, company: Sequence[Trial], stage: int, until: int | None) -> None:
    """Train to `until`, or to the end and score; a company that fails is taken apart."""
    try:
        _train(running, company, stage, until)
    except ISOLATED as error:
        if len(company) == 1:
            running.fail(company[0], error)
            return
        running.say(f"{len(company)} together failed ({error}); one by one now")
        for trial in company:
            _train_company(running, [trial], stage, until)


def _train(running: Running, company: Sequence[Trial], stage: int, until: int | None) -> None:
    asked = [_asked(running, trial, stage) for trial in company]
    members: list[Member] = []
    open_ones = [(trial, each) for trial, each in zip(company, asked, strict=True) if not each.run.finished]
    if open_ones and not shares_base(company[0].stages[stage]):
        if until is None:  # it is not judged before its end
            for _, each in open_ones:
                train(each.config, store=running.store, clips=running.clips, run=each.run, initial=each.initial,
                      say=running.say)  # fmt: skip
    elif open_ones:
        members = train_together(
            [each for _, each in open_ones], store=running.store, clips=running.clips, base=running.base,
            until=until, say=running.say,
        )  # fmt: skip
        for (trial, _), member in zip(open_ones, members, strict=True):
            before = running.table.outcome(trial)
            running.table.write(trial, step=member.done, seconds=(before.seconds or 0.0) + member.seconds,
                                together=max(before.together or 0, len(members)))  # fmt: skip
            if member.error is not None:
                running.fail(trial, member.error)
            elif until is not None:
                score = overall(member.journal.scores_at(min(until, member.done)))
                if score is not None:
                    running.table.write(trial, rungs={**before.rungs, str(until): score})
    benches = {trial.key: member.bench for (trial, _), member in zip(open_ones, members, strict=bool(members))}
    for trial, each in zip(company, asked, strict=True):
        if each.run.finished and stage == len(trial.stages) - 1 and running.table.outcome(trial).state == WAITING:
            evaluation = _score(running, trial, each.run, benches.get(trial.key))
            running.table.write(trial, state=DONE, step=each.run.result["step"], scores=evaluation.summary())


def _asked(running: Running, trial: Trial, stage: int) -> Asked:
    initial = Run(trial.folder(running.out, stage - 1)) if stage else running.initial
    return Asked(trial.stages[stage], Run(trial.folder(running.out, stage)), initial)


def _score(running: Running, trial: Trial, run: Run, bench: Workbench | None) -> Evaluation:
    """Ask the best weights of a finished trial; every answer is kept in its run's folder."""
    if bench is None:  # it was finished before this process
        bench = reassemble(run, store=running.store, clips=running.clips)
    folder = checkpoint.choose(run.checkpoints, "best")
    checkpoint.load_model(folder, bench.model, name=checkpoint.best_weights(folder))
    clips = bench.reader.usable(bench.clips.in_split(running.sweep.split), trial.config.data.failed_clips)
    evaluation = evaluate(bench, clips, running.sweep.task)
    evaluation.write(run.folder / PREDICTIONS)
    return evaluation


def _judge(running: Running, trials: Sequence[Trial], rung: int) -> None:
    """Stop the variants that are behind at a rung."""
    halving = running.sweep.halving
    assert halving is not None
    scores: dict[str, list[float]] = {}
    for trial in trials:
        outcome: Any = running.table.outcome(trial)
        if outcome.state in (WAITING, DONE) and str(rung) in outcome.rungs:
            scores.setdefault(trial.variant, []).append(outcome.rungs[str(rung)])
    going_on = survivors(scores, running.sweep.reference, halving.keep)
    for variant in scores:
        if variant not in going_on:
            running.say(f"{variant}: behind after step {rung}, stopped")
    for trial in trials:
        if trial.variant in scores and trial.variant not in going_on and running.table.outcome(trial).state == WAITING:
            running.table.write(trial, state=STOPPED)
