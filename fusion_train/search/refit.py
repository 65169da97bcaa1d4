"""Train the first trial again on all clips with a label, and write its predictions for clips without one.

One model per seed; their probabilities are averaged. There are no inner clips to stop by, so each trains for the median
of the best epochs of the trial's fits in the folds.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from statistics import median_high

import numpy as np
import torch
from torch import Tensor

from featurecache.files.publish import replace_bytes
from fusion_train.search.draws import Trial
from fusion_train.search.parts import Parts
from fusion_train.search.rungs import Searching
from fusion_train.search.stacked_training import Schedule, Standardisation, train_stack
from fusion_train.seeding import derive


def predict_candidates(searching: Searching, trial: Trial) -> np.ndarray:
    """Return the probabilities (candidates, C) of the refit trial."""
    search, data = searching.search, searching.data
    last = len(search.rungs) - 1
    own = [fit for key, fit in searching.results.fits.items() if key.trial == trial.name and key.rung == last]
    epochs = max(1, median_high(fit.best_epoch for fit in own))
    everything = np.arange(len(data.clips))
    candidates = np.arange(len(data.candidates)) + len(data.clips)
    parts = Parts(everything, everything[:0], candidates)
    standards: dict[tuple[str, int], Standardisation] = {
        (name, id(parts)): Standardisation.of(data.vectors[name][: len(data.clips)]) for name in trial.features
    }
    fits = [
        searching.fit(trial, parts, derive(search.seed, "refit", trial.draw, seed), standards) for seed in search.seeds
    ]
    targets = _padded(data.targets, len(data.candidates))
    schedule = Schedule(epochs, trial.batch_size, epochs, search.main, keep_last=True)
    fitted = train_stack(lambda _: searching.network(trial), fits, targets, schedule)
    return np.mean([outcome.outer for outcome in fitted], axis=0)


def write_submission(searching: Searching, trial: Trial, path: Path) -> None:
    """Write one line per clip of the split of the submission: its id and its class."""
    classes, search = searching.data.classes, searching.search
    answers = predict_candidates(searching, trial).argmax(axis=1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(search.columns or ("id", search.task))
    for clip, answer in zip(searching.data.candidates, answers, strict=True):
        writer.writerow([clip.id, classes[answer]])
    replace_bytes(path, text.getvalue().encode())


def _padded(targets: Tensor, count: int) -> Tensor:
    """Targets with a class for clips that have none; it is never read."""
    return torch.cat([targets, torch.zeros(count, dtype=targets.dtype)])
