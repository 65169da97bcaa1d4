"""The probe tier: probes of the variants train before any language model, and variants that are behind may stop.

A probe is the stage `probe`: a variant's fusion with a linear head, on averaged tokens kept in memory.

Rule. Variants whose probe is like no other's are told apart; they and the reference are ordered by the accuracy of
their probes on the sweep's question, averaged over seeds, and the better `keep` of them go on, as in halving: rounded
up, ties too, the reference always. Variants that differ in what a probe does not have (LoRA, learning rate, prompt,
stages) have equal probes, and those without a fusion have none; neither is trained nor stopped here, and one whose
probe fails goes on.

Risk. A probe sees averaged tokens, closed labels and no language model: what only pays off with one is stopped unseen.
Whether the order of the probes is that of the whole models is measured on those that finished (`rank_correlation`), not
assumed; `keep: 1` measures it and stops nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from fusion_train.sweeps.halving import SweepRound, stop_behind
from fusion_train.sweeps.sweep_file import Sweep, Trial
from fusion_train.sweeps.trials import DONE, TrialTable


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
