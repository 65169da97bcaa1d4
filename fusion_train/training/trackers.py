"""Trackers that get the lines of the metrics log: TensorBoard, and W&B or trackio through accelerate.

A tracker is off unless `log.tracker` names one. Both can keep runs on this machine only (`WANDB_MODE=offline`; trackio
is local by default). A resumed run appears there as another run of the same name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from featurecache.extras import require
from featurecache.outside_text import one_line
from fusion_train.config import LogConfig
from fusion_train.errors import ConfigError


class Sink(Protocol):
    """A destination of metric lines."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files under `tensorboard/`; events after `start_step` are purged."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(one_line(name), value, step)

    def close(self) -> None:
        self._board.close()


def refuse_missing_tracker(log: LogConfig) -> None:
    """Raise MissingExtraError where the package of the tracker asked for is not installed."""
    if log.tracker is not None:
        require(log.tracker, log.tracker, subject="log.tracker")


class Tracker:
    """One of accelerate's trackers."""

    def __init__(self, name: str, project: str, run_name: str, about: Mapping[str, Any]) -> None:
        """Start the tracker.

        Raises:
            ConfigError: it refuses, as W&B does without a login.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self._tracker = LOGGER_TYPE_TO_CLASS[name](project, name=run_name)
        try:
            self._tracker.start()
        except _refusals(name) as error:
            raise ConfigError(
                f"log.tracker: {name}",
                expected="it to take the run",
                got=" ".join(str(error).split()),
                next_step="Log in, or keep the run on this machine with WANDB_MODE=offline, and give the same command.",
            ) from error
        self._tracker.store_init_configuration(dict(about))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        self._tracker.finish()


def open_sinks(folder: Path, start_step: int, log: LogConfig, about: Mapping[str, Any]) -> list[Sink]:
    """Open the trackers that the configuration names.

    Raises:
        MissingExtraError: a tracker whose package is not installed.
        ConfigError: a tracker that does not take the run.
    """
    refuse_missing_tracker(log)
    sinks: list[Sink] = [TensorBoard(folder, start_step)] if log.tensorboard else []
    if log.tracker is not None:
        sinks.append(Tracker(log.tracker, log.project, folder.name, about))
    return sinks


def _refusals(name: str) -> tuple[type[Exception], ...]:
    """Errors of a tracker's own package."""
    if name != "wandb":
        return ()
    from wandb.errors import Error

    return (Error,)
