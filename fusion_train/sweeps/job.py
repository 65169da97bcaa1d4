"""Messages between the driver of a sweep and its workers, as plain values: what to train, and the results.

This module imports no torch, so that a worker process reads its first message before it loads anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import FeatureCacheError
from fusion_train.sweeps.sweep_file import Trial

ABOUT = "sweep.json"
"""The description of a sweep, which `report` reads beside the table: names, the reference, the clip list."""
PREDICTIONS_SHA256 = "predictions_sha256"
"""Key in the scores of a finished trial: the hash of its predictions file."""
PREDICTIONS = "predictions.jsonl"
"""The predictions of a finished trial, in its folder."""


@dataclass(frozen=True)
class SweepSettings:
    """Settings that all trials of a sweep share."""

    store: str
    clips: str
    out: Path
    """Folder of the runs."""
    task: str
    split: str
    """The split whose clips score a finished trial."""
    weights: str = "best"
    """The weights that score a finished trial: `best`, `last` or `cross-fitted`."""
    initial: str | None = None
    """Run that the first stage of every trial starts from."""
    precision: str = "fp32"
    """The precision in which the peak of a device is measured."""
    clips_changed: bool = False
    """Trials go on with a clip list that changed since they began; each records the change."""


@dataclass(frozen=True)
class Cost:
    """The cost of the last stage of one trial."""

    trained: int
    soft_tokens: int
    flops: float
    """FLOPs of all its steps."""
    shared_bytes: int
    """Memory of the base, once per group."""
    own_bytes: int
    """Memory of weights, gradients, moments and activations, once per trial."""


@dataclass(frozen=True)
class DeviceCapacity:
    """Memory and speed that a device offers to one worker."""

    free_bytes: int
    peak_flops: float


@dataclass(frozen=True)
class TrialGroup:
    """Trials that train together, for one stage of their chains."""

    trials: tuple[Trial, ...]
    stage: int
    until: int | None
    """Step after which the trials pause; None: they train to their ends, and are scored after their last stage."""


@dataclass(frozen=True)
class TrialResult:
    """The result of one trial of a group."""

    step: int | None = None
    """Steps done; None where no step was trained."""
    seconds: float = 0.0
    """Its share of the training time of the group."""
    together: int = 0
    """Number of trials that trained together, this trial included."""
    score: float | None = None
    """Held-out score at the step where it paused."""
    scores: Mapping[str, Any] | None = None
    """Scores of a trial whose last stage is finished."""
    error: str | None = None


@dataclass(frozen=True)
class GroupResult:
    """The results of a group; where its worker died, the executor writes this in its place."""

    trained: tuple[TrialResult, ...] = ()
    """Results in the order of the trials of the group."""
    error: str | None = None
    """Why the group failed as a whole; the trial at fault is not known."""
    damaged: bool = False
    """Whether the worker has to be replaced: its process ended, or an unexpected error left it in an unknown state."""
    lost: bool = False
    """Whether the machine of the worker is lost; the group then trains again unchanged."""
    stopped: bool = False
    """Whether the group stopped on request; all its trials are saved."""
    halt: FeatureCacheError | None = None
    """An error that ends the sweep and is no trial's fault; all trials resume from their checkpoints."""
