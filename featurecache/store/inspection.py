"""Look at a feature as it lies on disk, damaged or not: every file read on its own, every problem named.

A problem is damage (the store contradicts itself; `fcache repair` mends it) or a notice (unfinished work, leftovers).
Reading stops at the first damage it meets; this module never does. It changes nothing.
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
from featurecache.store.direct import open_shard
from featurecache.store.formats import Geometry, Part, ShardFormat, parts_of
from featurecache.store.layout import RECORD_DIGITS, SEGMENT_DIGITS, FeatureFolder, default_shard_rows, numbered
from featurecache.store.mapped import map_file
from featurecache.store.plan import Plan, Segment, load_segment
from featurecache.store.protocols import Status
from featurecache.store.records import MAGIC as RECORD_MAGIC
from featurecache.store.records import MAX_RECORD_BYTES, NEXT_STEP, QUANTISED_COLUMNS, Record, load_record

MAX_SEGMENTS_BEHIND = 8


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be."""

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
    """What of a feature can be read, and the problems met on the way."""

    name: str
    folder: FeatureFolder
    form: ShardFormat
    spec: Spec | None = None
    spec_text: bytes = b""
    segments: dict[int, Segment] = field(default_factory=dict)
    records: dict[int, Record] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def parts(self) -> tuple[Part, ...]:
        return parts_of(self.spec) if self.spec else ()

    @property
    def geometry(self) -> Geometry:
        assert self.spec is not None
        stated = next(iter([*self.segments.values(), *self.records.values()]), None)
        rows = stated.shard_rows if stated else default_shard_rows(self.parts[0].row_bytes)
        return Geometry(self.folder, self.name, self.spec, self.parts, rows, stated.codec if stated else "none")

    def note(self, kind: str, message: str, **place: object) -> None:
        self.problems.append(Problem(kind, self.name, message, **place))  # type: ignore[arg-type]

    def planned(self) -> dict[int, tuple[Segment, int, int]]:
        """Planned shards that hold clips: segment, first clip, last clip + 1."""
        return {
            number: (segment, begin, end)
            for segment in self.segments.values()
            for number, begin, end in segment.shards()
            if end > begin
        }


def inspect_feature(folder: FeatureFolder, name: str, form: ShardFormat) -> Inspection:
    """Read spec, plan and records of one feature, and check them against each other and the list of files."""
    found = Inspection(name, folder, form)
    _inspect_spec(found)
    if found.spec is None:
        return found
    _inspect_plan(found)
    _inspect_records(found)
    _inspect_derived(found)
    _inspect_files(found)
    return found


def inspect_shard(found: Inspection, shard: int, *, quick: bool = False) -> Iterator[Problem]:
    """Check the files of one committed shard: sizes and index, and every row's bytes unless `quick`."""
    record = found.records[shard]
    paths = found.form.paths(found.folder, shard, found.parts)
    for number, path in enumerate(paths):
        try:
            data = map_file(open_shard(path, record.file_bytes[number], NEXT_STEP))
        except (CorruptStoreError, OSError) as error:
            got = error.got if isinstance(error, CorruptStoreError) else str(error)
            message = f"expected {record.file_bytes[number]} bytes, got {got}"
            yield Problem("shard", found.name, message, shard, path=path)
            continue
        for message in found.form.file_problems(data, record, found.geometry, number, quick):
            yield Problem("index", found.name, message, shard, path=path)
        for part_number, part in enumerate(() if quick else found.parts):
            if found.form.file_of(part_number) == number:
                yield from _row_problems(found, record, data, part, path)


def _row_problems(found: Inspection, record: Record, data: np.ndarray, part: Part, path: Path) -> Iterator[Problem]:
    expected = record.columns[part.column("crc32c")]
    for slot in np.flatnonzero(record.columns["status"] == Status.OK).tolist():
        clip_id = record.encoded_id(slot).decode("utf-8", "replace")
        try:
            row = found.form.row(data, record, slot, part)
        except CorruptStoreError as error:
            yield Problem("row", found.name, _contradiction(error), record.shard, clip_id, path)
            continue
        if google_crc32c.value(row) != expected[slot]:
            yield Problem("row", found.name, "bytes contradict their checksum", record.shard, clip_id, path)
        elif not _finite(row, part, found):
            yield Problem("row", found.name, "NaN or infinity among the tokens", record.shard, clip_id, path)
        elif not part.name and not row.any():
            yield Problem("zero", found.name, "every token is zero", record.shard, clip_id, path, damage=False)
        elif not part.name and _all_equal(row, part):
            message = f"its {part.shape[0]} tokens are all equal"
            yield Problem("equal", found.name, message, record.shard, clip_id, path, damage=False)


def _contradiction(error: Exception) -> str:
    """What a file says that it should not, without its place and the next step."""
    return f"expected {error.expected}, got {error.got}" if isinstance(error, CorruptStoreError) else str(error)


def _all_equal(row: np.ndarray, part: Part) -> bool:
    """Whether a row holds one token K times; False for K = 1. Of quantised rows, the scales are not looked at."""
    tokens = row.view(np.uint8).reshape(part.shape[0], -1)
    if len(tokens) == 1 or not np.array_equal(tokens[0], tokens[-1]):  # the second test spares almost all rows the rest
        return False
    return bool((tokens == tokens[0]).all())


def _finite(row: np.ndarray, part: Part, found: Inspection) -> bool:
    if part.dtype.kind == "f":
        return bool(np.isfinite(row.view(part.dtype)).all())
    if found.spec is not None and found.spec.stored_dtype == "bfloat16":
        return bool(((row.view(np.uint16) & 0x7FFF) < 0x7F80).all())
    return True


def _inspect_spec(found: Inspection) -> None:
    path = found.folder.spec
    if not path.exists() and not found.folder.plan.exists() and not found.folder.records.exists():
        found.note("empty", "its creation was interrupted; extraction goes on with it", path=path, damage=False)
        return
    try:
        text = path.read_bytes()
        spec = Spec.from_json(text.decode("utf-8"), str(path))
        parts_of(spec)
    except (OSError, SpecError, UnicodeDecodeError) as error:
        found.note("spec", f"spec.json cannot be read ({error})", path=path)
        return
    kept = spec_kept_in_array(found)
    if kept is not None and kept != text:
        fingerprint = Spec.from_json(kept.decode("ascii"), str(path)).fingerprint
        if fingerprint in (spec.fingerprint, _fingerprint_of_records(found)):  # otherwise the copy is the wrong one
            found.note("spec", "spec.json is not the spec that the array's attributes keep", path=path)
    found.spec, found.spec_text = spec, text


def spec_kept_in_array(found: Inspection) -> bytes | None:
    """The text of spec.json as kept in the derived file, where that copy agrees with its own checksum."""
    try:
        ours = json.loads((found.folder.root / found.form.spec_copy).read_bytes())["attributes"]["featurecache"]
        text = json.dumps(ours["spec"], sort_keys=True, indent=2, ensure_ascii=True).encode("ascii") + b"\n"
        Spec.from_json(text.decode("ascii"))
        return text if google_crc32c.value(text) == ours["spec_crc32c"] else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SpecError):
        return None


def _fingerprint_of_records(found: Inspection) -> str:
    """What the first readable record says that it was made by."""
    for shard in numbered(found.folder.records, RECORD_DIGITS):
        try:
            header, _ = columns.read(found.folder.record(shard), RECORD_MAGIC, MAX_RECORD_BYTES, NEXT_STEP)
        except (CorruptStoreError, OSError):
            continue
        return str(header.get("fingerprint"))
    return ""


def _inspect_plan(found: Inspection) -> None:
    numbers = numbered(found.folder.plan, SEGMENT_DIGITS)
    end = 0
    for number in range(numbers[-1] + 1 if numbers else 0):
        path = found.folder.segment(number)
        try:
            segment = load_segment(path, number)
        except (CorruptStoreError, OSError) as error:
            found.note("plan", f"plan segment {number}: {_contradiction(error)}", path=path)
            continue
        if segment.first_shard < end:
            found.note("plan", f"segment {number} overlaps the one before", path=path)
            continue
        found.segments[number] = segment
        end = segment.end_shard


def _inspect_records(found: Inspection) -> None:
    assert found.spec is not None
    planned = found.planned()
    whole_plan = not any(problem.kind == "plan" for problem in found.problems)
    numbers = numbered(found.folder.records, RECORD_DIGITS)
    end = max((segment.end_shard for segment in found.segments.values()), default=0)
    if whole_plan and numbers and numbers[-1] >= end:
        number = len(found.segments)
        found.note("plan", f"segment {number} is missing", path=found.folder.segment(number))
        whole_plan = False
    for shard in numbers:
        path = found.folder.record(shard)
        try:
            record = load_record(path, shard, found.spec.fingerprint)
        except (CorruptStoreError, OSError) as error:
            found.note("record", f"commit record: {_contradiction(error)}", shard=shard, path=path)
            continue
        message = _record_problem(found, record, planned.get(shard), whole_plan)
        if message:
            found.note("record", message, shard=shard, path=path)
        else:
            found.records[shard] = record
    pending = sorted(set(planned) - set(numbers))
    last_held: dict[bytes, int] = {}  # by clip, the last shard that holds it
    if pending and len(found.segments) > 1:  # within one segment a clip is planned once
        for shard, record in sorted(found.records.items()):
            last_held.update(dict.fromkeys(record.encoded_ids(), shard))
    for shard in pending:
        segment, begin, end = planned[shard]
        count = sum(last_held.get(encoded, -1) < shard for encoded in segment.encoded_ids(begin, end))
        found.note("pending", f"{count} planned clips are not extracted", shard=shard, damage=False)


def _record_problem(
    found: Inspection, record: Record, planned: tuple[Segment, int, int] | None, whole_plan: bool
) -> str:
    files = found.form.paths(found.folder, record.shard, found.parts)
    if record.row_bytes != found.parts[0].row_bytes or len(record.file_bytes) != len(files):
        return "the record's rows are not those of the spec"
    needed = [*found.form.columns(found.geometry), *(QUANTISED_COLUMNS if len(found.parts) == 2 else ())]
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


def _inspect_derived(found: Inspection) -> None:
    if any(problem.kind in ("plan", "spec") for problem in found.problems):
        return  # what they should hold is not known before those are mended
    plan = Plan(found.folder)
    for path, data in found.form.derived_files(found.geometry, found.spec_text, plan).items():
        there = path.read_bytes() if path.is_file() else b""
        if there == data or (not found.segments and there):
            continue
        if _is_older(found, path, there, plan):
            found.note("stale", f"{path.name} is of a shorter plan; extraction rewrites it", path=path, damage=False)
        else:
            found.note("derived", f"{path.name} is not what spec and plan give", path=path)


def _is_older(found: Inspection, path: Path, there: bytes, plan: Plan) -> bool:
    """Whether a derived file is what it was before the plan last grew: the grower was killed in between."""
    if not there:
        return not found.records
    shorter = Plan(found.folder)
    while shorter.segments and len(plan.segments) - len(shorter.segments) < MAX_SEGMENTS_BEHIND:
        shorter.segments.pop()
        if found.form.derived_files(found.geometry, found.spec_text, shorter)[path] == there:
            return True
    return False


def _inspect_files(found: Inspection) -> None:
    """Name every file that no record and no rule accounts for."""
    damaged = {problem.path for problem in found.problems}
    known = {found.folder.spec}
    known |= {found.folder.segment(number) for number in numbered(found.folder.plan, SEGMENT_DIGITS)}
    records = numbered(found.folder.records, RECORD_DIGITS)
    known |= {found.folder.record(shard) for shard in records}
    known |= {path for shard in records for path in found.form.paths(found.folder, shard, found.parts)}
    for folder in found.form.folders(found.folder, found.parts):
        known.add(folder / found.form.spec_copy)
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder).as_posix()
            if path in known or path in damaged or found.folder.leases in path.parents:
                continue
            if path.is_dir() and not path.is_symlink():
                continue
            if path.name.startswith(TEMPORARY_PREFIX):
                found.note("temporary", f"{relative} was left by a writer", path=path, damage=False)
            elif found.form.is_shard(relative):
                found.note("orphan", f"{relative} has no commit record", path=path, damage=False)
            else:
                found.note("foreign", f"{relative} is not of this store", path=path, damage=False)
