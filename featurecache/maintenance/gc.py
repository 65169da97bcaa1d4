"""Find and remove what no commit record accounts for: temporary files of dead writers, and orphaned shards.

Mark first (`mark`, a dry run), then `sweep`. Files of living writers are never touched: temporary files are locked by
their writers, and an orphan is removed under the commit lock, after another look at its record. Foreign files are
listed and left alone. Rows that a retry superseded stay: `fcache convert --compact` leaves them out.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from featurecache.files.publish import sweep as sweep_temporary
from featurecache.files.publish import writing
from featurecache.maintenance.verify import inspect_store, root_problems
from featurecache.store.feature import StoredFeature
from featurecache.store.local import LocalStore
from featurecache.store.writer import commit_lock


@dataclass
class Garbage:
    """What can be removed, and what is only told."""

    temporary: list[Path] = field(default_factory=list)
    orphans: list[tuple[str, Path]] = field(default_factory=list)
    """(feature, shard file without a commit record)."""
    foreign: list[Path] = field(default_factory=list)
    superseded_bytes: int = 0
    num_bytes: int = 0
    """Bytes that sweeping frees."""


def mark(store: LocalStore) -> Garbage:
    """Find garbage; change nothing."""
    garbage = Garbage()
    garbage.foreign = [problem.path for problem in root_problems(store) if problem.kind == "foreign" and problem.path]
    garbage.temporary = sweep_temporary(store.root, dry_run=True)
    for found in inspect_store(store):
        garbage.temporary += sweep_temporary(found.folder.temporary, dry_run=True)
        for problem in found.problems:
            if problem.path is None:
                continue
            if problem.kind == "orphan":
                garbage.orphans.append((found.name, problem.path))
            elif problem.kind == "foreign":
                garbage.foreign.append(problem.path)
        if found.spec is not None and not any(problem.kind == "record" for problem in found.problems):
            garbage.superseded_bytes += _superseded_bytes(store[found.name])
    paths = [*garbage.temporary, *(path for _, path in garbage.orphans)]
    garbage.num_bytes = sum(path.stat().st_size for path in paths if path.exists())
    return garbage


def sweep(store: LocalStore) -> Garbage:
    """Remove the garbage that `mark` finds.

    Raises:
        WriteError: the disk refuses, or another process keeps the commit lock.
    """
    garbage = mark(store)
    with writing(store.location):
        sweep_temporary(store.root)
        for name in store.names:
            sweep_temporary(store.folder(name).temporary)
    for name, path in garbage.orphans:
        folder = store.folder(name)
        if not folder.records.is_dir():
            _remove(path, store.root)
            continue
        with writing(path), commit_lock(folder.records, f"{store.location}/{name}"):
            still = {
                problem.path
                for each in inspect_store(store, [name])
                for problem in each.problems
                if problem.kind == "orphan"
            }
            if path in still:
                _remove(path, store.root)
    return garbage


def _remove(path: Path, root: Path) -> None:
    """Remove a file and the folders it leaves empty."""
    path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == root or root not in folder.parents:
            return
        with contextlib.suppress(OSError):
            folder.rmdir()  # refuses a folder that holds anything


def _superseded_bytes(feature: StoredFeature) -> int:
    rows = sum(int((record.columns["status"] == 0).sum()) for record in feature.committed)
    return (rows - len(feature)) * sum(part.row_bytes for part in feature.parts)
