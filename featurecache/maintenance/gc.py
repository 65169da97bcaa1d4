"""Garbage collection: find and remove temporary files of dead writers, and shards without a commit record.

`find_leftovers` changes nothing; `remove_leftovers` removes the files that it finds. Files of running writers are never
removed: writers lock their temporary files, leases and in-flight files, and a shard without a record ("orphan") is
removed under the commit lock, after a second check that it has no record. The in-flight file of a dead process stays
while a clip that it names has a slot without a commit: the next extraction decodes that clip in a child process.
Foreign files are listed and stay. Rows that a retry superseded stay too; `fcache convert --compact` leaves them out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featurecache.files.lease import Lease
from featurecache.files.publish import sweep as sweep_temporary
from featurecache.files.publish import writing
from featurecache.maintenance.verify import inspect_store, root_problems
from featurecache.media.crash_guard import clips_of_dead_processes
from featurecache.store.feature import StoredFeature
from featurecache.store.inspection import Inspection
from featurecache.store.local import LocalStore
from featurecache.store.writer import commit_lock


@dataclass
class Leftovers:
    """Files that can be removed, and files that are only listed."""

    temporary: list[Path] = field(default_factory=list)
    orphans: list[tuple[str, Path]] = field(default_factory=list)
    """(feature, shard file without a commit record)."""
    foreign: list[Path] = field(default_factory=list)
    """Files that are not of this store; they stay."""
    superseded_bytes: int = 0
    num_bytes: int = 0
    """Bytes that removing frees."""


def find_leftovers(store: LocalStore) -> Leftovers:
    """Find leftovers without changing anything."""
    leftovers = Leftovers()
    leftovers.foreign = [problem.path for problem in root_problems(store) if problem.kind == "foreign" and problem.path]
    leftovers.temporary = sweep_temporary(store.root, dry_run=True)
    inspections = list(inspect_store(store))
    leftovers.temporary += _decided_in_flight_files(inspections)
    for inspection in inspections:
        leftovers.temporary += sweep_temporary(inspection.folder.temporary, dry_run=True)
        leftovers.temporary += Lease.sweep(inspection.folder.leases, dry_run=True)
        for problem in inspection.problems:
            if problem.path is None:
                continue
            if problem.kind == "orphan":
                leftovers.orphans.append((inspection.name, problem.path))
            elif problem.kind == "foreign":
                leftovers.foreign.append(problem.path)
        if inspection.spec is not None and not any(problem.kind == "record" for problem in inspection.problems):
            leftovers.superseded_bytes += _superseded_bytes(store[inspection.name])
    paths = [*leftovers.temporary, *(path for _, path in leftovers.orphans)]
    leftovers.num_bytes = sum(path.stat().st_size for path in paths if path.exists())
    return leftovers


def remove_leftovers(store: LocalStore) -> Leftovers:
    """Remove the files that `find_leftovers` finds, and return them.

    Raises:
        WriteError: the disk refuses, or another process holds the commit lock.
    """
    leftovers = find_leftovers(store)
    with writing(store.location):
        sweep_temporary(store.root)
        for path in _decided_in_flight_files(list(inspect_store(store))):
            path.unlink(missing_ok=True)
        for name in store.names:
            sweep_temporary(store.folder(name).temporary)
            Lease.sweep(store.folder(name).leases)
    for name, path in leftovers.orphans:
        folder = store.folder(name)
        if not folder.records.is_dir():
            _remove(path, store.root)
            continue
        with writing(path), commit_lock(folder.records, f"{store.location}/{name}"):
            (inspection,) = inspect_store(store, [name])
            orphans = {problem.path for problem in inspection.problems if problem.kind == "orphan"}
            if path in orphans:  # its writer may have committed in the meantime
                _remove(path, store.root)
    return leftovers


def _decided_in_flight_files(inspections: Sequence[Inspection]) -> list[Path]:
    """Return the in-flight files of dead processes whose clips have no slot without a commit.

    A joint extraction of several features names its clips in the folder of one of them, so that a clip counts as
    decided when it waits in no feature.
    """
    if any(problem.kind in ("plan", "spec") for inspection in inspections for problem in inspection.problems):
        return []  # the planned clips cannot be read
    waiting = {
        data.decode()
        for inspection in inspections
        for shard, (segment, first, end) in inspection.planned().items()
        if shard not in inspection.records
        for data in segment.encoded_ids(first, end)
    }
    return [
        path
        for inspection in inspections
        for path, clip_ids in clips_of_dead_processes(inspection.folder.leases).items()
        if waiting.isdisjoint(clip_ids)
    ]


def _remove(path: Path, root: Path) -> None:
    """Remove a file and the folders it leaves empty."""
    path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == root or root not in folder.parents:
            return
        with contextlib.suppress(OSError):
            folder.rmdir()  # fails unless the folder is empty


def _superseded_bytes(feature: StoredFeature) -> int:
    rows = sum(int((record.columns["status"] == 0).sum()) for record in feature.committed)
    return (rows - len(feature)) * sum(part.row_bytes for part in feature.parts)
