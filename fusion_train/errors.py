"""Exceptions of the trainer; they hang under `featurecache.errors.FeatureCacheError` and share its message template.

FusionTrainError
├── ConfigError         unknown key, wrong type, or a combination that cannot work
├── DataError           the clip list or the store cannot serve this run
│   └── ListChangedError    the clip list is no longer the one that a run or sweep began with
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
    """Root of everything that the trainer raises on purpose."""


class ConfigError(FusionTrainError):
    """A config key that is unknown, of the wrong type, or in conflict with another."""


class DataError(FusionTrainError):
    """The clip list or the store cannot serve this run."""


class ListChangedError(DataError):
    """The clip list, or a file laid over it, is no longer the one that a run or sweep began with."""


class CheckpointError(FusionTrainError):
    """No checkpoint, a damaged one, or one of another configuration."""


class ModelError(FusionTrainError):
    """The language model cannot be loaded, or does not fit what is asked of it."""


class ExportError(FusionTrainError):
    """The run, its encoders or the target folder do not allow an export."""


class DivergedError(FusionTrainError):
    """The loss or a gradient is NaN or infinite; the clips of the batch are named."""

    exit_code = 1


class DeviceMemoryError(FusionTrainError):
    """A step does not fit into the device's memory; the largest consumer and what shrinks it are named."""

    exit_code = 1


class ParityError(FusionTrainError):
    """The exported model does not compute what was trained; the bounds that failed are named."""

    exit_code = 1


def refuse_unknown(kind: str, name: str, known: Collection[str]) -> None:
    """Raise ConfigError for a name, such as that of a task, that is none of `known`; the near one is suggested."""
    if name not in known:
        raise ConfigError(
            f'{kind} "{name}"',
            expected="one of " + ", ".join(known),
            got=f"no such {kind}",
            next_step=suggest(name, known).strip() or None,
        )
