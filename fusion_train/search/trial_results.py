"""The folder of a search: `search.json` has its settings, `trials.jsonl` has one line per fit and per rung.

    {"rung": 0, "trial": "hubert/mer-attention/7", "fold": 2, "seed": 0, "score": 0.61, …}    a model that was trained
    {"rung": 1, "survivors": {"all": […], "0": […], …}}                                       trials that reach a rung

Lines are only appended; each is on the disk before the next stack begins. A search that was killed trains only what has
no line. Fits of the last rung carry their probabilities, (clips, C) float16 of the inner and of the outer clips.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion_train.documents import read_document, write_document
from fusion_train.errors import DataError
from fusion_train.evaluation.append_only import AppendedLines, read_lines
from fusion_train.search.stacked_training import Fitted

ABOUT, LINES = "search.json", "trials.jsonl"
WHOLE = "all"
"""The tournament over all folds, beside one for each fold."""


@dataclass(frozen=True)
class FitKey:
    """One model: a trial in one fold with one seed, trained to the epochs of a rung."""

    rung: int
    trial: str
    fold: int
    seed: int


@dataclass
class FitResult:
    """What a line keeps of one fit."""

    score: float
    """The figure on the inner clips in the best epoch."""
    best_epoch: int
    epochs: int
    seconds: float
    """Of its stack, divided by the number of fits in it."""
    inner: np.ndarray | None = None
    outer: np.ndarray | None = None

    @property
    def probabilities(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the inner and of the outer clips, (clips, C) each; for fits of the last rung."""
        assert self.inner is not None
        assert self.outer is not None
        return self.inner, self.outer


class TrialResults:
    """Results of a search on disk, and in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fits: dict[FitKey, FitResult] = {}
        self.survivors: dict[int, dict[str, list[str]]] = {}
        """Rung -> tournament -> trials that reach it; rung 0 has the trials that the budget had room for."""
        for line in read_lines(folder / LINES, torn=True):
            if "survivors" in line:
                self.survivors[line["rung"]] = line["survivors"]
            else:
                key = FitKey(line["rung"], line["trial"], line["fold"], line["seed"])
                self.fits[key] = FitResult(
                    line["score"],
                    line["best_epoch"],
                    line["epochs"],
                    line["seconds"],
                    _decoded(line.get("inner")),
                    _decoded(line.get("outer")),
                )

    @property
    def seconds(self) -> float:
        """Device time of all fits."""
        return sum(fit.seconds for fit in self.fits.values())

    def begin(self, about: Mapping[str, Any]) -> AppendedLines:
        """Write the settings, or compare them with those of an earlier run of the command; returns the open file.

        Raises:
            DataError: the folder has another search, or one on other clips or features.
        """
        path = self.folder / ABOUT
        if path.is_file():
            before = read_document(path, DataError, "the description of a search")
            changed = sorted(key for key in {*before, *about} if before.get(key) != about.get(key))
            if changed:
                raise DataError(
                    str(self.folder),
                    expected="the same search, which the command would continue",
                    got=f"another one: {', '.join(changed)} changed",
                    next_step="Name another folder with --out.",
                )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_document(path, about)
        return AppendedLines(self.folder / LINES)

    def add(self, lines: AppendedLines, fits: Iterable[tuple[FitKey, Fitted, float]], *, probabilities: bool) -> None:
        """Append one line per fit of a stack."""
        rows = []
        for key, fitted, seconds in fits:
            inner, outer = (fitted.inner, fitted.outer) if probabilities else (None, None)
            self.fits[key] = FitResult(fitted.inner_score, fitted.best_epoch, fitted.epochs, seconds, inner, outer)
            row: dict[str, Any] = {"rung": key.rung, "trial": key.trial, "fold": key.fold, "seed": key.seed}
            row |= {"score": fitted.inner_score, "best_epoch": fitted.best_epoch, "epochs": fitted.epochs}
            row["seconds"] = seconds
            if inner is not None and outer is not None:
                row |= {"inner": _encoded(inner), "outer": _encoded(outer)}
            rows.append(row)
        lines.append(rows)

    def add_survivors(self, lines: AppendedLines, rung: int, survivors: Mapping[str, list[str]]) -> None:
        """Append who reaches a rung."""
        self.survivors[rung] = dict(survivors)
        lines.append([{"rung": rung, "survivors": dict(survivors)}])

    def score(self, rung: int, trial: str, fold: int, seeds: Sequence[int]) -> float | None:
        """Inner score of a trial in a fold, the mean over seeds; None if it was not trained there."""
        found = [self.fits.get(FitKey(rung, trial, fold, seed)) for seed in seeds]
        scores = [fit.score for fit in found if fit is not None]
        return float(np.mean(scores)) if len(scores) == len(seeds) else None


def _encoded(probabilities: np.ndarray) -> list[Any]:
    data = base64.b64encode(probabilities.astype(np.float16).tobytes()).decode()
    return [*probabilities.shape, data]


def _decoded(stored: list[Any] | None) -> np.ndarray | None:
    if stored is None:
        return None
    rows, columns, data = stored
    return np.frombuffer(base64.b64decode(data), np.float16).reshape(rows, columns).astype(np.float32)
