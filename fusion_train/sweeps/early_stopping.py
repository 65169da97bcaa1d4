"""Stop variants early that are behind: probes before any language model, then successive halving; the order of rounds.

Halving. At each share of the steps named by `at`, variants are ordered by their held-out score, averaged over seeds;
the better `keep` of those still running go on (rounded up, at least one), ties in favour of going on. The reference
always goes on, since the others are compared with it. All variants of a seed have then seen the same clips in the same
order.

Rounds. Stage by stage of the trials' chains, and within the last stage rung by rung. Trials of a round are independent
of each other. A round begins when the round before has ended: it needs the weights of the stage before, and leaves out
the variants that the rung before has stopped.

Probe tier. A probe is the stage `probe`: a variant's fusion with a linear head, on averaged tokens kept in memory.
Variants whose probe is like no other's are told apart; they and the reference are ordered by the accuracy of their
probes on the sweep's question, averaged over seeds, and the better `keep` of them go on, as in halving: rounded up,
ties too, the reference always. Variants that differ in what a probe does not have (LoRA, learning rate, prompt, stages)
have equal probes, and those without a fusion have none; neither is trained nor stopped here, and one whose probe fails
goes on.

Risk. A probe sees averaged tokens, closed labels and no language model: what only pays off with one is stopped unseen.
Whether the order of the probes is that of the whole models is measured on those that finished (`rank_correlation`), not
assumed; `keep: 1` measures it and stops nothing. A variant that learns slowly and would have won is dropped unseen:
what is dropped is "behind at step s", not "worse". How far the order at a rung agrees with the order at the end is
measured on those that finished and reported (`rank_correlation`); with few finishers it says little. A stopped variant
gets no verdict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

from fusion_train.sweeps.sweep_file import Halving, Sweep, Trial
from fusion_train.sweeps.trials import DONE, FAILED, STOPPED, WAITING, TrialTable


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
    if len(common) < 3 or any(len(set(side)) == 1 for side in values):
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
    place: str,
    say: Callable[[str], None],
) -> None:
    """Stop the waiting trials of variants that are behind by these scores; the table records at which point."""
    surviving = survivors(scores, sweep.reference, keep)
    stopped = [
        trial
        for trial in trials
        if trial.variant in scores and trial.variant not in surviving and table.outcome(trial).state == WAITING
    ]
    for variant in dict.fromkeys(trial.variant for trial in stopped):
        say(f"{variant}: behind {place}, stopped")
    for trial in stopped:
        table.write(trial, state=STOPPED, stopped=f"behind {place}")


@dataclass(frozen=True)
class SweepRound:
    """One stage of all chains that have it, until a step."""

    stage: int
    until: int | None
    """The step after which the round ends; None: the end of the stage."""
    trials: tuple[Trial, ...]
    judged: tuple[Trial, ...]
    """Trials in their last stage, which are compared where the round ends before the stage does."""


def rounds(sweep: Sweep) -> Iterator[SweepRound]:
    """Yield all rounds of a sweep, whatever the states of its trials."""
    for stage in range(max(len(trial.stages) for trial in sweep.trials)):
        with_stage = tuple(trial for trial in sweep.trials if stage < len(trial.stages))
        last = tuple(trial for trial in with_stage if stage == len(trial.stages) - 1)
        steps = max((trial.config.optim.steps for trial in last), default=0)
        for rung in rung_steps(sweep.halving, steps):
            yield SweepRound(stage, rung, with_stage, last)
        yield SweepRound(stage, None, with_stage, ())


def distinguishable(sweep: Sweep) -> list[str]:
    """Variants whose probe equals no other variant's."""
    keys = Counter(probes[0].key for probes in sweep.probes.values())
    return [variant for variant, probes in sweep.probes.items() if keys[probes[0].key] == 1]


def probes_of(sweep: Sweep) -> dict[str, tuple[Trial, ...]]:
    """Variant -> probes to train: of distinguishable variants and the reference; empty where fewer than two remain."""
    compared = [name for name in sweep.probes if name in distinguishable(sweep) or name == sweep.reference]
    return {name: sweep.probes[name] for name in compared} if len(compared) > 1 else {}


def probe_round(sweep: Sweep) -> SweepRound | None:
    """The round that trains all probes to their ends; None without probes."""
    probes = tuple(probe for probes_of_variant in probes_of(sweep).values() for probe in probes_of_variant)
    return SweepRound(0, None, probes, ()) if probes else None


def announce(sweep: Sweep, say: Callable[[str], None]) -> None:
    """Print what the tier will do with every variant."""
    if sweep.probe is None:
        return
    probes = probes_of(sweep)
    if probes:
        steps = next(iter(probes.values()))[0].config.optim.steps
        say(f"probe tier: {', '.join(probes)}; {steps} steps each, {sweep.probe.keep:.0%} of them go on")
    else:
        say("probe tier: there are no two variants that it can tell apart")
    equal = [name for name in sweep.probes if name not in probes]
    without = [name for name in sweep.variants if name not in sweep.probes]
    for names, why in ((equal, "the probe of another is the same"), (without, "no fusion to probe")):
        if names:
            say(f"probe tier: not judged: {', '.join(names)} ({why})")


def stop_by_probe(sweep: Sweep, table: TrialTable, say: Callable[[str], None]) -> None:
    """Stop variants that are behind, by the probes that are done with every seed."""
    assert sweep.probe is not None
    scores = {variant: probe_scores(table, probes) for variant, probes in probes_of(sweep).items()}
    judged = {variant: values for variant, values in scores.items() if len(values) == len(sweep.probes[variant])}
    stop_behind(sweep, table, sweep.trials, judged, sweep.probe.keep, "in the probe", say)


def probe_scores(table: TrialTable, probes: tuple[Trial, ...]) -> list[float]:
    """Accuracies of finished probes."""
    outcomes = [table.outcome(probe) for probe in probes]
    return [float(outcome.scores["accuracy"]) for outcome in outcomes if outcome.state == DONE and outcome.scores]
