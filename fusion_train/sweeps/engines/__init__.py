"""Executors, which train groups of trials: in this process, in worker processes, or on a Ray cluster.

    here         groups one after another in this process, for debugging: a crash of one trial ends the sweep
    processes    one worker process per device; when the system kills one, only its group fails
    ray          actors of a Ray cluster; the group of a lost machine trains again elsewhere

All run the same `Worker` and return the same values; only the driver writes the table of a sweep. A driver of other
processes imports no torch, so that it starts at once and takes little memory.
"""

from __future__ import annotations

from typing import Protocol

from fusion_train.sweeps.job import Cost, DeviceCapacity, GroupResult, TrialGroup
from fusion_train.sweeps.sweep_file import Sweep

POLL_S = 0.2


class Executor(Protocol):
    """Workers, numbered from 0; each trains one group at a time."""

    count: int
    """Number of workers."""

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested; workers then save and stop after their current step."""
        ...

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        """Check every variant on one worker before any trial starts; returns costs by variant, raises as `check`."""
        ...

    def capacity(self) -> DeviceCapacity:
        """The memory and speed that every worker has at least."""
        ...

    def begin(self, worker: int, group: TrialGroup) -> None:
        """Start a group on an idle worker; a worker that ended or is damaged is replaced first."""
        ...

    def answers(self) -> list[tuple[int, GroupResult]]:
        """Return (worker, result) pairs that arrived since the last call; waits a moment where there is none."""
        ...
