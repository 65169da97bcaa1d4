"""Your own code in the training loop: label smoothing, a logger, a stop rule.

    fusion-train --stage cognition --callback examples/callbacks.py:LabelSmoothing
    fusion-train --stage probe --callback examples/callbacks.py:CsvLog --callback examples/callbacks.py:StopAtLoss

A run records its callbacks by name and by the hash of their file; resume it with the same ones.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import partial

from torch.nn import functional as F

from fusion_train.training.callbacks import Callback
from fusion_train.training.training_run import TrainingRun


class LabelSmoothing(Callback):
    """Train a language model on targets smoothed by 0.1; `eval_loss` uses the same loss.

    Not for the stage `probe`: its logits are minus infinity for labels of other sets, and so smoothing is infinite.
    """

    def on_start(self, run: TrainingRun) -> None:
        run.context.model.token_loss = partial(F.cross_entropy, reduction="none", label_smoothing=0.1)


class CsvLog(Callback):
    """Append the loss of every logged line to `loss.csv` in the run's folder."""

    def on_log(self, run: TrainingRun, step: int, values: Mapping[str, float]) -> None:
        if run.leads:  # one process of several writes
            with (run.run.folder / "loss.csv").open("a", newline="") as file:
                csv.writer(file).writerow([step, values["loss"]])


class StopAtLoss(Callback):
    """End training when the loss of a step falls below 0.05."""

    def should_stop(self, run: TrainingRun, step: int) -> bool:
        return run.learner.loss < 0.05
