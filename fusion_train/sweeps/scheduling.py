"""Which trials are to be trained until which step, in which order: stage by stage of their chains, rung by rung.

Trials of a round are independent of each other; a round begins when the one before has ended, since it starts from the
weights that the stage before has trained, and without the variants that the rung before has stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fusion_train.sweeps.halving import rung_steps
from fusion_train.sweeps.sweep_file import Sweep, Trial


@dataclass(frozen=True)
class SweepRound:
    """One stage of all chains that have it, until a step."""

    stage: int
    until: int | None
    """None: to the end."""
    trials: tuple[Trial, ...]
    judged: tuple[Trial, ...]
    """Those that are compared with each other where the round ends before they do: it is their last stage."""


def rounds(sweep: Sweep) -> Iterator[SweepRound]:
    """All rounds of a sweep, whatever has become of its trials."""
    for stage in range(max(len(trial.stages) for trial in sweep.trials)):
        having = tuple(trial for trial in sweep.trials if stage < len(trial.stages))
        last = tuple(trial for trial in having if stage == len(trial.stages) - 1)
        steps = max((trial.config.optim.steps for trial in last), default=0)
        for rung in rung_steps(sweep.halving, steps):
            yield SweepRound(stage, rung, having, last)
        yield SweepRound(stage, None, having, ())
