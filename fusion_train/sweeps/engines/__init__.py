"""Where groups are trained: in this process, in worker processes on this machine, or on a Ray cluster.

    here         one after another, in this process: for debugging, since whatever ends a trial's process ends the sweep
    processes    one worker process a device; a worker that the system kills takes its group alone with it
    ray          actors of a Ray cluster; a machine that is lost has its group trained again elsewhere

All run the same `Worker` and answer with the same values; the table of a sweep is written by the driver alone. A driver
of workers elsewhere imports no torch, so that it is there at once and takes little memory beside them.
"""

from __future__ import annotations

from typing import Protocol

from fusion_train.sweeps.job import Cost, DeviceCapacity, GroupResult, TrialGroup
from fusion_train.sweeps.sweep_file import Sweep

POLL_S = 0.2


class Executor(Protocol):
    """Workers, numbered from 0, each of which trains one group at a time."""

    count: int
    """How many there are."""

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested; workers save and stop after the step that they are at."""
        ...

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        """Have one of them look at every variant before anything starts; see `check`, also for what is raised."""
        ...

    def room(self) -> DeviceCapacity:
        """What each worker has for itself; the least of all."""
        ...

    def begin(self, worker: int, group: TrialGroup) -> None:
        """Have an idle worker train a group; one whose process is gone or damaged is replaced first."""
        ...

    def answers(self) -> list[tuple[int, GroupResult]]:
        """What workers have answered since, with their numbers; waits a moment where there is nothing yet."""
        ...
