"""Stop variants that are behind: the rule of successive halving applied to the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
    stop_behind(sweep, table, trials, scores, sweep.halving.keep, f"after step {rung}", say)


def stop_behind(
    sweep: Sweep,
    table: TrialTable,
    trials: Sequence[Trial],
    scores: Mapping[str, Sequence[float]],
    keep: float,
    where: str,
    say: Callable[[str], None],
) -> None:
    """Stop the waiting trials of variants that are behind by these scores; the table keeps where that was."""
    going_on = survivors(scores, sweep.reference, keep)
    stopped = [trial for trial in trials if trial.variant in scores and trial.variant not in going_on
               and table.outcome(trial).state == WAITING]  # fmt: skip
    for variant in dict.fromkeys(trial.variant for trial in stopped):
        say(f"{variant}: behind {where}, stopped")
    for trial in stopped:
        table.write(trial, state=STOPPED, stopped=f"behind {where}")
