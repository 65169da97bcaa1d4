"""What became of every trial: one SQLite table, keyed by the hash of the resolved configuration.

A trial is waiting, done, failed (with its error) or stopped (by the probe tier or halving, with where). A state is
written in one transaction when it is reached; after a kill in between, the trial is waiting and its run resumes from
its checkpoint.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.store.publish import make_folder
from fusion_train.sweeps.sweep_file import Trial

WAITING, DONE, FAILED, STOPPED = "waiting", "done", "failed", "stopped"
FILE = "trials.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
    key TEXT PRIMARY KEY, variant TEXT NOT NULL, seed INTEGER NOT NULL, config TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', step INTEGER, seconds REAL, together INTEGER,
    rungs TEXT NOT NULL DEFAULT '{}', scores TEXT, error TEXT, stopped TEXT
)
"""
_SPENDING = "CREATE TABLE IF NOT EXISTS spending (seconds REAL NOT NULL)"
_COLUMNS = ("state", "step", "seconds", "together", "rungs", "scores", "error", "stopped")


@dataclass(frozen=True)
class Outcome:
    """One row."""

    variant: str
    seed: int
    state: str
    step: int | None
    seconds: float | None
    """Of training: its share of the time that its company took."""
    together: int | None
    """How many trained with it, itself included."""
    rungs: Mapping[str, float]
    """Step -> held-out score there, where halving judged."""
    scores: Mapping[str, Any] | None
    error: str | None
    stopped: str | None
    """Where it was behind, of one that was stopped."""

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"


class TrialTable:
    """The table of one sweep's folder; every call is a transaction of its own."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._path = folder / FILE
        with closing(self._open()) as table, table:
            table.execute(_SCHEMA)
            table.execute(_SPENDING)
            if "stopped" not in {column for _, column, *_ in table.execute("PRAGMA table_info(trials)")}:
                table.execute("ALTER TABLE trials ADD COLUMN stopped TEXT")  # a sweep begun before it was kept

    def add(self, trials: Iterable[Trial]) -> None:
        """Put trials in, waiting, unless they are there."""
        rows = [(trial.key, trial.variant, trial.seed,
                 json.dumps([stage.model_dump(mode="json") for stage in trial.stages], sort_keys=True))
                for trial in trials]  # fmt: skip
        with closing(self._open()) as table, table:
            table.executemany("INSERT OR IGNORE INTO trials (key, variant, seed, config) VALUES (?, ?, ?, ?)", rows)

    def write(self, trial: Trial, **values: Any) -> None:
        """Set columns of a trial; mappings become JSON."""
        unknown = values.keys() - set(_COLUMNS)
        assert not unknown, unknown
        stored = [json.dumps(value) if isinstance(value, Mapping) else value for value in values.values()]
        assigned = ", ".join(f"{column} = ?" for column in values)
        with closing(self._open()) as table, table:
            table.execute(f"UPDATE trials SET {assigned} WHERE key = ?", (*stored, trial.key))

    def spend(self, seconds: float) -> None:
        """Add device time."""
        with closing(self._open()) as table, table:
            table.execute("INSERT INTO spending VALUES (?)", (seconds,))

    def spent(self) -> float:
        """Seconds of device time that all runs of the sweep's command took for groups that they saw end."""
        with closing(self._open()) as table:
            return float(table.execute("SELECT total(seconds) FROM spending").fetchone()[0])

    def outcome(self, trial: Trial) -> Outcome:
        return self.read(trial.key)

    def read(self, key: str) -> Outcome:
        with closing(self._open()) as table:
            row = table.execute(f"SELECT variant, seed, {', '.join(_COLUMNS)} FROM trials WHERE key = ?",
                                (key,)).fetchone()  # fmt: skip
        variant, seed, state, step, seconds, together, rungs, scores, error, stopped = row
        return Outcome(variant, seed, state, step, seconds, together, json.loads(rungs),
                       json.loads(scores) if scores else None, error, stopped)  # fmt: skip

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=60)
