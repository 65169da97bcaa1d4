"""Messages between a worker process and its driver: pickled, over a socket; both run the same installation.

To the worker: WorkerStart; a Sweep to check; TrialGroups, one at a time; STOP at any time. The end of the stream ends
it.
To the driver: its DeviceCapacity; CheckResult; one GroupResult per group; LogLine at any time.

A module of its own: a class of `child`, which runs as `__main__`, would have another name in the driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featurecache.errors import FeatureCacheError
from fusion_train.sweeps.job import Cost, SweepSettings

STOP = b"stop"


@dataclass(frozen=True)
class WorkerStart:
    """The first message to a worker."""

    work: SweepSettings
    device: str
    quiet: bool = False
    """Whether the worker prints no progress and no notes."""


@dataclass(frozen=True)
class CheckResult:
    """Costs by variant, or the error that keeps the sweep from running."""

    costs: Mapping[str, Cost | None]
    error: FeatureCacheError | None = None


@dataclass(frozen=True)
class LogLine:
    """A line to print for the user."""

    line: str
