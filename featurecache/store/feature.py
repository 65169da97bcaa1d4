"""Read the tokens of many clips: one copy a row, straight from the mapped shards.

Shapes: B clips, K tokens, D encoder width. The first touch of a row checks its crc32c; from then on a read is a
dictionary look-up and a memcpy. The first read of a row goes past the map, straight into the caller's memory, by
several threads where the page cache does not have it (see `direct`). Failed and absent clips are never read: their
slots are holes.
Safe after fork (nothing but maps and numbers is shared) and cheap to pickle (a feature is reopened from its place).
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Literal

import google_crc32c
import numpy as np

from featurecache.errors import CorruptStoreError, MissingFeatureError, StoreNotFoundError, suggest
from featurecache.machine import memory_bytes
from featurecache.spec import Spec
from featurecache.store.catalogue import Catalogue, Ids
from featurecache.store.copying import empty, row_copier
from featurecache.store.direct import OpenFile, Row, copy_threads, open_shard, parallel, read_rows
from featurecache.store.formats import ShardFormat, parts_of
from featurecache.store.layout import LOGICAL_DTYPES, RECORD_DIGITS, FeatureFolder, numbered
from featurecache.store.mapped import map_file, populate
from featurecache.store.protocols import ClipRecord, Status
from featurecache.store.quantize import dequantise
from featurecache.store.records import NEXT_STEP, QUANTISED_COLUMNS, Record, load_record

MAX_CACHED_VIEWS = 1 << 17
MAX_OPEN_FILES = 64
MEMORY_BYTES = memory_bytes()

Verify = Literal["first-touch", "never"]
Rows = tuple[np.ndarray, ...]
"""Disk arrays of one clip, one a part: tokens, and scales where they are quantised."""


class StoredFeature:
    """One feature of a store on disk; implements `Feature`."""

    def __init__(
        self,
        location: str,
        folder: FeatureFolder,
        name: str,
        form: ShardFormat,
        spec: Spec,
        verify: Verify,
        unread: Container[int] = (),
    ) -> None:
        """Read all commit records but those of the shards `unread`, whose records a repair found damaged."""
        self._unread = unread
        self.location = location
        self.name = name
        self.spec = spec
        self.fingerprint = spec.fingerprint
        self.shape = spec.shape
        self.dtype = LOGICAL_DTYPES[spec.stored_dtype]
        self.verify: Verify = verify
        self.parts = parts_of(spec)
        self.folder = folder
        self.format = form
        self._views: dict[str, Rows] = {}
        self._touched: dict[int, bytearray] = {}
        self._files: dict[int, OpenFile] = {}
        self._maps: dict[tuple[int, int], np.ndarray] = {}
        self._num_bytes: int | None = None
        self._catalogue = Catalogue()
        self._load_records()

    def __reduce__(self) -> tuple[object, ...]:
        return StoredFeature, (self.location, self.folder, self.name, self.format, self.spec, self.verify)

    def refresh(self) -> None:
        """See the shards committed since the feature was opened.

        Raises:
            CorruptStoreError: a record is damaged.
        """
        self._load_records()

    def _load_records(self) -> None:
        for shard in numbered(self.folder.records, RECORD_DIGITS):
            if shard not in self._catalogue and shard not in self._unread:
                self._add(load_record(self.folder.record(shard), shard, self.fingerprint))

    def _add(self, record: Record) -> None:
        quantised = len(self.parts) == 2
        unmeasured = quantised and any(name not in record.columns for name in QUANTISED_COLUMNS)
        if record.row_bytes != self.parts[0].row_bytes or unmeasured:
            raise CorruptStoreError(
                str(self.folder.record(record.shard)),
                expected=f"rows of {self.parts[0].row_bytes} bytes"
                + (" and their measured error" if quantised else ""),
                got=f"{record.row_bytes} bytes" + (" and none" if unmeasured else ""),
                next_step=NEXT_STEP,
            )
        self._catalogue.add(record)
        self._touched.pop(record.shard, None)
        self._files.pop(record.shard, None)
        for key in [key for key in self._maps if key[0] == record.shard]:
            del self._maps[key]  # of the file that a repair replaced
        self._num_bytes = None
        self._views.clear()  # a retried clip lies elsewhere now

    @property
    def subject(self) -> str:
        return f"{self.location}/{self.name}"

    @property
    def ids(self) -> Ids:
        """Clips that have tokens, in row order."""
        return Ids(self._catalogue, self._catalogue.ok_entries())

    @property
    def counts(self) -> dict[Status, int]:
        """Clips by status."""
        return self._catalogue.counts()

    def __len__(self) -> int:
        return self.counts[Status.OK]

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and self._catalogue.all_ok(self._catalogue.find([clip_id]))

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """(K, D) of one clip: a read-only view of the file, or what was unpacked where the rows are packed.

        Raises:
            MissingFeatureError: the clip has no tokens.
            CorruptStoreError: its bytes contradict its checksum.
        """
        rows = self._views.get(clip_id) or self._rows([clip_id])[0]
        if len(rows) == 2:
            return dequantise(*rows)
        return rows[0] if rows[0].dtype == self.dtype else rows[0].view(self.dtype)

    def read(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """(B, K, D) of these clips, into `out` where given.

        `out` is C-contiguous and has the feature's dtype (for bfloat16 also uint16 or int16, its bits), so that it may
        be the memory of a pinned tensor.

        Raises:
            MissingFeatureError: lists every clip without tokens, with the reason; `out` is untouched.
            CorruptStoreError: bytes contradict their checksum.
            ValueError: `out` has another shape or dtype.
        """
        target = self._target(len(ids), out)
        views = self._views
        try:
            rows = [views[clip_id] for clip_id in ids]
        except KeyError:
            rows = self._rows(ids, target)
        if len(self.parts) == 2:
            parallel(_restore, list(zip(rows, target, strict=True)), copy_threads(target.nbytes))
        else:
            copy = row_copier(target, self.parts[0].row_bytes)
            waiting = [
                (place, row[0]) for row, place in zip(rows, target, strict=True) if row
            ]  # others were read there
            if (threads := copy_threads(target.nbytes)) > 1:
                parallel(copy, waiting, threads)
            else:
                for place, row in waiting:
                    copy(place, row)
        return target.view(self.dtype) if out is None else out

    def _target(self, count: int, out: np.ndarray | None) -> np.ndarray:
        """(B, K, D) in the dtype that rows are copied as."""
        dtype = np.dtype(np.uint16) if self.dtype.kind == "V" else self.dtype
        if out is None:
            return empty((count, *self.shape), dtype)
        fits = out.dtype == self.dtype or (dtype != self.dtype and out.dtype in (np.uint16, np.int16))
        if out.shape != (count, *self.shape) or not fits or not out.flags.c_contiguous:
            raise ValueError(
                f"out: expected C-contiguous {(count, *self.shape)} of {self.dtype}, got {out.shape} of {out.dtype}"
            )
        return out.view(dtype)

    def _rows(self, ids: Sequence[str], target: np.ndarray | None = None) -> list[Rows]:
        """Disk arrays of clips, checked; empty for those that were read to their place in `target` (B, K, D)."""
        places = self._catalogue.locate_all(self._entries(ids))
        if len(self._views) + len(ids) > MAX_CACHED_VIEWS:
            self._views.clear()
        rows: list[Rows] = []
        direct: list[Row] = []
        for number, (clip_id, (place, slot)) in enumerate(zip(ids, places, strict=True)):
            if target is not None and self._reads_direct(place, slot):
                direct.append(self._direct(place, slot, target[number]))
                rows.append(())
                continue
            disk = [self._row(place, slot, part) for part in range(len(self.parts))]
            for row in disk:
                if row.base is not None:
                    populate(row)
            self._check(place, slot, disk)
            typed = tuple(row.view(part.dtype).reshape(part.shape) for row, part in zip(disk, self.parts, strict=True))
            rows.append(typed)
            if self._fits_memory() and all(row.base is not None for row in disk):
                self._views[clip_id] = typed
        if direct:
            read_rows(direct)
        return rows

    def _reads_direct(self, place: int, slot: int) -> bool:
        """Whether a row is best read past the map: it was not touched before, or will not stay in memory anyway."""
        record = self._catalogue.records[place]
        if len(self.parts) > 1 or self.format.begin(record, slot, self.parts[0]) is None:
            return False
        return not (self._touched_rows(record)[slot] and self._fits_memory())

    def _direct(self, place: int, slot: int, target: np.ndarray) -> Row:
        record, part = self._catalogue.records[place], self.parts[0]
        touched = self._touched_rows(record)
        begin = self.format.begin(record, slot, part)
        if begin is None or begin + part.row_bytes > record.file_bytes[self.format.file_of(0)]:
            raise CorruptStoreError(
                f"{self.subject}, shard {record.shard}, slot {slot}",
                expected="a row inside its file",
                got=f"{part.row_bytes} bytes at {begin}",
                next_step=NEXT_STEP,
            )

        def done(row: np.ndarray) -> None:
            if not touched[slot]:
                row.flags.writeable = False  # the checksum library copies what may change
                self._check(place, slot, [row])

        return Row(self._file(record), begin, target.reshape(-1).view(np.uint8), done)

    def _file(self, record: Record) -> OpenFile:
        file = self._files.get(record.shard)
        if file is None:
            if len(self._files) >= MAX_OPEN_FILES:
                self._files.clear()
            number = self.format.file_of(0)
            path = self.format.paths(self.folder, record.shard, self.parts)[number]
            file = self._files[record.shard] = self._open_shard(path, record.file_bytes[number])
        return file

    def _touched_rows(self, record: Record) -> bytearray:
        """A byte a slot: 1 once its checksum was compared, or its first read done where that is switched off."""
        touched = self._touched.get(record.shard)
        if touched is None:
            touched = self._touched[record.shard] = bytearray(len(record))
        return touched

    def _entries(self, ids: Sequence[str]) -> list[int]:
        entries = self._catalogue.find(ids)
        if self._catalogue.all_ok(entries):
            return entries
        records = self._catalogue.records
        missing: dict[str, str] = {}
        for clip_id, entry, (place, slot) in zip(ids, entries, self._catalogue.locate_all(entries), strict=True):
            if entry < 0:
                missing[clip_id] = "not extracted"
            elif records[place].columns["status"][slot] != Status.OK:
                clip = records[place].clip(slot)
                missing[clip_id] = f"{clip.status.name.lower()}, {clip.reason or 'no reason given'}"
        later = self._committed_later(list(missing))
        missing |= dict.fromkeys(later, "committed since this store was opened")
        steps = ["Open the store again for what was committed since (or call `refresh()`)."] if later else []
        if len(later) < len(missing):
            steps.append("Run `fcache extract` for new clips, `fcache retry` for failed ones.")
        known = self.ids if len(missing) == 1 and not later else ()
        raise MissingFeatureError(
            self.subject,
            expected="tokens of every clip asked for",
            got=f"none for {len(missing)}"
            + (f", of which {len(later)} committed since it was opened" if later else ""),
            next_step=" ".join(steps) + suggest(next(iter(missing)), known),
            problems=[f"{clip_id}: {reason}" for clip_id, reason in missing.items()],
            clip_ids=list(missing),
        )

    def _committed_later(self, ids: Sequence[str]) -> list[str]:
        """Those of some clips that have tokens in shards committed since the feature was opened.

        The feature itself stays as it was opened: what is read does not change under a running training.
        """
        later = Catalogue()
        for shard in self._shards_now():
            if shard not in self._catalogue and shard not in self._unread:
                with contextlib.suppress(CorruptStoreError, OSError):  # the next opening says so
                    later.add(load_record(self.folder.record(shard), shard, self.fingerprint))
        return [clip_id for clip_id, status in zip(ids, later.statuses(ids), strict=True) if status == Status.OK]

    def _shards_now(self) -> list[int]:
        """Numbers of the shards that have a commit record now."""
        return numbered(self.folder.records, RECORD_DIGITS)

    def _row(self, place: int, slot: int, part: int) -> np.ndarray:
        """(row_bytes,) uint8 of one row, unchecked: a view (its base is the map) or what was unpacked."""
        record = self._catalogue.records[place]
        file = self.format.file_of(part)
        data = self._maps.get((record.shard, file))
        if data is None:
            path = self.format.paths(self.folder, record.shard, self.parts)[file]
            data = self._maps[record.shard, file] = map_file(self._open_shard(path, record.file_bytes[file]))
        return self.format.row(data, record, slot, self.parts[part])

    def _fits_memory(self) -> bool:
        """Whether rows read once are likely to stay in the page cache; otherwise each read asks anew."""
        if self._num_bytes is None:
            self._num_bytes = sum(sum(record.file_bytes) for record in self._catalogue.records)
        return self._num_bytes <= MEMORY_BYTES // 2

    def _open_shard(self, path: Path, num_bytes: int) -> OpenFile:
        """Open a shard file of that size; stores that are elsewhere fetch it first."""
        return open_shard(path, num_bytes, NEXT_STEP)

    def _check(self, place: int, slot: int, disk: Sequence[np.ndarray]) -> None:
        """Compare checksums, once a row; what had to be unpacked is checked each time."""
        record = self._catalogue.records[place]
        touched = self._touched_rows(record)
        if self.verify == "first-touch" and not (touched[slot] and disk[0].base is not None):
            for row, part in zip(disk, self.parts, strict=True):
                if google_crc32c.value(row) != record.columns[part.column("crc32c")][slot]:
                    raise CorruptStoreError(
                        f"{self.subject}, clip {record.encoded_id(slot).decode()}",
                        expected="the bytes its record has the checksum of",
                        got=f"others, in shard {record.shard}, slot {slot}",
                        next_step=NEXT_STEP,
                    )
        touched[slot] = 1

    def disk_rows(self, clip_id: str) -> tuple[list[np.ndarray], dict[str, float]]:
        """One clip as it lies on disk, an array for each part; and its absmax and measured errors as recorded.

        Raises:
            MissingFeatureError: the clip has no tokens.
            CorruptStoreError: its bytes contradict its checksum.
        """
        return self.rows_at(*self._catalogue.locate(self._entries([clip_id])[0]))

    def rows_at(self, place: int, slot: int) -> tuple[list[np.ndarray], dict[str, float]]:
        """Like `disk_rows`, of a slot of the record at `place`, superseded or not."""
        record = self._catalogue.records[place]
        disk = [self._row(place, slot, part) for part in range(len(self.parts))]
        self._check(place, slot, disk)
        rows = [row.view(part.dtype).reshape(part.shape) for row, part in zip(disk, self.parts, strict=True)]
        names = ("absmax", *(name for name in QUANTISED_COLUMNS[1:] if name in record.columns))
        return rows, {name: float(record.columns[name][slot]) for name in names}

    @property
    def committed(self) -> list[Record]:
        """Every commit record, by shard."""
        return self._catalogue.records

    def ok_slots(self) -> list[np.ndarray]:
        """For every record of `committed`, its slots that have tokens and are not superseded by a retry."""
        return self._catalogue.ok_slots()

    def record(self, clip_id: str) -> ClipRecord | None:
        """What the commit record says of a clip, or None where no shard holds it."""
        entry = self._catalogue.find([clip_id])[0]
        if entry < 0:
            return None
        place, slot = self._catalogue.locate(entry)
        return self._catalogue.records[place].clip(slot)

    def statuses(self, ids: Sequence[str]) -> np.ndarray:
        """(ids,) int8: the `Status` of each clip, -1 where no shard holds it."""
        return self._catalogue.statuses(ids)

    def records(self) -> Iterator[ClipRecord]:
        """Every clip's record, in row order."""
        records = self._catalogue.records
        return (records[place].clip(slot) for place, slot in self._catalogue.current())


def _restore(row: Rows, place: np.ndarray) -> None:
    dequantise(*row, out=place)


def feature_not_found(location: str, name: str, names: Sequence[str]) -> StoreNotFoundError:
    """The error for a feature that a store does not have."""
    near = suggest(name, names).strip()
    return StoreNotFoundError(
        f"{location}/{name}",
        expected="one of " + ", ".join(names) if names else "a feature",
        got="no such feature" if names else "an empty store",
        next_step=(near + " " if near else "") + "Run `fcache extract` to make it.",
    )
