"""What is to be trained and what became of it, in plain values: a sweep's driver and its workers exchange these.

This module imports no torch, so that a worker process can read what it is asked before it has loaded anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import FeatureCacheError
from fusion_train.sweeps.sweep_file import Trial

ABOUT = "sweep.json"
"""What `report` reads beside the table: names, the reference, where the clip list is."""
PREDICTIONS_SHA256 = "predictions_sha256"
"""Key of a finished trial's scores: the hash of that file."""
PREDICTIONS = "predictions.jsonl"
"""In a finished trial's folder: what it answered to every clip."""


@dataclass(frozen=True)
class SweepSettings:
    """What all trials of a sweep have in common."""

    store: str
    clips: str
    out: Path
    """Folder of the runs."""
    task: str
    split: str
    """Whose clips a finished trial is asked."""
    weights: str = "best"
    """Of a finished trial: its `best`, its `last`, or `cross-fitted`."""
    initial: str | None = None
    """Run that the first stage of every trial starts from."""
    precision: str = "fp32"
    """In which the peak of a device is measured."""
    clips_changed: bool = False
    """Trials go on though the clip list changed since they began; each records it."""


@dataclass(frozen=True)
class Cost:
    """Of one trial's last stage."""

    trained: int
    soft_tokens: int
    flops: float
    """Of all its steps."""
    shared_bytes: int
    """The base: once for a company."""
    own_bytes: int
    """Weights, gradients, moments and activations: once a member."""


@dataclass(frozen=True)
class DeviceCapacity:
    """What a device has for a worker."""

    free_bytes: int
    peak_flops: float


@dataclass(frozen=True)
class TrialGroup:
    """Trials that are trained with each other, for one stage of their chains."""

    trials: tuple[Trial, ...]
    stage: int
    until: int | None
    """Step after which they pause; None: they are trained to their end, and scored if the stage is their last."""


@dataclass(frozen=True)
class TrialResult:
    """What became of one trial of a group."""

    step: int | None = None
    """Steps done; None where nothing was trained."""
    seconds: float = 0.0
    """Its share of the time that the group took."""
    together: int = 0
    """How many trained with it, itself included."""
    score: float | None = None
    """Held-out score at the step where it paused."""
    scores: Mapping[str, Any] | None = None
    """Of a trial whose last stage is finished."""
    error: str | None = None


@dataclass(frozen=True)
class GroupResult:
    """What a worker says of a group, or what is said of a worker that died with it."""

    trained: tuple[TrialResult, ...] = ()
    """In the order of the group's trials."""
    error: str | None = None
    """The group failed as a whole; which of its trials is to blame is not known."""
    damaged: bool = False
    """The worker's process is gone, or may not be trusted with another group."""
    lost: bool = False
    """Its machine is gone, which says nothing of the group: it is to be trained again as it is."""
    stopped: bool = False
    """All trials are saved where they were, on request."""
    halt: FeatureCacheError | None = None
    """The sweep ends with this, which is no trial's fault: all wait where they were."""
