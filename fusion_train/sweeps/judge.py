"""Apply the rule of successive halving to the table: stop the variants that are behind at a rung."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusion_train.sweeps.halving import survivors
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.sweeps.trials import DONE, STOPPED, WAITING, TrialTable


def stop_those_behind(
    sweep: Sweep, table: TrialTable, trials: Sequence[Trial], rung: int, say: Callable[[str], None]
) -> None:
    """Judge trials by their scores at a rung; one that was not scored there goes on."""
    assert sweep.halving is not None
    scores: dict[str, list[float]] = {}
    for trial in trials:
        outcome = table.outcome(trial)
        if outcome.state in (WAITING, DONE) and str(rung) in outcome.rungs:
            scores.setdefault(trial.variant, []).append(outcome.rungs[str(rung)])
    going_on = survivors(scores, sweep.reference, sweep.halving.keep)
    behind = [variant for variant in scores if variant not in going_on]
    for variant in behind:
        say(f"{variant}: behind after step {rung}, stopped")
    for trial in trials:
        if trial.variant in behind and table.outcome(trial).state == WAITING:
            table.write(trial, state=STOPPED)
