"""Apply the rule of successive halving to the table: stop the variants that are behind at a rung."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fusion_train.sweeps.halving import survivors
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.sweeps.trials import FAILED, STOPPED, WAITING, TrialTable


def stop_those_behind(
    sweep: Sweep, table: TrialTable, trials: Sequence[Trial], rung: int, say: Callable[[str], None]
) -> None:
    """Judge trials by their scores at a rung; one that was not scored there goes on.

    Those stopped there before count too, so that a sweep that goes on comes to the same judgement again.
    """
    assert sweep.halving is not None
    scores: dict[str, list[float]] = {}
    for trial in trials:
        outcome = table.outcome(trial)
        if outcome.state != FAILED and str(rung) in outcome.rungs:
            scores.setdefault(trial.variant, []).append(outcome.rungs[str(rung)])
    going_on = survivors(scores, sweep.reference, sweep.halving.keep)
    behind = [trial for trial in trials if trial.variant in scores and trial.variant not in going_on]
    stopped = [trial for trial in behind if table.outcome(trial).state == WAITING]
    for variant in dict.fromkeys(trial.variant for trial in stopped):
        say(f"{variant}: behind after step {rung}, stopped")
    for trial in stopped:
        table.write(trial, state=STOPPED)
