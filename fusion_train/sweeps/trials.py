"""States and scores of all trials: one SQLite table, keyed by the hash of the resolved configuration.

A trial is waiting, done, failed (with its error) or stopped (by the probe tier or by halving, with the place). One
transaction writes a state when the trial reaches it; after a kill in between, the trial is waiting and its run resumes
from its checkpoint. Every row carries a hash, and a damaged row is refused, since verdicts depend on it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import WriteError
from featurecache.files.publish import make_folder
from fusion_train.errors import DataError
from fusion_train.sweeps.sweep_file import Trial

WAITING, DONE, FAILED, STOPPED = "waiting", "done", "failed", "stopped"
FILE = "trials.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS trials (
    key TEXT PRIMARY KEY, variant TEXT NOT NULL, seed INTEGER NOT NULL, config TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', step INTEGER, seconds REAL, together INTEGER,
    rungs TEXT NOT NULL DEFAULT '{}', scores TEXT, error TEXT, stopped TEXT, sha256 TEXT
)
"""
_SPENDING = "CREATE TABLE IF NOT EXISTS spending (seconds REAL NOT NULL)"
_COLUMNS = ("state", "step", "seconds", "together", "rungs", "scores", "error", "stopped")
_HASHED = ("key", "variant", "seed", "config", *_COLUMNS)
"""Columns that the `sha256` of a row covers, so that damage to a row is noticed."""


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    variant: str
    seed: int
    state: str
    step: int | None
    seconds: float | None
    """Training time; of trials that trained together, an equal share."""
    together: int | None
    """Number of trials that trained together, this trial included."""
    rungs: Mapping[str, float]
    """Step -> held-out score there, where halving judged."""
    scores: Mapping[str, Any] | None
    error: str | None
    stopped: str | None
    """Where a stopped trial was behind."""

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"


class TrialTable:
    """The table in a sweep's folder; every call is one transaction."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._path = folder / FILE
        with self._transaction() as table:
            table.execute(_SCHEMA)
            table.execute(_SPENDING)

    def add(self, trials: Iterable[Trial]) -> None:
        """Add trials as waiting, unless the table has them."""
        rows = [
            (
                trial.key,
                trial.variant,
                trial.seed,
                json.dumps([stage.model_dump(mode="json") for stage in trial.stages], sort_keys=True),
            )
            for trial in trials
        ]
        with self._transaction() as table:
            known = {key for (key,) in table.execute("SELECT key FROM trials")}
            table.executemany("INSERT OR IGNORE INTO trials (key, variant, seed, config) VALUES (?, ?, ?, ?)", rows)
            for key, *_ in rows:
                if key not in known:
                    self._seal(table, key)

    def write(self, trial: Trial, **values: Any) -> None:
        """Set columns of a trial; mappings become JSON."""
        unknown = values.keys() - set(_COLUMNS)
        assert not unknown, unknown
        stored = [json.dumps(value) if isinstance(value, Mapping) else value for value in values.values()]
        assigned = ", ".join(f"{column} = ?" for column in values)
        with self._transaction() as table:
            self._row(table, trial.key)
            table.execute(f"UPDATE trials SET {assigned} WHERE key = ?", (*stored, trial.key))
            self._seal(table, trial.key)

    def spend(self, seconds: float) -> None:
        """Add device time."""
        with self._transaction() as table:
            table.execute("INSERT INTO spending VALUES (?)", (seconds,))

    def spent(self) -> float:
        """Seconds of device time of all groups that ended, over all runs of the sweep's command."""
        with self._transaction() as table:
            return float(table.execute("SELECT total(seconds) FROM spending").fetchone()[0])

    def outcome(self, trial: Trial) -> Outcome:
        return self.read(trial.key)

    def read(self, key: str) -> Outcome:
        """Read a trial.

        Raises:
            DataError: there is no such row, or it is damaged.
        """
        with self._transaction() as table:
            row = dict(zip(_HASHED, self._row(table, key), strict=True))
        return Outcome(
            variant=row["variant"],
            seed=row["seed"],
            rungs=json.loads(row["rungs"]),
            scores=json.loads(row["scores"]) if row["scores"] else None,
            **{name: row[name] for name in ("state", "step", "seconds", "together", "error", "stopped")},
        )

    def _row(self, table: sqlite3.Connection, key: str) -> tuple[Any, ...]:
        """Values of `_HASHED` of a row, compared with its hash."""
        query = f"SELECT {', '.join(_HASHED)}, sha256 FROM trials WHERE key = ?"
        values = table.execute(query, (key,)).fetchone()
        if values is None or _digest(values[:-1]) != values[-1]:
            raise self._damaged("no such row" if values is None else "a row that contradicts its hash", key)
        return tuple(values[:-1])

    def _seal(self, table: sqlite3.Connection, key: str) -> None:
        row = table.execute(f"SELECT {', '.join(_HASHED)} FROM trials WHERE key = ?", (key,)).fetchone()
        table.execute("UPDATE trials SET sha256 = ? WHERE key = ?", (_digest(row), key))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open one transaction; errors of SQLite become WriteError or DataError."""
        try:
            with closing(sqlite3.connect(self._path, timeout=60)) as table, table:
                yield table
        except sqlite3.OperationalError as error:
            if "no such column" in str(error):
                raise self._damaged(f"a table of another version ({error})", None) from error
            raise WriteError(
                str(self._path),
                expected="a table that can be written",
                got=str(error),
                next_step="Free space, or end the process that holds it; then run the same command.",
            ) from error
        except (sqlite3.DatabaseError, UnicodeDecodeError, OverflowError) as error:
            raise self._damaged(str(error), None) from error

    def _damaged(self, got: str, key: str | None) -> DataError:
        return DataError(
            str(self._path),
            expected=f"the row of trial {key}" if key else "the table of a sweep",
            got=got,
            next_step="Delete the file and run the same command: finished runs are asked again, not trained again.",
        )


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()
