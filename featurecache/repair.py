"""Mend a damaged store: rebuild what follows from the rest, and recompute exactly the rows that are lost.

In this order: the root, the spec (from the copy beside the array), the plan (from the commit records), records
(dropped; their shards become pending), derived files, then shards: sound rows are copied, bad ones recomputed, and the
new file takes the place of the old in one step. Files are never edited in place; a reader that has the old one mapped
keeps it.
This module knows no encoder: `Recompute` is handed in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptStoreError, FingerprintError
from featurecache.store.direct import open_shard
from featurecache.store.feature import StoredFeature
from featurecache.store.inspection import Inspection, Problem, inspect_feature, inspect_shard, spec_kept_in_array
from featurecache.store.local import LocalStore
from featurecache.store.mapped import map_file
from featurecache.store.plan import Segment, load_segment, make_segment
from featurecache.store.protocols import Shard, Status
from featurecache.store.publish import replace_bytes, writing
from featurecache.store.records import NEXT_STEP, QUANTISED_COLUMNS, Record
from featurecache.store.writer import StoredFeatureWriter, StoredShardWriter
from featurecache.verify import feature_folders, root_problems


@dataclass(frozen=True)
class Outcome:
    """What recomputing one clip gave: tokens (K, D), or why there are none."""

    clip_id: str
    status: Status
    source: str
    tokens: np.ndarray | None = None
    reason: str = ""
    rows: Sequence[np.ndarray] = ()
    """Instead of tokens: an array for each part, as another store holds them."""
    stated: Mapping[str, float] = field(default_factory=dict)
    """With rows: their absmax and measured errors."""

    def write(self, shard_writer: StoredShardWriter, slot: int) -> None:
        """Decide one slot."""
        if self.status is Status.FAILED:
            shard_writer.fail(slot, self.reason, self.source)
        elif self.status is Status.ABSENT:
            shard_writer.absent(slot, self.reason, self.source)
        elif self.tokens is None:
            shard_writer.put_rows(slot, self.rows, self.source, self.stated)
        else:
            shard_writer.put(slot, self.tokens, self.source)


def outcome_of(feature: StoredFeature, clip_id: str) -> Outcome:
    """What another feature of the same spec holds of a clip."""
    clip = feature.record(clip_id)
    if clip is None:
        return Outcome(clip_id, Status.FAILED, "", reason="not extracted")
    rows, stated = feature.disk_rows(clip_id) if clip.status is Status.OK else ((), {})
    return Outcome(clip_id, clip.status, clip.source, reason=clip.reason, rows=rows, stated=stated)


Recompute = Callable[[str, Sequence[str]], Iterable[Outcome]]
"""Called with a feature's name and clip ids; gives one outcome a clip, in any order."""


def taken_from(other: LocalStore, store: LocalStore) -> Recompute:
    """A `Recompute` that takes the rows of `store` from a copy of it, in whatever format.

    Raises (when called):
        StoreNotFoundError: the copy does not have the feature.
        FingerprintError: it has it under another spec.
    """

    def take(name: str, ids: Sequence[str]) -> Iterable[Outcome]:
        copy, spec = other[name], store.spec(name)  # mended by now
        if copy.fingerprint != spec.fingerprint:
            raise FingerprintError(
                copy.subject,
                expected=f"the spec of {store.location}/{name}",
                got="another; stored != found",
                next_step="Name a copy of this store.",
                problems=spec.differences(copy.spec),
            )
        return [outcome_of(copy, clip_id) for clip_id in ids]

    return take


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
    """Mend the named features, by default all.

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
        dropped = _drop_records(store, name, report)
        found = inspect_feature(store.folder(name), name, store.format)
        assert found.spec is not None
        writer = store.writer(name, found.spec)  # writes derived files
        report.mended += [str(problem) for problem in found.problems if problem.kind in ("derived", "stale")]
        for shard in sorted(found.records):
            problems = list(inspect_shard(found, shard))
            if any(problem.damage for problem in problems):
                _mend_shard(found, writer, shard, problems, recompute, report)
        _fill(writer, dropped, recompute, report)
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


def _drop_records(store: LocalStore, name: str, report: RepairReport) -> list[int]:
    found = inspect_feature(store.folder(name), name, store.format)
    dropped = []
    for problem in found.problems:
        if problem.kind == "record" and problem.path is not None and problem.shard is not None:
            with writing(problem.path):
                problem.path.unlink(missing_ok=True)
            dropped.append(problem.shard)
            report.mended.append(f"{problem}; the record was dropped")
    return dropped


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
        report.left.append(f"{found.name}, shard {shard}: {_rows(lost)} must be recomputed: {', '.join(sorted(lost))}")
        return
    outcomes = {outcome.clip_id: outcome for outcome in recompute(found.name, list(lost))} if recompute and lost else {}
    why = {clip_id: _hindrance(outcomes.get(clip_id), record.clip(slot).source) for clip_id, slot in lost.items()}
    if any(why.values()):
        told = ", ".join(f"{clip_id} ({reason})" for clip_id, reason in sorted(why.items()) if reason)
        report.left.append(f"{found.name}, shard {shard}: {_rows(lost)} lost; cannot be made again: {told}")
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


def _rows(lost: Mapping[str, int]) -> str:
    return f"{len(lost)} row{'s' if len(lost) != 1 else ''}"


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


def _fill(writer: StoredFeatureWriter, dropped: list[int], recompute: Recompute | None, report: RepairReport) -> None:
    """Recompute the shards whose record was dropped, or say that extraction will."""
    for shard in [shard for shard in writer.pending() if shard.number in dropped]:
        if recompute is None:
            report.pending.append((writer.name, shard.number))
            continue
        slots = {clip_id: slot for slot, clip_id in enumerate(shard.ids)}
        with writer.begin(shard) as shard_writer:
            for outcome in recompute(writer.name, shard.ids):
                outcome.write(shard_writer, slots.pop(outcome.clip_id))
            if slots:
                raise CorruptStoreError(
                    writer.subject,
                    expected=f"an outcome for every clip of shard {shard.number}",
                    got=f"none for {len(slots)}",
                )
            shard_writer.commit()
        report.recomputed += [(writer.name, clip_id) for clip_id in shard.ids]
