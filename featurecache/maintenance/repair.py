"""Mend a damaged store: rebuild what follows from the rest, and recompute exactly the rows that are lost.

In this order: the root, the spec (from the copy beside the array), the plan (from the commit records), derived files,
shards whose record is damaged or missing (recomputed whole), then rows: sound ones are copied, bad ones recomputed, and
the new file takes the place of the old in one step. Files are never edited in place; a reader that has the old one
mapped keeps it. A damaged record stays where it is until its shard is whole again: until then readers are refused, and
a repair that was killed is followed by one that finds the same damage.
This module knows no encoder: `Recompute` is handed in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptStoreError
from featurecache.files.publish import replace_bytes, writing
from featurecache.maintenance.recompute import Outcome, Recompute
from featurecache.maintenance.verify import feature_folders, index_problems, root_problems
from featurecache.store.direct import open_shard
from featurecache.store.inspection import Inspection, Problem, inspect_feature, inspect_shard, spec_kept_in_array
from featurecache.store.local import LocalStore
from featurecache.store.mapped import map_file
from featurecache.store.plan import Segment, load_segment, make_segment
from featurecache.store.protocols import Shard, Status
from featurecache.store.records import NEXT_STEP, QUANTISED_COLUMNS, Record
from featurecache.store.writer import StoredFeatureWriter, StoredShardWriter

SUPERSEDED = "its row was lost; a later shard holds the clip"


@dataclass
class RepairReport:
    """What was mended, and what could not be."""

    mended: list[str] = field(default_factory=list)
    recomputed: list[tuple[str, str]] = field(default_factory=list)
    """(feature, clip id) of every row that was computed anew."""
    left: list[str] = field(default_factory=list)
    pending: list[tuple[str, int]] = field(default_factory=list)
    """(feature, shard) that the next `fcache extract` will fill."""

    @property
    def exit_code(self) -> int:
        return 1 if self.left else 0


def repair_store(
    store: LocalStore, recompute: Recompute | None = None, names: Sequence[str] | None = None
) -> RepairReport:
    """Mend the named features, by default all. Killed at any instant, the same call ends with the same bytes.

    Without `recompute`, rows that are lost stay damaged and are listed; everything else is mended.

    Raises:
        WriteError: the disk is full or refuses; run it again.
    """
    report = RepairReport()
    for problem in root_problems(store):
        if problem.kind == "root" and problem.path is not None:
            replace_bytes(problem.path, store.format.root_files()[problem.path.name])
            report.mended.append(str(problem))
    for name in names or feature_folders(store):
        if not _mend_spec(store, name, report):
            continue
        _mend_plan(store, name, report)
        _drop_unplanned(store, name, report)
        found = inspect_feature(store.folder(name), name, store.format)
        assert found.spec is not None
        damaged = {
            problem.shard: problem
            for problem in found.problems
            if problem.kind == "record" and problem.shard is not None
        }
        writer = store.writer(name, found.spec, unread=damaged)  # writes derived files
        report.mended += [str(problem) for problem in found.problems if problem.kind in ("derived", "stale")]
        for shard in writer.shards():
            if shard.number in damaged:
                _refill_shard(writer, writer.begin(shard), damaged[shard.number], recompute, report)
        for shard in writer.pending():
            if any(path.exists() for path in found.form.paths(found.folder, shard.number, found.parts)):
                _finish_shard(writer, shard, recompute, report)
        for number in sorted(found.records):
            problems = list(inspect_shard(found, number))
            if any(problem.damage for problem in problems):
                _mend_shard(found, writer, number, problems, recompute, report)
    for problem in index_problems(store, names or feature_folders(store)):
        if problem.damage and problem.path is not None:
            with writing(problem.path):
                problem.path.unlink()
            report.mended.append(str(problem))
    return report


def _mend_spec(store: LocalStore, name: str, report: RepairReport) -> bool:
    found = inspect_feature(store.folder(name), name, store.format)
    problems = [problem for problem in found.problems if problem.kind == "spec"]
    if not problems:
        return found.spec is not None  # none where creation was interrupted: nothing to mend
    kept = spec_kept_in_array(found)
    if kept is None:
        report.left.append(f"{name}: spec.json and its copy are both damaged; restore one of them from another copy")
        return False
    replace_bytes(found.folder.spec, kept, found.folder.temporary)
    report.mended += [str(problem) for problem in problems]
    return True


def _mend_plan(store: LocalStore, name: str, report: RepairReport) -> None:
    """Rebuild damaged segments from the records of their shards; shards without one lose their plan."""
    found = inspect_feature(store.folder(name), name, store.format)
    damaged = [problem for problem in found.problems if problem.kind == "plan" and problem.path is not None]
    elsewhere = _misplaced_segments([problem.path for problem in damaged if problem.path])
    for problem in damaged:
        number = int(problem.path.name)  # type: ignore[union-attr]
        if number in elsewhere:
            replace_bytes(problem.path, elsewhere[number].pack(), found.folder.temporary)  # type: ignore[arg-type]
            found.segments[number] = elsewhere[number]
            report.mended.append(f"{name}: plan segment {number} found under another number")
            continue
        before, after = found.segments.get(number - 1), found.segments.get(number + 1)
        first = before.end_shard if before else 0
        last = after.first_shard if after else max([first, *(shard + 1 for shard in found.records)])
        shards = [found.records.get(shard) for shard in range(first, last)]
        ids = [record.encoded_id(slot) for record in shards if record for slot in range(len(record))]
        counts = [len(record) if record else 0 for record in shards]
        geometry = found.geometry
        segment = make_segment(number, first, geometry.shard_rows, geometry.codec, ids, counts)
        replace_bytes(problem.path, segment.pack(), found.folder.temporary)  # type: ignore[arg-type]
        found.segments[number] = load_segment(problem.path, number)  # type: ignore[arg-type]
        lost = f"; {counts.count(0)} shards without a record must be planned again" if 0 in counts else ""
        report.mended.append(f"{name}: plan segment {number} rebuilt from {len(shards)} records{lost}")


def _misplaced_segments(paths: list[Path]) -> dict[int, Segment]:
    """Sound segments that lie under each other's names."""
    found = {}
    for path in paths:
        with contextlib.suppress(CorruptStoreError, OSError):
            segment = load_segment(path, None)
            found[segment.number] = segment
    return found


def _drop_unplanned(store: LocalStore, name: str, report: RepairReport) -> None:
    """Remove records of shards without planned clips; damaged records of planned shards stay until refilled."""
    found = inspect_feature(store.folder(name), name, store.format)
    planned = found.planned()
    for problem in found.problems:
        if problem.kind == "record" and problem.path is not None and problem.shard not in planned:
            with writing(problem.path):
                problem.path.unlink(missing_ok=True)
            report.mended.append(f"{problem}; no plan names its clips, so the record was dropped")


def _mend_shard(
    found: Inspection,
    writer: StoredFeatureWriter,
    shard: int,
    problems: list[Problem],
    recompute: Recompute | None,
    report: RepairReport,
) -> None:
    record = found.records[shard]
    rows = _sound_rows(found, record, problems)
    ok = np.flatnonzero(record.columns["status"] == Status.OK).tolist()
    lost = {record.encoded_id(slot).decode(): slot for slot in ok if slot not in rows}
    if lost and recompute is None:
        made = _rows(len(lost))
        report.left.append(f"{found.name}, shard {shard}: {made} must be recomputed: {', '.join(sorted(lost))}")
        return
    outcomes = {outcome.clip_id: outcome for outcome in recompute(found.name, list(lost))} if recompute and lost else {}
    why = {clip_id: _hindrance(outcomes.get(clip_id), record.clip(slot).source) for clip_id, slot in lost.items()}
    for clip_id in [clip_id for clip_id, reason in why.items() if reason and _superseded(writer, clip_id, shard)]:
        outcomes[clip_id] = Outcome(clip_id, Status.FAILED, record.clip(lost[clip_id]).source, reason=SUPERSEDED)
        why[clip_id] = ""
    if any(why.values()):
        told = ", ".join(f"{clip_id} ({reason})" for clip_id, reason in sorted(why.items()) if reason)
        made = _rows(len(lost))
        report.left.append(f"{found.name}, shard {shard}: {made} lost; cannot be made again: {told}")
        return
    with writer.begin(
        Shard(shard, tuple(record.encoded_id(slot).decode() for slot in range(len(record))))
    ) as shard_writer:
        for slot in range(len(record)):
            _refill(shard_writer, record, slot, rows.get(slot), outcomes)
        shard_writer.commit(replacing=True)
    report.mended += [str(problem) for problem in problems if problem.damage]
    report.recomputed += [(found.name, clip_id) for clip_id in lost]


def _sound_rows(found: Inspection, record: Record, problems: list[Problem]) -> dict[int, list[np.ndarray]]:
    """Rows that can be copied, by slot."""
    paths = found.form.paths(found.folder, record.shard, found.parts)
    if any(problem.kind == "shard" for problem in problems):
        return {}
    bad = {problem.clip_id for problem in problems if problem.kind == "row"}
    files = [map_file(open_shard(path, size, NEXT_STEP)) for path, size in zip(paths, record.file_bytes, strict=True)]
    rows = {}
    for slot in np.flatnonzero(record.columns["status"] == Status.OK).tolist():
        if record.encoded_id(slot).decode() not in bad:
            raw = [
                found.form.row(files[found.form.file_of(number)], record, slot, part)
                for number, part in enumerate(found.parts)
            ]
            rows[slot] = [row.view(part.dtype).reshape(part.shape) for row, part in zip(raw, found.parts, strict=True)]
    return rows


def _hindrance(outcome: Outcome | None, source: str) -> str:
    """Why an outcome does not restore tokens made from `source`; empty where it does."""
    if outcome is None:
        return "nothing came of it"
    if outcome.status is not Status.OK:
        return f"{outcome.status.name.lower()}: {outcome.reason}"
    return "" if outcome.source == source else "its media changed; `fcache retry` extracts it anew"


def _refill(
    shard_writer: StoredShardWriter,
    record: Record,
    slot: int,
    rows: list[np.ndarray] | None,
    outcomes: dict[str, Outcome],
) -> None:
    clip = record.clip(slot)
    if clip.status is Status.OK and rows is None:
        outcomes[clip.id].write(shard_writer, slot)
        return
    names = ("absmax", *(name for name in QUANTISED_COLUMNS[1:] if name in record.columns))
    stated = {name: float(record.columns[name][slot]) for name in names}
    Outcome(clip.id, clip.status, clip.source, None, clip.reason, rows or (), stated).write(shard_writer, slot)


def _finish_shard(writer: StoredFeatureWriter, shard: Shard, recompute: Recompute | None, report: RepairReport) -> None:
    """Fill a shard whose file was published and whose record is missing: its writer died, or the record was lost."""
    shard_writer = None if recompute is None else writer.claim(shard)
    if shard_writer is None:
        report.pending.append((writer.name, shard.number))
        return
    problem = Problem("orphan", writer.name, "its file has no commit record", shard.number)
    _refill_shard(writer, shard_writer, problem, recompute, report)


def _refill_shard(
    writer: StoredFeatureWriter,
    shard_writer: StoredShardWriter,
    problem: Problem,
    recompute: Recompute | None,
    report: RepairReport,
) -> None:
    """Recompute every row of a shard whose record is lost, and commit it with a new record; or change nothing."""
    shard = shard_writer.shard
    slots = {clip_id: slot for slot, clip_id in enumerate(shard.ids)}
    why = dict.fromkeys(slots, "nothing came of it")
    with shard_writer:
        for outcome in recompute(writer.name, shard.ids) if recompute else ():
            del why[outcome.clip_id]
            if outcome.tried:
                outcome.write(shard_writer, slots[outcome.clip_id])
            elif _superseded(writer, outcome.clip_id, shard.number):
                shard_writer.fail(slots[outcome.clip_id], SUPERSEDED)
            else:
                why[outcome.clip_id] = outcome.reason
        if not why:
            shard_writer.commit(replacing=problem.kind == "record")
            report.mended.append(str(problem))
            report.recomputed += [(writer.name, clip_id) for clip_id in shard.ids]
            return
    if recompute is None:
        report.left.append(f"{problem}; {_rows(len(slots))} must be recomputed: {', '.join(sorted(slots))}")
    else:
        told = ", ".join(f"{clip_id} ({reason})" for clip_id, reason in sorted(why.items()))
        report.left.append(f"{problem}; {_rows(len(why))} cannot be made again: {told}")


def _rows(count: int) -> str:
    return f"{count} row{'s' if count != 1 else ''}"


def _superseded(writer: StoredFeatureWriter, clip_id: str, shard: int) -> bool:
    """Whether a later shard holds the clip, so that no reader is given this row."""
    record = writer.record(clip_id)
    return record is not None and record.shard > shard
