"""Read the tokens of many clips with one copy per row, from mapped shard files.

Shapes: B clips, K tokens, D encoder width. The first read of a row compares its crc32c and goes directly into the
caller's memory, without the map (`shard_files`). Later reads are a dictionary lookup and a memcpy. Rows of failed and
absent clips are never read: their slots are holes.

Safe after a fork, because only maps and numbers are shared. Cheap to pickle: a feature is reopened by its location.
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
from featurecache.store.catalogue import Catalogue, ClipIds
from featurecache.store.copying import empty, row_copier
from featurecache.store.layout import LOGICAL_DTYPES, RECORD_DIGITS, FeatureFolder, numbered
from featurecache.store.protocols import ClipRecord, Status
from featurecache.store.quantize import dequantise
from featurecache.store.records import NEXT_STEP, QUANTISED_COLUMNS, CommitRecord, load_record
from featurecache.store.shard_files import (
    OpenFile,
    RowRead,
    copy_threads,
    map_file,
    open_shard,
    parallel,
    populate,
    read_rows,
)
from featurecache.store.shard_format import ShardFormat, row_parts

MAX_CACHED_VIEWS = 1 << 17
MAX_OPEN_FILES = 64
MEMORY_BYTES = memory_bytes()

Verify = Literal["first-touch", "never"]
ClipArrays = tuple[np.ndarray, ...]
"""The stored arrays of one clip, one per part: tokens, and scales if they are quantised."""


class StoredFeature:
    """One feature of a store on disk; implements `Feature`."""

    def __init__(
        self,
        location: str,
        folder: FeatureFolder,
        name: str,
        shard_format: ShardFormat,
        spec: Spec,
        verify: Verify,
        skipped_shards: Container[int] = (),
    ) -> None:
        """Read all commit records except those of `skipped_shards`, which a repair found damaged."""
        self._skipped_shards = skipped_shards
        self.location = location
        self.name = name
        self.spec = spec
        self.fingerprint = spec.fingerprint
        self.shape = spec.shape
        self.dtype = LOGICAL_DTYPES[spec.stored_dtype]
        self.verify: Verify = verify
        self.parts = row_parts(spec)
        self.folder = folder
        self.format = shard_format
        self._views: dict[str, ClipArrays] = {}
        self._touched: dict[int, bytearray] = {}
        self._files: dict[int, OpenFile] = {}
        self._maps: dict[tuple[int, int], np.ndarray] = {}
        self._num_bytes: int | None = None
        self._catalogue = Catalogue()
        self._load_records()

    def __reduce__(self) -> tuple[object, ...]:
        return StoredFeature, (self.location, self.folder, self.name, self.format, self.spec, self.verify)

    def refresh(self) -> None:
        """Read the commit records that were added since the feature was opened.

        Raises:
            CorruptStoreError: a record is damaged.
        """
        self._load_records()

    def _load_records(self) -> None:
        for shard in numbered(self.folder.records, RECORD_DIGITS):
            if shard not in self._catalogue and shard not in self._skipped_shards:
                self._add(load_record(self.folder.record(shard), shard, self.fingerprint))

    def _add(self, record: CommitRecord) -> None:
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
            del self._maps[key]  # a map of a file that a repair replaced
        self._num_bytes = None
        self._views.clear()  # a retried clip now has another row

    @property
    def subject(self) -> str:
        return f"{self.location}/{self.name}"

    @property
    def ids(self) -> ClipIds:
        """Clips that have tokens, in row order."""
        return ClipIds(self._catalogue, self._catalogue.ok_entries())

    @property
    def counts(self) -> dict[Status, int]:
        """Number of clips per status."""
        return self._catalogue.counts()

    def __len__(self) -> int:
        return self.counts[Status.OK]

    def __contains__(self, clip_id: object) -> bool:
        return isinstance(clip_id, str) and self._catalogue.all_ok(self._catalogue.find([clip_id]))

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """Return the (K, D) tokens of one clip: a read-only view of the file, or a new array if rows are compressed.

        Raises:
            MissingFeatureError: the clip has no tokens.
            CorruptStoreError: the bytes differ from their checksum.
        """
        rows = self._views.get(clip_id) or self._rows([clip_id])[0]
        if len(rows) == 2:
            return dequantise(*rows)
        return rows[0] if rows[0].dtype == self.dtype else rows[0].view(self.dtype)

    def read(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Return the (B, K, D) tokens of these clips, in `out` if given.

        `out` is C-contiguous and has the feature's dtype, or uint16 or int16 for the bits of bfloat16. It may be the
        memory of a pinned tensor.

        Raises:
            MissingFeatureError: some clips have no tokens; all are listed with the reason, and `out` is unchanged.
            CorruptStoreError: bytes differ from their checksum.
            ValueError: `out` has another shape or dtype.
        """
        target = self._target(len(ids), out)
        views = self._views
        try:
            rows = [views[clip_id] for clip_id in ids]
        except KeyError:
            rows = self._rows(ids, target)
        if len(self.parts) == 2:
            parallel(_dequantise_into, list(zip(rows, target, strict=True)), copy_threads(target.nbytes))
        else:
            copy = row_copier(target, self.parts[0].row_bytes)
            # An empty tuple stands for a row that `_rows` has read into its target already.
            pairs = [(row_target, arrays[0]) for arrays, row_target in zip(rows, target, strict=True) if arrays]
            if (threads := copy_threads(target.nbytes)) > 1:
                parallel(copy, pairs, threads)
            else:
                for row_target, row in pairs:
                    copy(row_target, row)
        return target.view(self.dtype) if out is None else out

    def _target(self, count: int, out: np.ndarray | None) -> np.ndarray:
        """Return the array (B, K, D) to fill, in the dtype in which rows are copied."""
        dtype = np.dtype(np.uint16) if self.dtype.kind == "V" else self.dtype
        if out is None:
            return empty((count, *self.shape), dtype)
        fits = out.dtype == self.dtype or (dtype != self.dtype and out.dtype in (np.uint16, np.int16))
        if out.shape != (count, *self.shape) or not fits or not out.flags.c_contiguous:
            raise ValueError(
                f"out: expected C-contiguous {(count, *self.shape)} of {self.dtype}, got {out.shape} of {out.dtype}"
            )
        return out.view(dtype)

    def _rows(self, ids: Sequence[str], target: np.ndarray | None = None) -> list[ClipArrays]:
        """Return the checked stored arrays per clip; an empty tuple if the clip was read into `target` (B, K, D)."""
        locations = self._catalogue.locate_all(self._entries(ids))
        if len(self._views) + len(ids) > MAX_CACHED_VIEWS:
            self._views.clear()
        rows: list[ClipArrays] = []
        row_reads: list[RowRead] = []
        for number, (clip_id, (index, slot)) in enumerate(zip(ids, locations, strict=True)):
            if target is not None and self._reads_direct(index, slot):
                row_reads.append(self._row_read(index, slot, target[number]))
                rows.append(())
                continue
            disk = [self._row(index, slot, part) for part in range(len(self.parts))]
            for row in disk:
                if row.base is not None:  # a view of the map, not a decompressed row
                    populate(row)
            self._check(index, slot, disk)
            typed = tuple(row.view(part.dtype).reshape(part.shape) for row, part in zip(disk, self.parts, strict=True))
            rows.append(typed)
            if self._fits_memory() and all(row.base is not None for row in disk):
                self._views[clip_id] = typed
        if row_reads:
            read_rows(row_reads)
        return rows

    def _reads_direct(self, index: int, slot: int) -> bool:
        """Return whether a row is read without the map: at its first read, or if the store exceeds the memory."""
        record = self._catalogue.records[index]
        if len(self.parts) > 1 or self.format.begin(record, slot, self.parts[0]) is None:
            return False
        return not (self._touched_rows(record)[slot] and self._fits_memory())

    def _row_read(self, index: int, slot: int, target: np.ndarray) -> RowRead:
        """Return the read of a row into its target, which compares the checksum at the first read."""
        record, part = self._catalogue.records[index], self.parts[0]
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
                row.flags.writeable = False  # the checksum library copies writable arrays first
                self._check(index, slot, [row])

        return RowRead(self._file(record), begin, target.reshape(-1).view(np.uint8), done)

    def _file(self, record: CommitRecord) -> OpenFile:
        file = self._files.get(record.shard)
        if file is None:
            if len(self._files) >= MAX_OPEN_FILES:
                self._files.clear()
            number = self.format.file_of(0)
            path = self.format.paths(self.folder, record.shard, self.parts)[number]
            file = self._files[record.shard] = self._open_shard(path, record.file_bytes[number])
        return file

    def _touched_rows(self, record: CommitRecord) -> bytearray:
        """Return one byte per slot: 1 after the first read of a row, when its checksum was compared."""
        touched = self._touched.get(record.shard)
        if touched is None:
            touched = self._touched[record.shard] = bytearray(len(record))
        return touched

    def _entries(self, ids: Sequence[str]) -> list[int]:
        """Return the catalogue entries of clips; MissingFeatureError if some have no tokens."""
        entries = self._catalogue.find(ids)
        if self._catalogue.all_ok(entries):
            return entries
        records = self._catalogue.records
        missing: dict[str, str] = {}
        for clip_id, entry, (index, slot) in zip(ids, entries, self._catalogue.locate_all(entries), strict=True):
            if entry < 0:
                missing[clip_id] = "not extracted"
            elif records[index].columns["status"][slot] != Status.OK:
                clip = records[index].clip(slot)
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
        """Return the clips that have tokens in shards committed since the feature was opened.

        The feature does not start to use these shards: its contents do not change during a training.
        """
        later = Catalogue()
        for shard in self._shards_now():
            if shard not in self._catalogue and shard not in self._skipped_shards:
                with contextlib.suppress(CorruptStoreError, OSError):  # reported when the store is opened next
                    later.add(load_record(self.folder.record(shard), shard, self.fingerprint))
        return [clip_id for clip_id, status in zip(ids, later.statuses(ids), strict=True) if status == Status.OK]

    def _shards_now(self) -> list[int]:
        """Return the numbers of the shards that have a commit record now."""
        return numbered(self.folder.records, RECORD_DIGITS)

    def _row(self, index: int, slot: int, part: int) -> np.ndarray:
        """Return (row_bytes,) uint8 of a row, not checked: a view, whose base is the map, or a decompressed row."""
        record = self._catalogue.records[index]
        file = self.format.file_of(part)
        data = self._maps.get((record.shard, file))
        if data is None:
            path = self.format.paths(self.folder, record.shard, self.parts)[file]
            data = self._maps[record.shard, file] = map_file(self._open_shard(path, record.file_bytes[file]))
        return self.format.row(data, record, slot, self.parts[part])

    def _fits_memory(self) -> bool:
        """Return whether the feature is small enough to stay in the page cache."""
        if self._num_bytes is None:
            self._num_bytes = sum(sum(record.file_bytes) for record in self._catalogue.records)
        return self._num_bytes <= MEMORY_BYTES // 2

    def _open_shard(self, path: Path, num_bytes: int) -> OpenFile:
        """Open a shard file of that size; remote stores fetch it first."""
        return open_shard(path, num_bytes, NEXT_STEP)

    def _check(self, index: int, slot: int, disk: Sequence[np.ndarray]) -> None:
        """Compare the checksums of a row at its first read; of a decompressed row, at every read."""
        record = self._catalogue.records[index]
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
        """Return the stored arrays of a clip, one per part, and its recorded absmax and measured errors.

        Raises:
            MissingFeatureError: the clip has no tokens.
            CorruptStoreError: the bytes differ from their checksum.
        """
        return self.rows_at(*self._catalogue.locate(self._entries([clip_id])[0]))

    def rows_at(self, index: int, slot: int) -> tuple[list[np.ndarray], dict[str, float]]:
        """Like `disk_rows`, for any slot of the record with this index in `committed`, superseded or not."""
        record = self._catalogue.records[index]
        disk = [self._row(index, slot, part) for part in range(len(self.parts))]
        self._check(index, slot, disk)
        rows = [row.view(part.dtype).reshape(part.shape) for row, part in zip(disk, self.parts, strict=True)]
        names = ("absmax", *(name for name in QUANTISED_COLUMNS[1:] if name in record.columns))
        return rows, {name: float(record.columns[name][slot]) for name in names}

    @property
    def committed(self) -> list[CommitRecord]:
        """All commit records in the order of shard numbers."""
        return self._catalogue.records

    def ok_slots(self) -> list[np.ndarray]:
        """Return per record of `committed` the slots with tokens that no retry supersedes."""
        return self._catalogue.ok_slots()

    def record(self, clip_id: str) -> ClipRecord | None:
        """Return the record of a clip, or None if no shard holds the clip."""
        entry = self._catalogue.find([clip_id])[0]
        if entry < 0:
            return None
        index, slot = self._catalogue.locate(entry)
        return self._catalogue.records[index].clip(slot)

    def statuses(self, ids: Sequence[str]) -> np.ndarray:
        """Return (ids,) int8: the `Status` of each clip, -1 if no shard holds it."""
        return self._catalogue.statuses(ids)

    def records(self) -> Iterator[ClipRecord]:
        """Iterate over the records of all clips in row order."""
        records = self._catalogue.records
        return (records[index].clip(slot) for index, slot in self._catalogue.current())


def _dequantise_into(row: ClipArrays, target: np.ndarray) -> None:
    q, scales = row
    dequantise(q, scales, out=target)


def feature_not_found(location: str, name: str, names: Sequence[str]) -> StoreNotFoundError:
    """Return the error for a feature that a store does not have."""
    near = suggest(name, names).strip()
    return StoreNotFoundError(
        f"{location}/{name}",
        expected="one of " + ", ".join(names) if names else "a feature",
        got="no such feature" if names else "an empty store",
        next_step=(near + " " if near else "") + "Run `fcache extract` to make it.",
    )
