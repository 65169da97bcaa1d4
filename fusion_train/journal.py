"""What a run says of itself while it trains: `metrics.jsonl` and TensorBoard.

A resumed run drops the lines written after its checkpoint, so that every step stands once.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fusion_train.config import LogConfig


class Journal:
    """Averages over `log.every` steps; scores as they come."""

    def __init__(self, folder: Path, start_step: int, log: LogConfig, *, enabled: bool) -> None:
        self._folder, self._log, self._enabled, self._start = folder, log, enabled, start_step
        self._board: Any = None
        self._file: Any = None
        self._scores: dict[int, float] = {}
        self._reset()

    def __enter__(self) -> Journal:
        if self._enabled:
            path = self._folder / "metrics.jsonl"
            if path.is_file():
                kept = [line for line in path.read_text().splitlines() if _step(line) <= self._start]
                path.write_text("".join(f"{line}\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")
            if self._log.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._start + 1)
        self._reset()
        return self

    def __exit__(self, *error: object) -> None:
        for sink in (self._file, self._board):
            if sink is not None:
                sink.close()

    def step(
        self,
        step: int,
        *,
        loss: float,
        rates: dict[str, float],
        norms: dict[str, float],
        num_samples: int,
        num_supervised: int,
        waited_s: float,
    ) -> None:
        """Count one optimizer step in."""
        self._losses.append(loss)
        self._samples += num_samples
        self._supervised += num_supervised
        self._waited_s += waited_s
        if step % self._log.every:
            return
        seconds = time.perf_counter() - self._since
        self._write(
            step,
            {
                "loss": sum(self._losses) / len(self._losses),
                "lr": max(rates.values()),
                **{f"lr/{part}": rate for part, rate in rates.items() if len(set(rates.values())) > 1},
                **{f"grad_norm/{part}" if part != "all" else "grad_norm": norm for part, norm in norms.items()},
                "samples_per_s": self._samples / seconds,
                "supervised_tokens_per_s": self._supervised / seconds,
                "data_wait_share": self._waited_s / seconds,
            },
        )
        self._reset()

    def scores(self, step: int, scores: dict[str, float]) -> None:
        """Record the accuracy of every closed task; the mean picks the best checkpoint."""
        if scores:
            self._scores[step] = sum(scores.values()) / len(scores)
            self._write(step, {f"accuracy/{task}": value for task, value in scores.items()})

    def score_at(self, step: int) -> float | None:
        return self._scores.get(step)

    def _reset(self) -> None:
        self._losses: list[float] = []
        self._samples = self._supervised = 0
        self._waited_s = 0.0
        self._since = time.perf_counter()

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **{k: round(v, 8) for k, v in values.items()}}) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line torn by a kill
        return 2**62
