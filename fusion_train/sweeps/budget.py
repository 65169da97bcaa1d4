"""The budget of a sweep: which seeds fit into it, estimated before the start, and when no further group starts.

A seed is left out for all variants at once, the last seeds first, so that every variant has equally many. The estimated
time of a trial is its FLOPs times the seconds per FLOP that this sweep has needed so far. Before any trial is trained,
the estimate is FLOPs over the measured matrix peak at the utilisation that plans assume; small models do not reach it.
Early stopping reduces the estimate by its rule. The table records the device time used by all devices and all runs of
the command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from featurecache.terminal import duration
from fusion_train.errors import ConfigError
from fusion_train.planning.costs import DEFAULT_UTILISATION
from fusion_train.sweeps.early_stopping import rung_steps
from fusion_train.sweeps.job import Cost
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.sweeps.trials import WAITING, TrialTable

HOUR_S = 3600


@dataclass(frozen=True)
class TimeEstimate:
    """Seconds of a whole trial, from its FLOPs."""

    flops: Mapping[str, float]
    """Variant -> FLOPs of all its stages and steps; without probes, whose cost is negligible."""
    seconds_a_flop: float
    measured: bool

    def seconds(self, trial: Trial) -> float:
        return self.flops.get(trial.variant, 0.0) * self.seconds_a_flop


def estimate(
    sweep: Sweep, table: TrialTable, costs: Mapping[str, Cost | None], peak_flops: Callable[[], float]
) -> TimeEstimate:
    """Estimate the time of trials from the trials trained before, or else from `peak_flops()` of a device."""
    flops = {}
    for trial in sweep.trials:
        if (cost := costs[trial.variant]) is not None:
            samples = [stage.optim.steps * stage.optim.batch_size for stage in trial.stages]
            flops[trial.variant] = cost.flops * sum(samples) / samples[-1]
    seconds = flops_done = 0.0
    for trial in sweep.trials:
        outcome = table.outcome(trial)
        if outcome.seconds and outcome.step and trial.variant in flops:
            seconds += outcome.seconds
            flops_done += costs[trial.variant].flops * outcome.step / trial.config.optim.steps  # type: ignore[union-attr]
    if flops_done:  # with loading and scoring, which are not in the seconds of a trial
        return TimeEstimate(flops, max(seconds, table.spent()) / flops_done, measured=True)
    return TimeEstimate(flops, 1 / (peak_flops() * DEFAULT_UTILISATION) if flops else 0.0, measured=False)


def share_of_steps(sweep: Sweep) -> float:
    """Share of all steps that is trained when variants stop early."""
    if sweep.halving is None:
        return 1.0
    steps, variants = 1000, len(sweep.variants)
    share, running, previous = 0.0, float(variants), 0
    for rung in [*rung_steps(sweep.halving, steps), steps]:
        share += running / variants * (rung - previous) / steps
        running, previous = max(1.0, running * sweep.halving.keep), rung
    return share


def admitted(sweep: Sweep, table: TrialTable, times: TimeEstimate, say: Callable[[str], None]) -> list[Trial]:
    """Return the trials that fit into the budget, and those that are not waiting.

    Raises:
        ConfigError: not one seed of all variants fits, and nothing has been spent.
    """
    budget = sweep.budget
    seeds = list(dict.fromkeys(trial.seed for trial in sweep.trials))
    trials_of_seed = {seed: [trial for trial in sweep.trials if trial.seed == seed] for seed in seeds}
    waiting = {
        seed: [trial for trial in trials if table.outcome(trial).state == WAITING]
        for seed, trials in trials_of_seed.items()
    }
    used_s, share = table.spent(), share_of_steps(sweep)
    num_started = len(sweep.trials) - sum(map(len, waiting.values()))
    expected = {seed: sum(map(times.seconds, trials)) * share for seed, trials in waiting.items()}
    if sum(map(len, waiting.values())):
        basis = "as trials before took" if times.measured else f"at {DEFAULT_UTILISATION:.0%} of the matrix peak"
        say(
            f"{sum(map(len, waiting.values()))} trials left, about {duration(sum(expected.values()))} of device time "
            f"{basis}"
        )
    if budget is None:
        return list(sweep.trials)
    admitted_seeds: list[int] = []
    for seed in seeds:
        used_s += expected[seed]
        num_started += len(waiting[seed])
        too_long = budget.hours is not None and used_s > budget.hours * HOUR_S
        too_many = budget.trials is not None and num_started > budget.trials
        if waiting[seed] and (too_long or too_many):
            break
        admitted_seeds.append(seed)
    if not admitted_seeds and table.spent() == 0:
        first = seeds[0]
        raise ConfigError(
            "budget",
            expected=f"room for one seed of all {len(trials_of_seed[first])} variants: "
            f"{expected[first] / HOUR_S:.2g} hours, {len(trials_of_seed[first])} trials",
            got=", ".join(f"{name} {value}" for name, value in budget.model_dump(exclude_none=True).items()),
            next_step="Give more with --budget hours=…, or name fewer variants.",
        )
    left_out = [seed for seed in seeds if seed not in admitted_seeds]
    if left_out:
        say(
            f"the budget has room for {len(admitted_seeds)} of {len(seeds)} seeds; left waiting for a larger one: seed "
            + ", ".join(map(str, left_out))
            + " of every variant"
        )
    return [trial for seed in admitted_seeds for trial in trials_of_seed[seed]]


def used_up(sweep: Sweep, table: TrialTable, at_work_s: float) -> bool:
    """Whether the budget is used up, given the running time `at_work_s` of active groups."""
    hours = sweep.budget.hours if sweep.budget else None
    return hours is not None and table.spent() + at_work_s >= hours * HOUR_S


def waiting_seeds(trials: Sequence[Trial]) -> str:
    """List the waiting seeds by variant."""
    seeds: dict[str, list[str]] = {}
    for trial in trials:
        seeds.setdefault(trial.variant, []).append(str(trial.seed))
    return "; ".join(f"{variant} (seed {', '.join(numbers)})" for variant, numbers in seeds.items())
