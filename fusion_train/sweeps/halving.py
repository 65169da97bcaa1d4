"""Stop variants early that are behind: successive halving on identical data order.

Rule. At each share of the steps named by `at`, variants are ordered by their held-out score, averaged over seeds; the
better `keep` of those still running go on (rounded up, at least one), ties in favour of going on. The reference always
goes on, since the others are compared with it. All variants of a seed have then seen the same clips in the same order.

Risk. A variant that learns slowly and would have won is dropped unseen: what is dropped is "behind at step s", not
"worse". How far the order at a rung agrees with the order at the end is measured on those that finished and reported
(`rank_correlation`); with few finishers it says little. A stopped variant gets no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from scipy import stats

from fusion_train.sweeps.sweep_file import Halving, Sweep, Trial
from fusion_train.sweeps.trials import FAILED, STOPPED, WAITING, TrialTable


def rung_steps(halving: Halving | None, steps: int) -> list[int]:
    """Steps after which variants are judged, ascending, the last step not among them."""
    if halving is None:
        return []
    return sorted({step for share in halving.at if 0 < (step := round(share * steps)) < steps})


def survivors(scores: Mapping[str, Sequence[float]], reference: str, keep: float) -> list[str]:
    """Variants that go on, given the scores of each over seeds."""
    means = {variant: sum(values) / len(values) for variant, values in scores.items() if values}
    if not means:
        return []
    ordered = sorted(means.values(), reverse=True)
    least = ordered[max(1, math.ceil(len(ordered) * keep)) - 1]
    return [variant for variant, mean in means.items() if mean >= least or variant == reference]


def rank_correlation(early: Mapping[str, float], late: Mapping[str, float]) -> float | None:
    """Spearman's correlation of the variants that both have; None for fewer than three, or where all are equal."""
    common = [variant for variant in early if variant in late]
    values = [[early[variant] for variant in common], [late[variant] for variant in common]]
    if len(common) < 3 or any(len(set(each)) == 1 for each in values):
        return None
    return float(stats.spearmanr(*values).statistic)


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
    stopped = [
        trial
        for trial in trials
        if trial.variant in scores and trial.variant not in going_on and table.outcome(trial).state == WAITING
    ]
    for variant in dict.fromkeys(trial.variant for trial in stopped):
        say(f"{variant}: behind {where}, stopped")
    for trial in stopped:
        table.write(trial, state=STOPPED, stopped=f"behind {where}")
