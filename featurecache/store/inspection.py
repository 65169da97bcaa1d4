"""Inspect the files of a feature, one by one, and report every problem.

A problem is damage (the store contradicts itself; `fcache repair` mends it) or a notice (unfinished work, leftover
files). Normal reading stops at the first damage; an inspection continues. It changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np

from featurecache.errors import CorruptStoreError, SpecError
from featurecache.files.publish import TEMPORARY_PREFIX
from featurecache.spec import Spec
from featurecache.store import columns
from featurecache.store.layout import RECORD_DIGITS, SEGMENT_DIGITS, FeatureFolder, default_shard_rows, numbered
from featurecache.store.plan import PlanSegment, ShardPlan, load_segment
from featurecache.store.protocols import Status
from featurecache.store.records import MAGIC as RECORD_MAGIC
from featurecache.store.records import MAX_RECORD_BYTES, NEXT_STEP, QUANTISED_COLUMNS, CommitRecord, load_record
from featurecache.store.shard_files import map_file, open_shard
from featurecache.store.shard_format import FeatureLayout, RowPart, ShardFormat, row_parts

MAX_SEGMENTS_BEHIND = 8


@dataclass(frozen=True)
class Problem:
    """One damage or notice."""

    kind: str
    """Damage: root, spec, derived, plan, record, shard, index, row, similarity. Notice: pending, orphan, foreign,
    temporary, empty, stale, zero, equal, twins."""
    feature: str
    message: str
    shard: int | None = None
    clip_id: str | None = None
    path: Path | None = None
    damage: bool = True

    def __str__(self) -> str:
        place = [self.feature] if self.feature else []
        place += [f"shard {self.shard}"] if self.shard is not None else []
        place += [f"clip {self.clip_id}"] if self.clip_id is not None else []
        return (", ".join(place) + ": " if place else "") + self.message


@dataclass
class Inspection:
    """The readable contents of a feature, and its problems."""

    name: str
    folder: FeatureFolder
    format: ShardFormat
    spec: Spec | None = None
    spec_text: bytes = b""
    segments: dict[int, PlanSegment] = field(default_factory=dict)
    records: dict[int, CommitRecord] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def parts(self) -> tuple[RowPart, ...]:
        return row_parts(self.spec) if self.spec else ()

    @property
    def layout(self) -> FeatureLayout:
        assert self.spec is not None
        stored: list[PlanSegment | CommitRecord] = [*self.segments.values(), *self.records.values()]
        if stored:
            shard_rows, codec = stored[0].shard_rows, stored[0].codec
        else:
            shard_rows, codec = default_shard_rows(self.parts[0].row_bytes), "none"
        return FeatureLayout(self.folder, self.name, self.spec, self.parts, shard_rows, codec)

    def note(
        self, kind: str, message: str, *, path: Path | None, shard: int | None = None, damage: bool = True
    ) -> None:
        """Add a problem of the feature."""
        self.problems.append(Problem(kind, self.name, message, shard, path=path, damage=damage))

    def planned(self) -> dict[int, tuple[PlanSegment, int, int]]:
        """Return the planned shards that hold clips: segment, first clip, last clip + 1."""
        return {
            number: (segment, begin, end)
            for segment in self.segments.values()
            for number, begin, end in segment.shards()
            if end > begin
        }


def inspect_feature(folder: FeatureFolder, name: str, format: ShardFormat) -> Inspection:
    """Read spec, plan and records of a feature; compare them with each other and with the list of files."""
    inspection = Inspection(name, folder, format)
    _inspect_spec(inspection)
    if inspection.spec is None:
        return inspection
    _inspect_plan(inspection)
    _inspect_records(inspection)
    _inspect_derived(inspection)
    _inspect_files(inspection)
    return inspection


def inspect_shard(inspection: Inspection, shard: int, *, quick: bool = False) -> Iterator[Problem]:
    """Check the files of a committed shard: sizes, index and, unless `quick`, the bytes of every row."""
    record = inspection.records[shard]
    paths = inspection.format.paths(inspection.folder, shard, inspection.parts)
    for number, path in enumerate(paths):
        try:
            data = map_file(open_shard(path, record.file_bytes[number], NEXT_STEP))
        except (CorruptStoreError, OSError) as error:
            got = error.got if isinstance(error, CorruptStoreError) else str(error)
            message = f"expected {record.file_bytes[number]} bytes, got {got}"
            yield Problem("shard", inspection.name, message, shard, path=path)
            continue
        for message in inspection.format.file_problems(data, record, inspection.layout, number, quick):
            yield Problem("index", inspection.name, message, shard, path=path)
        for part_number, part in enumerate(() if quick else inspection.parts):
            if inspection.format.file_of(part_number) == number:
                yield from _row_problems(inspection, record, data, part, path)


def _row_problems(
    inspection: Inspection, record: CommitRecord, data: np.ndarray, part: RowPart, path: Path
) -> Iterator[Problem]:
    expected = record.columns[part.column("crc32c")]
    for slot in np.flatnonzero(record.columns["status"] == Status.OK).tolist():
        clip_id = record.encoded_id(slot).decode("utf-8", "replace")
        try:
            row = inspection.format.row(data, record, slot, part)
        except CorruptStoreError as error:
            yield Problem("row", inspection.name, _contradiction(error), record.shard, clip_id, path)
            continue
        if google_crc32c.value(row) != expected[slot]:
            yield Problem("row", inspection.name, "bytes contradict their checksum", record.shard, clip_id, path)
        elif not _is_finite(row, part, inspection):
            yield Problem("row", inspection.name, "NaN or infinity among the tokens", record.shard, clip_id, path)
        elif not part.name and not row.any():
            yield Problem("zero", inspection.name, "every token is zero", record.shard, clip_id, path, damage=False)
        elif not part.name and _all_equal(row, part):
            message = f"its {part.shape[0]} tokens are all equal"
            yield Problem("equal", inspection.name, message, record.shard, clip_id, path, damage=False)


def _contradiction(error: Exception) -> str:
    """Return an error without its subject and next step."""
    return f"expected {error.expected}, got {error.got}" if isinstance(error, CorruptStoreError) else str(error)


def _all_equal(row: np.ndarray, part: RowPart) -> bool:
    """Return whether all K > 1 tokens of a row are equal. Scales of quantised rows are not compared."""
    tokens = row.view(np.uint8).reshape(part.shape[0], -1)
    if len(tokens) == 1 or not np.array_equal(tokens[0], tokens[-1]):  # the cheap comparison excludes almost all rows
        return False
    return bool((tokens == tokens[0]).all())


def _is_finite(row: np.ndarray, part: RowPart, inspection: Inspection) -> bool:
    if part.dtype.kind == "f":
        return bool(np.isfinite(row.view(part.dtype)).all())
    if inspection.spec is not None and inspection.spec.stored_dtype == "bfloat16":
        return bool(((row.view(np.uint16) & 0x7FFF) < 0x7F80).all())
    return True


def _inspect_spec(inspection: Inspection) -> None:
    path = inspection.folder.spec
    if not path.exists() and not inspection.folder.plan.exists() and not inspection.folder.records.exists():
        inspection.note("empty", "its creation was interrupted; extraction goes on with it", path=path, damage=False)
        return
    try:
        text = path.read_bytes()
        spec = Spec.from_json(text.decode("utf-8"), str(path))
        row_parts(spec)
    except (OSError, SpecError, UnicodeDecodeError) as error:
        inspection.note("spec", f"spec.json cannot be read ({error})", path=path)
        return
    copy = spec_kept_in_array(inspection)
    if copy is not None and copy != text:
        fingerprint = Spec.from_json(copy.decode("ascii"), str(path)).fingerprint
        if fingerprint in (spec.fingerprint, _fingerprint_of_records(inspection)):  # otherwise the copy is wrong
            inspection.note("spec", "spec.json is not the spec that the array's attributes keep", path=path)
    inspection.spec, inspection.spec_text = spec, text


def spec_kept_in_array(inspection: Inspection) -> bytes | None:
    """Return the copy of spec.json in the derived file, or None if it does not match its checksum."""
    try:
        document = json.loads((inspection.folder.root / inspection.format.spec_copy).read_bytes())
        attributes = document["attributes"]["featurecache"]
        text = json.dumps(attributes["spec"], sort_keys=True, indent=2, ensure_ascii=True).encode("ascii") + b"\n"
        Spec.from_json(text.decode("ascii"))
        return text if google_crc32c.value(text) == attributes["spec_crc32c"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SpecError):
        return None


def _fingerprint_of_records(inspection: Inspection) -> str:
    """Return the fingerprint in the first readable record."""
    for shard in numbered(inspection.folder.records, RECORD_DIGITS):
        try:
            header, _ = columns.read(inspection.folder.record(shard), RECORD_MAGIC, MAX_RECORD_BYTES, NEXT_STEP)
        except (CorruptStoreError, OSError):
            continue
        return str(header.get("fingerprint"))
    return ""


def _inspect_plan(inspection: Inspection) -> None:
    numbers = numbered(inspection.folder.plan, SEGMENT_DIGITS)
    end = 0
    for number in range(numbers[-1] + 1 if numbers else 0):
        path = inspection.folder.segment(number)
        try:
            segment = load_segment(path, number)
        except (CorruptStoreError, OSError) as error:
            inspection.note("plan", f"plan segment {number}: {_contradiction(error)}", path=path)
            continue
        if segment.first_shard < end:
            inspection.note("plan", f"segment {number} overlaps the one before", path=path)
            continue
        inspection.segments[number] = segment
        end = segment.end_shard


def _inspect_records(inspection: Inspection) -> None:
    assert inspection.spec is not None
    planned = inspection.planned()
    whole_plan = not any(problem.kind == "plan" for problem in inspection.problems)
    numbers = numbered(inspection.folder.records, RECORD_DIGITS)
    end = max((segment.end_shard for segment in inspection.segments.values()), default=0)
    if whole_plan and numbers and numbers[-1] >= end:
        number = len(inspection.segments)
        inspection.note("plan", f"segment {number} is missing", path=inspection.folder.segment(number))
        whole_plan = False
    for shard in numbers:
        path = inspection.folder.record(shard)
        try:
            record = load_record(path, shard, inspection.spec.fingerprint)
        except (CorruptStoreError, OSError) as error:
            inspection.note("record", f"commit record: {_contradiction(error)}", shard=shard, path=path)
            continue
        message = _record_fault(inspection, record, planned.get(shard), whole_plan)
        if message:
            inspection.note("record", message, shard=shard, path=path)
        else:
            inspection.records[shard] = record
    pending = sorted(set(planned) - set(numbers))
    last_shard: dict[bytes, int] = {}  # by clip, the last committed shard that holds it
    if pending and len(inspection.segments) > 1:  # one segment plans every clip once
        for shard, record in sorted(inspection.records.items()):
            last_shard.update(dict.fromkeys(record.encoded_ids(), shard))
    for shard in pending:
        segment, begin, end = planned[shard]
        count = sum(last_shard.get(encoded, -1) < shard for encoded in segment.encoded_ids(begin, end))
        inspection.note("pending", f"{count} planned clips are not extracted", path=None, shard=shard, damage=False)


def _record_fault(
    inspection: Inspection, record: CommitRecord, planned: tuple[PlanSegment, int, int] | None, whole_plan: bool
) -> str:
    files = inspection.format.paths(inspection.folder, record.shard, inspection.parts)
    if record.row_bytes != inspection.parts[0].row_bytes or len(record.file_bytes) != len(files):
        return "the record's rows are not those of the spec"
    needed = [*inspection.format.columns(inspection.layout), *(QUANTISED_COLUMNS if len(inspection.parts) == 2 else ())]
    if any(name not in record.columns for name in needed):
        return "the record does not say where rows lie or what quantisation lost"
    ids = [record.encoded_id(slot) for slot in range(len(record))]
    if len(set(ids)) != len(ids):
        return "a clip stands twice in one shard"
    if planned is None:
        return "the shard was never planned" if whole_plan else ""
    segment, begin, end = planned
    if ids != segment.encoded_ids(begin, end) or record.shard_rows != segment.shard_rows:
        return "the record's clips are not the planned ones"
    return ""


def _inspect_derived(inspection: Inspection) -> None:
    if any(problem.kind in ("plan", "spec") for problem in inspection.problems):
        return  # their correct content is unknown until plan and spec are mended
    plan = ShardPlan(inspection.folder)
    for path, data in inspection.format.derived_files(inspection.layout, inspection.spec_text, plan).items():
        current = path.read_bytes() if path.is_file() else b""
        if current == data or (not inspection.segments and current):
            continue
        if _is_older(inspection, path, current, plan):
            inspection.note(
                "stale", f"{path.name} is of a shorter plan; extraction rewrites it", path=path, damage=False
            )
        else:
            inspection.note("derived", f"{path.name} is not what spec and plan give", path=path)


def _is_older(inspection: Inspection, path: Path, current: bytes, plan: ShardPlan) -> bool:
    """Return whether a derived file fits a shorter plan: the process that extended the plan was killed."""
    if not current:
        return not inspection.records
    shorter = ShardPlan(inspection.folder)
    while shorter.segments and len(plan.segments) - len(shorter.segments) < MAX_SEGMENTS_BEHIND:
        shorter.segments.pop()
        if inspection.format.derived_files(inspection.layout, inspection.spec_text, shorter)[path] == current:
            return True
    return False


def _inspect_files(inspection: Inspection) -> None:
    """Report every file that belongs to no record and to no other part of the store."""
    damaged = {problem.path for problem in inspection.problems}
    expected_paths = {inspection.folder.spec}
    expected_paths |= {inspection.folder.segment(number) for number in numbered(inspection.folder.plan, SEGMENT_DIGITS)}
    records = numbered(inspection.folder.records, RECORD_DIGITS)
    expected_paths |= {inspection.folder.record(shard) for shard in records}
    expected_paths |= {
        path for shard in records for path in inspection.format.paths(inspection.folder, shard, inspection.parts)
    }
    for folder in inspection.format.folders(inspection.folder, inspection.parts):
        expected_paths.add(folder / inspection.format.spec_copy)
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder).as_posix()
            if path in expected_paths or path in damaged or inspection.folder.leases in path.parents:
                continue
            if path.is_dir() and not path.is_symlink():
                continue
            if path.name.startswith(TEMPORARY_PREFIX):
                inspection.note("temporary", f"{relative} was left by a writer", path=path, damage=False)
            elif inspection.format.is_shard(relative):
                inspection.note("orphan", f"{relative} has no commit record", path=path, damage=False)
            else:
                inspection.note("foreign", f"{relative} is not of this store", path=path, damage=False)
