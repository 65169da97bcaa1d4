"""What a worker process and its driver say to each other over a socket, pickled; both are of this installation.

To the worker: Start; a Sweep to be checked; Groups, one at a time; STOP at any time. The end of the stream ends it.
To the driver: the Room there is; Checked; one Answer a group; Said at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from featurecache.errors import FeatureCacheError
from fusion_train.sweeps.job import Cost, SweepSettings

STOP = b"stop"


@dataclass(frozen=True)
class WorkerStart:
    work: SweepSettings
    device: str


@dataclass(frozen=True)
class CheckResult:
    """Costs by variant, or why the sweep cannot run."""

    costs: Mapping[str, Cost | None]
    error: FeatureCacheError | None = None


@dataclass(frozen=True)
class LogLine:
    """A line for the user."""

    line: str
