"""What a sweep may cost: which seeds fit, estimated before the start, and when nothing more is begun.

Seeds fall out whole, the last ones first, so that every variant keeps equally many. The estimate of a trial is the time
that this sweep took so far, by the arithmetic it did; before any has been trained, arithmetic over the measured
matrix peak at the utilisation that plans assume, which small models do not reach. Stopping early is counted as the rule
says. What is used is counted in device time, over all devices and all runs of the command, and kept in the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from featurecache.terminal import duration
from fusion_train.errors import ConfigError
from fusion_train.planning.costs import DEFAULT_UTILISATION
from fusion_train.sweeps.halving import rung_steps
from fusion_train.sweeps.job import Cost
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.sweeps.trials import WAITING, TrialTable

HOUR_S = 3600


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of a whole trial, by its arithmetic."""

    flops: Mapping[str, float]
    """Variant -> of all stages and steps; probes, which take next to nothing, are not here."""
    seconds_a_flop: float
    measured: bool

    def seconds(self, trial: Trial) -> float:
        return self.flops.get(trial.variant, 0.0) * self.seconds_a_flop


def estimate(
    sweep: Sweep, table: TrialTable, costs: Mapping[str, Cost | None], peak_flops: Callable[[], float]
) -> TimeEstimate:
    """Estimate trials by those trained before; `peak_flops` of a device is asked for where there is none."""
    flops = {}
    for trial in sweep.trials:
        if (cost := costs[trial.variant]) is not None:
            samples = [stage.optim.steps * stage.optim.batch_size for stage in trial.stages]
            flops[trial.variant] = cost.flops * sum(samples) / samples[-1]
    seconds = done = 0.0
    for trial in sweep.trials:
        outcome = table.outcome(trial)
        if outcome.seconds and outcome.step and trial.variant in flops:
            seconds += outcome.seconds
            done += costs[trial.variant].flops * outcome.step / trial.config.optim.steps  # type: ignore[union-attr]
    if done:  # with loading and scoring, which are not in the seconds of a trial
        return TimeEstimate(flops, max(seconds, table.spent()) / done, measured=True)
    return TimeEstimate(flops, 1 / (peak_flops() * DEFAULT_UTILISATION) if flops else 0.0, measured=False)


def share_of_steps(sweep: Sweep) -> float:
    """Share of all steps that is trained where variants are stopped early."""
    if sweep.halving is None:
        return 1.0
    steps, variants = 1000, len(sweep.variants)
    share, alive, before = 0.0, float(variants), 0
    for rung in [*rung_steps(sweep.halving, steps), steps]:
        share += alive / variants * (rung - before) / steps
        alive, before = max(1.0, alive * sweep.halving.keep), rung
    return share


def admitted(sweep: Sweep, table: TrialTable, guess: TimeEstimate, say: Callable[[str], None]) -> list[Trial]:
    """The trials that the budget has room for, those that are not waiting included.

    Raises:
        ConfigError: not one seed of all variants fits, and nothing has been spent.
    """
    budget = sweep.budget
    seeds = list(dict.fromkeys(trial.seed for trial in sweep.trials))
    of_seed = {seed: [trial for trial in sweep.trials if trial.seed == seed] for seed in seeds}
    open_ones = {
        seed: [trial for trial in trials if table.outcome(trial).state == WAITING] for seed, trials in of_seed.items()
    }
    used_s, share = table.spent(), share_of_steps(sweep)
    started = len(sweep.trials) - sum(map(len, open_ones.values()))
    expected = {seed: sum(map(guess.seconds, trials)) * share for seed, trials in open_ones.items()}
    if sum(map(len, open_ones.values())):
        by = "as trials before took" if guess.measured else f"at {DEFAULT_UTILISATION:.0%} of the matrix peak"
        say(
            f"{sum(map(len, open_ones.values()))} trials left, about {duration(sum(expected.values()))} of device time "
            f"{by}"
        )
    if budget is None:
        return list(sweep.trials)
    kept: list[int] = []
    for seed in seeds:
        used_s += expected[seed]
        started += len(open_ones[seed])
        too_long = budget.hours is not None and used_s > budget.hours * HOUR_S
        too_many = budget.trials is not None and started > budget.trials
        if open_ones[seed] and (too_long or too_many):
            break
        kept.append(seed)
    if not kept and table.spent() == 0:
        first = seeds[0]
        raise ConfigError(
            "budget",
            expected=f"room for one seed of all {len(of_seed[first])} variants: "
            f"{expected[first] / HOUR_S:.2g} hours, {len(of_seed[first])} trials",
            got=", ".join(f"{name} {value}" for name, value in budget.model_dump(exclude_none=True).items()),
            next_step="Give more with --budget hours=…, or name fewer variants.",
        )
    left_out = [seed for seed in seeds if seed not in kept]
    if left_out:
        say(
            f"the budget has room for {len(kept)} of {len(seeds)} seeds; left waiting for a larger one: seed "
            + ", ".join(map(str, left_out))
            + " of every variant"
        )
    return [trial for seed in kept for trial in of_seed[seed]]


def used_up(sweep: Sweep, table: TrialTable, at_work_s: float) -> bool:
    """Whether nothing more may be begun, given the time of what is at work now."""
    hours = sweep.budget.hours if sweep.budget else None
    return hours is not None and table.spent() + at_work_s >= hours * HOUR_S


def waiting_seeds(trials: Sequence[Trial]) -> str:
    """Names of trials that wait for a larger budget, a variant at a time."""
    seeds: dict[str, list[str]] = {}
    for trial in trials:
        seeds.setdefault(trial.variant, []).append(str(trial.seed))
    return "; ".join(f"{variant} (seed {', '.join(each)})" for variant, each in seeds.items())
