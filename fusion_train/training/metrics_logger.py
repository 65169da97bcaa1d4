"""The metrics log of a run: `metrics.jsonl`, TensorBoard, and a tracker if the configuration names one.

A line every `log.every` steps, averages over them:
    loss · loss/dataset/NAME · loss/task/NAME    mean loss of a supervised token
    lr · lr/PART · grad_norm · grad_norm/PART    of the last step; rates by part where they differ
    samples_per_s · tokens_per_s · supervised_tokens_per_s
    utilisation                                  arithmetic that had to be done over the peak of the devices
    data_wait_share                              share of the time that the model waited for data
    missing/MODALITY · hidden/MODALITY           samples whose clip lacks it, or was not shown with it
and one line per scoring: accuracy/TASK · eval_loss · score/half-N where the run keeps weights per half.

A resumed run drops the lines after its checkpoint, so that every step has one line. `metric_lines` writes and checks
them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurecache.files.publish import replace_bytes
from fusion_train.config import LogConfig
from fusion_train.data.halves import NUM_HALVES
from fusion_train.errors import CheckpointError
from fusion_train.metric_lines import MetricLines, metric_line, read_metrics
from fusion_train.training.step_metrics import Counts
from fusion_train.training.trackers import open_sinks
from fusion_train.training.validation import HALF, overall

DIGITS = 8


class MetricsLogger:
    """Writes the metrics log, and knows all scores of the run, also those before a resume."""

    def __init__(
        self,
        folder: Path,
        start_step: int,
        log: LogConfig,
        *,
        enabled: bool,
        peak_flops: float,
        about: Mapping[str, Any],
    ) -> None:
        """Args:
        enabled: False on processes that write nothing.
        peak_flops: of all devices together.
        about: the configuration, for trackers.
        """
        self._folder, self._log, self._enabled, self._start = folder, log, enabled, start_step
        self._peak_flops, self._about = peak_flops, about
        self._sinks: list[Any] = []
        self._file: Any = None
        self._rows: dict[int, dict[str, float]] = {}
        self._since, self._waited_s = time.perf_counter(), 0.0

    def __enter__(self) -> MetricsLogger:
        path = self._folder / "metrics.jsonl"
        lines = read_metrics(path)
        self._refuse_lost_scores(path, lines)
        valid = [place for place, row in enumerate(lines.rows) if row["step"] <= self._start]
        for place in valid:
            self._remember(int(lines.rows[place]["step"]), lines.rows[place])
        if self._enabled:
            if len(valid) != len(lines.lines) or lines.torn or lines.damaged:
                replace_bytes(path, "".join(f"{lines.lines[place]}\n" for place in valid).encode())
            self._sinks = open_sinks(self._folder, self._start, self._log, self._about)
            self._file = path.open("a", encoding="utf-8")
        self._since = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
        for sink in self._sinks:
            sink.close()

    def _refuse_lost_scores(self, path: Path, lines: MetricLines) -> None:
        """Raise CheckpointError where a damaged line may hold scores, which decide when and with what a run ends.

        One after the checkpoint is dropped like all lines there.
        """
        damaged = [number for number, step_before in lines.damaged.items() if step_before <= self._start]
        if damaged:
            raise CheckpointError(
                str(path),
                expected="sound lines up to the checkpoint",
                got=f"damage on line {damaged[0]}",
                next_step="Take the file from a copy, or delete the damaged lines: the run then goes on without them.",
            )

    def due(self, step: int) -> bool:
        """Whether a line is due after this many steps."""
        return step % self._log.every == 0

    def waited(self, seconds: float) -> None:
        """Count time that the model waited for data."""
        self._waited_s += seconds

    def step(
        self, step: int, counts: Counts, rates: Mapping[str, float], norms: Mapping[str, float]
    ) -> dict[str, float]:
        """Write the line of the steps since the last line, and return it; `counts` are those of all processes."""
        seconds = time.perf_counter() - self._since
        values: dict[str, float] = {
            "loss": sum(value for key, value in counts.losses.items() if key.startswith("task/")) / counts.supervised,
            "lr": max(rates.values()),
            "samples_per_s": counts.samples / seconds,
            "tokens_per_s": counts.tokens / seconds,
            "supervised_tokens_per_s": counts.supervised / seconds,
            "utilisation": counts.flops / seconds / self._peak_flops,
            "data_wait_share": self._waited_s / seconds,
        }
        if len(set(rates.values())) > 1:
            values |= {f"lr/{part}": rate for part, rate in rates.items()}
        values |= {"grad_norm" if part == "all" else f"grad_norm/{part}": norm for part, norm in norms.items()}
        values |= {f"loss/{key}": loss / counts.loss_tokens[key] for key, loss in sorted(counts.losses.items())}
        values |= {key: float(count) for key, count in sorted(counts.absent.items())}
        self._write(step, values)
        self._since, self._waited_s = time.perf_counter(), 0.0
        return values

    def paused(self, seconds: float) -> None:
        """Leave time of scoring and saving out of the speeds."""
        self._since += seconds

    def scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Record scores on the held-out split."""
        if scores:
            self._write(step, scores)
            self._remember(step, {name: round(value, DIGITS) for name, value in scores.items()})

    def scores_at(self, step: int) -> dict[str, float]:
        """The scores after this many steps, also those of an earlier process; empty without a scoring."""
        return self._rows.get(step, {})

    def score_at(self, step: int) -> float | None:
        """The score that selects the best checkpoint; None without a scoring after this many steps."""
        return overall(self.scores_at(step))

    def half_scores_at(self, step: int) -> tuple[float | None, ...]:
        """The score on each half of the held-out clips; None for a half without clips."""
        return tuple(self.scores_at(step).get(f"{HALF}{number + 1}") for number in range(NUM_HALVES))

    def chosen_steps(self) -> set[int]:
        """Steps of the best scores so far: of all held-out clips, and of each half of them."""
        chosen = set()
        for half in (None, *range(NUM_HALVES)):
            scored = [(score, -step) for step in self._rows if (score := self._score(step, half)) is not None]
            chosen |= {-max(scored)[1]} if scored else set()
        return chosen

    def _score(self, step: int, half: int | None) -> float | None:
        return self.score_at(step) if half is None else self.half_scores_at(step)[half]

    def stalled(self) -> bool:
        """Whether `log.patience` scorings in a row brought no better score than the best before them."""
        patience = self._log.patience
        scores = [score for step in sorted(self._rows) if (score := self.score_at(step)) is not None]
        if patience is None or len(scores) <= patience:
            return False
        return max(scores[-patience:]) <= max(scores[:-patience])

    def _remember(self, step: int, row: Mapping[str, Any]) -> None:
        scored = ("accuracy/", "ccc/", "eval_loss", HALF)
        scores = {name: float(value) for name, value in row.items() if name.startswith(scored)}
        if scores:
            self._rows[step] = scores

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        if not self._enabled:
            return
        rounded = {name: round(value, DIGITS) for name, value in values.items()}
        self._file.write(metric_line(step, rounded) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.write(step, rounded)
