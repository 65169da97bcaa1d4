"""Repair a damaged store: rebuild files from sound ones, and recompute only the rows that are lost.

Order: the files at the root, the spec (from its copy beside the array), the plan (from the commit records), derived
files, shards whose record is damaged or missing (recomputed as a whole), then single rows. For these, sound rows are
copied, lost rows are recomputed, and the new file replaces the old one in one step. No file is edited in place, so a
reader that has mapped the old file keeps it. A damaged record stays until its shard is complete again: readers are
refused until then, and a repair that was killed finds the same damage at its next run.

This module knows no encoder. A `Recompute` function gives it one `RecomputedClip` per lost row: from an extraction
(`retry.recompute_by_extraction`), from a copy of the store (`recompute_from_copy`), or from imported files
(`importers.npy`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptStoreError, FingerprintError
from featurecache.files.publish import replace_bytes, writing
from featurecache.maintenance.verify import feature_folders, index_problems, root_problems
from featurecache.store.feature import StoredFeature
from featurecache.store.inspection import Inspection, Problem, inspect_feature, inspect_shard, spec_kept_in_array
from featurecache.store.local import LocalStore
from featurecache.store.plan import PlanSegment, load_segment, make_segment
from featurecache.store.protocols import Shard, Status
from featurecache.store.records import NEXT_STEP, QUANTISED_COLUMNS, CommitRecord
from featurecache.store.shard_files import map_file, open_shard
from featurecache.store.writer import StoredFeatureWriter, StoredShardWriter


@dataclass(frozen=True)
class RecomputedClip:
    """Result of recomputing one clip: tokens (K, D), or rows in stored form, or the reason why there are none."""

    clip_id: str
    status: Status
    source: str
    tokens: np.ndarray | None = None
    reason: str = ""
    rows: Sequence[np.ndarray] = ()
    """Instead of tokens: one array per part of the stored row, copied from another store."""
    statistics: Mapping[str, float] = field(default_factory=dict)
    """Of copied rows: absmax and quantisation errors, by name of the record's column."""
    tried: bool = True
    """False if nothing could be computed from (no such clip, no encoder); such a result is never recorded."""

    def write(self, shard_writer: StoredShardWriter, slot: int) -> None:
        """Write the result into one slot."""
        if self.status is Status.FAILED:
            shard_writer.fail(slot, self.reason, self.source)
        elif self.status is Status.ABSENT:
            shard_writer.absent(slot, self.reason, self.source)
        elif self.tokens is None:
            shard_writer.put_rows(slot, self.rows, self.source, self.statistics)
        else:
            shard_writer.put(slot, self.tokens, self.source)


def copied_clip(feature: StoredFeature, clip_id: str) -> RecomputedClip:
    """Return a clip as another feature of the same spec holds it."""
    clip = feature.record(clip_id)
    if clip is None:
        return RecomputedClip(clip_id, Status.FAILED, "", reason="the copy does not have it", tried=False)
    rows, statistics = feature.disk_rows(clip_id) if clip.status is Status.OK else ((), {})
    return RecomputedClip(clip_id, clip.status, clip.source, reason=clip.reason, rows=rows, statistics=statistics)


Recompute = Callable[[str, Sequence[str]], Iterable[RecomputedClip]]
"""Receives a feature's name and clip ids; yields one result per clip, in any order."""


def recompute_from_copy(copy: LocalStore, store: LocalStore) -> Recompute:
    """Return a `Recompute` that reads the rows of `store` from a copy of it, in any format.

    Raises (when called):
        StoreNotFoundError: the copy does not have the feature.
        FingerprintError: the copy has the feature under another spec.
    """

    def recompute(name: str, ids: Sequence[str]) -> Iterable[RecomputedClip]:
        feature, spec = copy[name], store.spec(name)  # read here, because repair may have rewritten the spec
        if feature.fingerprint != spec.fingerprint:
            raise FingerprintError(
                feature.subject,
                expected=f"the spec of {store.location}/{name}",
                got="another; stored != found",
                next_step="Name a copy of this store.",
                problems=spec.differences(feature.spec),
            )
        return [copied_clip(feature, clip_id) for clip_id in ids]

    return recompute


SUPERSEDED = "its row was lost; a later shard holds the clip"


@dataclass
class RepairReport:
    """Result of a repair."""

    mended: list[str] = field(default_factory=list)
    recomputed: list[tuple[str, str]] = field(default_factory=list)
    """(feature, clip id) of every recomputed row."""
    left: list[str] = field(default_factory=list)
    """Damage that could not be repaired."""
    pending: list[tuple[str, int]] = field(default_factory=list)
    """(feature, shard) that the next `fcache extract` will fill."""

    @property
    def exit_code(self) -> int:
        return 1 if self.left else 0


def repair_store(
    store: LocalStore, recompute: Recompute | None = None, names: Sequence[str] | None = None
) -> RepairReport:
    """Repair the named features, by default all. After a kill at any instant, the same call ends with the same bytes.

    Without `recompute`, lost rows stay damaged and are listed in `left`; everything else is repaired.

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
        inspection = inspect_feature(store.folder(name), name, store.format)
        assert inspection.spec is not None
        damaged = {
            problem.shard: problem
            for problem in inspection.problems
            if problem.kind == "record" and problem.shard is not None
        }
        writer = store.writer(name, inspection.spec, skipped_shards=damaged)  # writes missing derived files
        report.mended += [str(problem) for problem in inspection.problems if problem.kind in ("derived", "stale")]
        for shard in writer.shards():
            if shard.number in damaged:
                _refill_shard(writer, writer.begin(shard), damaged[shard.number], recompute, report)
        for shard in writer.pending():
            if any(
                path.exists() for path in inspection.format.paths(inspection.folder, shard.number, inspection.parts)
            ):
                _finish_shard(writer, shard, recompute, report)
        for number in sorted(inspection.records):
            problems = list(inspect_shard(inspection, number))
            if any(problem.damage for problem in problems):
                _mend_shard(inspection, writer, number, problems, recompute, report)
    for problem in index_problems(store, names or feature_folders(store)):
        if problem.damage and problem.path is not None:
            with writing(problem.path):
                problem.path.unlink()
            report.mended.append(str(problem))
    return report


def _mend_spec(store: LocalStore, name: str, report: RepairReport) -> bool:
    """Restore the spec from its copy in the array; return whether the feature has a spec."""
    inspection = inspect_feature(store.folder(name), name, store.format)
    problems = [problem for problem in inspection.problems if problem.kind == "spec"]
    if not problems:
        return inspection.spec is not None  # None if the creation of the feature was interrupted: nothing to repair
    array_copy = spec_kept_in_array(inspection)
    if array_copy is None:
        report.left.append(f"{name}: spec.json and its copy are both damaged; restore one of them from another copy")
        return False
    replace_bytes(inspection.folder.spec, array_copy, inspection.folder.temporary)
    report.mended += [str(problem) for problem in problems]
    return True


def _mend_plan(store: LocalStore, name: str, report: RepairReport) -> None:
    """Rebuild damaged plan segments from the records of their shards; shards without a record lose their plan."""
    inspection = inspect_feature(store.folder(name), name, store.format)
    damaged = [problem.path for problem in inspection.problems if problem.kind == "plan" and problem.path is not None]
    swapped = _segments_under_other_names(damaged)
    for path in damaged:
        number = int(path.name)
        if number in swapped:
            replace_bytes(path, swapped[number].pack(), inspection.folder.temporary)
            inspection.segments[number] = swapped[number]
            report.mended.append(f"{name}: plan segment {number} found under another number")
            continue
        # Shard numbers lie between those of the segments before and after; without the latter, up to the last record.
        before, after = inspection.segments.get(number - 1), inspection.segments.get(number + 1)
        first = before.end_shard if before else 0
        last = after.first_shard if after else max([first, *(shard + 1 for shard in inspection.records)])
        shards = [inspection.records.get(shard) for shard in range(first, last)]
        ids = [record.encoded_id(slot) for record in shards if record for slot in range(len(record))]
        counts = [len(record) if record else 0 for record in shards]
        layout = inspection.layout
        segment = make_segment(number, first, layout.shard_rows, layout.codec, ids, counts)
        replace_bytes(path, segment.pack(), inspection.folder.temporary)
        inspection.segments[number] = load_segment(path, number)
        unplanned = f"; {counts.count(0)} shards without a record must be planned again" if 0 in counts else ""
        report.mended.append(f"{name}: plan segment {number} rebuilt from {len(shards)} records{unplanned}")


def _segments_under_other_names(paths: list[Path]) -> dict[int, PlanSegment]:
    """Return the sound segments among files whose name does not match their content, by true number."""
    segments = {}
    for path in paths:
        with contextlib.suppress(CorruptStoreError, OSError):
            segment = load_segment(path, None)
            segments[segment.number] = segment
    return segments


def _drop_unplanned(store: LocalStore, name: str, report: RepairReport) -> None:
    """Remove damaged records of shards without planned clips; those of planned shards stay until `_refill_shard`."""
    inspection = inspect_feature(store.folder(name), name, store.format)
    planned = inspection.planned()
    for problem in inspection.problems:
        if problem.kind == "record" and problem.path is not None and problem.shard not in planned:
            with writing(problem.path):
                problem.path.unlink(missing_ok=True)
            report.mended.append(f"{problem}; no plan names its clips, so the record was dropped")


def _mend_shard(
    inspection: Inspection,
    writer: StoredFeatureWriter,
    shard: int,
    problems: list[Problem],
    recompute: Recompute | None,
    report: RepairReport,
) -> None:
    """Write a shard again, with its sound rows copied and its lost rows recomputed; or change nothing."""
    record = inspection.records[shard]
    rows = _sound_rows(inspection, record, problems)
    ok = np.flatnonzero(record.columns["status"] == Status.OK).tolist()
    lost = {record.encoded_id(slot).decode(): slot for slot in ok if slot not in rows}
    if lost and recompute is None:
        number = _rows(len(lost))
        report.left.append(f"{inspection.name}, shard {shard}: {number} must be recomputed: {', '.join(sorted(lost))}")
        return
    recomputed = {clip.clip_id: clip for clip in recompute(inspection.name, list(lost))} if recompute and lost else {}
    obstacles = {
        clip_id: _obstacle(recomputed.get(clip_id), record.clip(slot).source) for clip_id, slot in lost.items()
    }
    for clip_id in [clip_id for clip_id, reason in obstacles.items() if reason and _superseded(writer, clip_id, shard)]:
        source = record.clip(lost[clip_id]).source
        recomputed[clip_id] = RecomputedClip(clip_id, Status.FAILED, source, reason=SUPERSEDED)
        obstacles[clip_id] = ""
    if any(obstacles.values()):
        reasons = ", ".join(f"{clip_id} ({reason})" for clip_id, reason in sorted(obstacles.items()) if reason)
        number = _rows(len(lost))
        report.left.append(f"{inspection.name}, shard {shard}: {number} lost; cannot be made again: {reasons}")
        return
    with writer.begin(
        Shard(shard, tuple(record.encoded_id(slot).decode() for slot in range(len(record))))
    ) as shard_writer:
        for slot in range(len(record)):
            _refill(shard_writer, record, slot, rows.get(slot), recomputed)
        shard_writer.commit(replacing=True)
    report.mended += [str(problem) for problem in problems if problem.damage]
    report.recomputed += [(inspection.name, clip_id) for clip_id in lost]


def _sound_rows(inspection: Inspection, record: CommitRecord, problems: list[Problem]) -> dict[int, list[np.ndarray]]:
    """Return the undamaged rows by slot, one array per part."""
    paths = inspection.format.paths(inspection.folder, record.shard, inspection.parts)
    if any(problem.kind == "shard" for problem in problems):
        return {}
    damaged = {problem.clip_id for problem in problems if problem.kind == "row"}
    files = [map_file(open_shard(path, size, NEXT_STEP)) for path, size in zip(paths, record.file_bytes, strict=True)]
    rows = {}
    for slot in np.flatnonzero(record.columns["status"] == Status.OK).tolist():
        if record.encoded_id(slot).decode() not in damaged:
            raw = [
                inspection.format.row(files[inspection.format.file_of(number)], record, slot, part)
                for number, part in enumerate(inspection.parts)
            ]
            rows[slot] = [
                row.view(part.dtype).reshape(part.shape) for row, part in zip(raw, inspection.parts, strict=True)
            ]
    return rows


def _obstacle(clip: RecomputedClip | None, source: str) -> str:
    """Return why a recomputed clip does not replace tokens made from `source`; an empty string if it does."""
    if clip is None:
        return "nothing came of it"
    if clip.status is not Status.OK:
        return f"{clip.status.name.lower()}: {clip.reason}"
    return "" if clip.source == source else "its media changed; `fcache retry` extracts it anew"


def _refill(
    shard_writer: StoredShardWriter,
    record: CommitRecord,
    slot: int,
    rows: list[np.ndarray] | None,
    recomputed: dict[str, RecomputedClip],
) -> None:
    """Write one slot of a repaired shard, from its old record and `rows`; without rows, from `recomputed`."""
    clip = record.clip(slot)
    if clip.status is Status.OK and rows is None:
        recomputed[clip.id].write(shard_writer, slot)
        return
    names = ("absmax", *(name for name in QUANTISED_COLUMNS[1:] if name in record.columns))
    statistics = {name: float(record.columns[name][slot]) for name in names}
    copied = RecomputedClip(clip.id, clip.status, clip.source, None, clip.reason, rows or (), statistics)
    copied.write(shard_writer, slot)


def _finish_shard(writer: StoredFeatureWriter, shard: Shard, recompute: Recompute | None, report: RepairReport) -> None:
    """Complete a shard that has a file but no record: its writer died before the commit, or the record was lost."""
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
    obstacles = dict.fromkeys(slots, "nothing came of it")
    with shard_writer:
        for clip in recompute(writer.name, shard.ids) if recompute else ():
            del obstacles[clip.clip_id]
            if clip.tried:
                clip.write(shard_writer, slots[clip.clip_id])
            elif _superseded(writer, clip.clip_id, shard.number):
                shard_writer.fail(slots[clip.clip_id], SUPERSEDED)
            else:
                obstacles[clip.clip_id] = clip.reason
        if not obstacles:
            shard_writer.commit(replacing=problem.kind == "record")
            report.mended.append(str(problem))
            report.recomputed += [(writer.name, clip_id) for clip_id in shard.ids]
            return
    if recompute is None:
        report.left.append(f"{problem}; {_rows(len(slots))} must be recomputed: {', '.join(sorted(slots))}")
    else:
        reasons = ", ".join(f"{clip_id} ({reason})" for clip_id, reason in sorted(obstacles.items()))
        report.left.append(f"{problem}; {_rows(len(obstacles))} cannot be made again: {reasons}")


def _rows(count: int) -> str:
    return f"{count} row{'s' if count != 1 else ''}"


def _superseded(writer: StoredFeatureWriter, clip_id: str, shard: int) -> bool:
    """Whether a later shard holds the clip, so readers never use this row."""
    record = writer.record(clip_id)
    return record is not None and record.shard > shard
