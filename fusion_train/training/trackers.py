"""Where the journal's lines go besides `metrics.jsonl`: TensorBoard, and W&B or trackio through accelerate.

A tracker is off unless `log.tracker` names one. Both keep runs on this machine alone in their own offline modes
(`WANDB_MODE=offline`; trackio is local by itself).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from featurecache.extras import require
from fusion_train.config import LogConfig


class Sink(Protocol):
    """Takes lines."""

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files under `tensorboard/`; what stands there beyond `start_step` is purged."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class Tracker:
    """One of accelerate's trackers."""

    def __init__(self, name: str, project: str, run_name: str, about: Mapping[str, Any]) -> None:
        """Start it.

        Raises:
            MissingExtraError: its package is not installed.
        """
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        require(name, name, subject="log.tracker")
        self._tracker = LOGGER_TYPE_TO_CLASS[name](project, name=run_name)
        self._tracker.start()
        self._tracker.store_init_configuration(dict(about))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._tracker.log(dict(values), step=step)

    def close(self) -> None:
        self._tracker.finish()


def open_sinks(folder: Path, start_step: int, log: LogConfig, about: Mapping[str, Any]) -> list[Sink]:
    """Open what the configuration asks for.

    Raises:
        ConfigError: a tracker whose package is not installed.
    """
    sinks: list[Sink] = [TensorBoard(folder, start_step)] if log.tensorboard else []
    if log.tracker is not None:
        sinks.append(Tracker(log.tracker, log.project, folder.name, about))
    return sinks
