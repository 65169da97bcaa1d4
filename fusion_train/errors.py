"""Exceptions of the trainer: subclasses of `featurecache.errors.FeatureCacheError` with the same message template.

FusionTrainError
├── ConfigError         unknown key, wrong type, or a combination that cannot work
├── DataError           the clip list or the store cannot serve this run
│   └── ListChangedError    the clip list changed since a run or sweep began
├── CheckpointError     no checkpoint, a damaged one, or one of another configuration
├── ModelError          the language model cannot be loaded or does not fit
├── ExportError         the run, its encoders or the folder do not allow an export
├── DivergedError       loss or gradient is NaN or infinite                    exit code 1
├── DeviceMemoryError   a step does not fit into the device's memory            exit code 1
└── ParityError         the exported model does not compute what was trained   exit code 1
"""

from __future__ import annotations

from collections.abc import Collection

from featurecache.errors import FeatureCacheError, suggest


class FusionTrainError(FeatureCacheError):
    """Base of all exceptions that the trainer raises on purpose."""


class ConfigError(FusionTrainError):
    """An unknown configuration key, a value of the wrong type, or conflicting settings."""


class DataError(FusionTrainError):
    """The clip list or the store cannot serve this run."""


class ListChangedError(DataError):
    """The clip list, or its exclusions or corrections, changed since a run or sweep began."""


class CheckpointError(FusionTrainError):
    """No checkpoint, a damaged one, or one of another configuration."""


class ModelError(FusionTrainError):
    """The language model cannot be loaded, or does not fit the configuration."""


class ExportError(FusionTrainError):
    """The run, its encoders or the target folder do not allow an export."""


class DivergedError(FusionTrainError):
    """The loss, a gradient or a score is NaN or infinite; the message names the clips."""

    exit_code = 1


class DeviceMemoryError(FusionTrainError):
    """A step does not fit into the device's memory; the message names the largest kind of memory and what reduces
    it."""

    exit_code = 1


class ParityError(FusionTrainError):
    """The exported model does not compute what was trained; the message names the failed bounds."""

    exit_code = 1


def refuse_unknown(kind: str, name: str, known: Collection[str]) -> None:
    """Raise ConfigError if a name, such as that of a task, is not among `known`; a similar name is suggested."""
    if name not in known:
        raise ConfigError(
            f'{kind} "{name}"',
            expected="one of " + ", ".join(known),
            got=f"no such {kind}",
            next_step=suggest(name, known).strip() or None,
        )
