"""Read the tokens of many clips: one copy a row, straight from the mapped shards.

Shapes: B clips, K tokens, D encoder width. The first touch of a row checks its crc32c; from then on a read is a
dictionary look-up and a memcpy. Failed and absent clips are never read: their slots are holes.
Safe after fork (nothing but maps and numbers is shared) and cheap to pickle (a feature is reopened from its place).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import google_crc32c
import numpy as np

from featurecache.errors import CorruptStoreError, MissingFeatureError, StoreNotFoundError, suggest
from featurecache.spec import Spec
from featurecache.store.catalogue import Catalogue, Ids
from featurecache.store.formats import ShardFormat, parts_of
from featurecache.store.layout import LOGICAL_DTYPES, FeatureFolder, numbered
from featurecache.store.mapped import map_file, will_need
from featurecache.store.protocols import ClipRecord, Status
from featurecache.store.records import NEXT_STEP, Record, load_record

RECORD_DIGITS = 8
MAX_CACHED_VIEWS = 1 << 17

Verify = Literal["first-touch", "never"]


class StoredFeature:
    """One feature of a store on disk; implements `Feature`."""

    def __init__(
        self, location: str, folder: FeatureFolder, name: str, form: ShardFormat, spec: Spec, verify: Verify
    ) -> None:
        self.location = location
        self.name = name
        self.spec = spec
        self.fingerprint = spec.fingerprint
        self.shape = spec.shape
        self.dtype = LOGICAL_DTYPES[spec.stored_dtype]
        self.verify = verify
        self._folder = folder
        self._format = form
        self._parts = parts_of(spec)
        self._views: dict[str, np.ndarray] = {}
        self._maps: dict[tuple[int, int], np.ndarray] = {}
        self._catalogue = Catalogue()
        self.refresh()

    def refresh(self) -> None:
        """See the shards committed since the feature was opened.

        Raises:
            CorruptStoreError: a record is damaged.
        """
        for shard in numbered(self._folder.records, RECORD_DIGITS):
            if shard not in self._catalogue:
                self._add(load_record(self._folder.record(shard), shard, self.fingerprint))

    def _add(self, record: Record) -> None:
        part = self._parts[0]
        if record.row_bytes != part.row_bytes:
            raise CorruptStoreError(
                str(self._folder.record(record.shard)),
                expected=f"rows of {part.row_bytes} bytes, which the spec gives",
                got=str(record.row_bytes),
                next_step=NEXT_STEP,
            )
        self._catalogue.add(record)
        self._maps.clear()  # keyed by place, which a record in between would shift
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

    def __contains__(self, clip_id: str) -> bool:
        found = self.record(clip_id)
        return found is not None and found.status is Status.OK

    def __getitem__(self, clip_id: str) -> np.ndarray:
        """(K, D) of one clip, a read-only view of the file.

        Raises:
            MissingFeatureError: the clip has no tokens.
            CorruptStoreError: its bytes contradict its checksum.
        """
        view = self._views.get(clip_id)
        if view is None:
            view = self._touch([clip_id])[0]
        return self._decoded(view)

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
            rows = self._touch(ids)
        copyto = np.copyto
        for place, row in zip(target, rows, strict=True):
            copyto(place, row)
        return target.view(self.dtype) if out is None else out

    def _target(self, count: int, out: np.ndarray | None) -> np.ndarray:
        """(B, K, D) in the dtype of the disk."""
        dtype = self._parts[0].dtype
        if out is None:
            return np.empty((count, *self.shape), dtype)
        bits = self.dtype.kind == "V" and out.dtype in (np.uint16, np.int16)
        if out.shape != (count, *self.shape) or not (bits or out.dtype == self.dtype) or not out.flags.c_contiguous:
            raise ValueError(
                f"out: expected C-contiguous {(count, *self.shape)} of {self.dtype}, got {out.shape} of {out.dtype}"
            )
        return out.view(dtype)

    def _decoded(self, view: np.ndarray) -> np.ndarray:
        return view if view.dtype == self.dtype else view.view(self.dtype)

    def _touch(self, ids: Sequence[str]) -> list[np.ndarray]:
        """Disk views of clips, each checked unless it was before."""
        entries = self._entries(ids)
        if len(self._views) + len(ids) > MAX_CACHED_VIEWS:
            self._views.clear()
        rows = []
        for clip_id, entry in zip(ids, entries, strict=True):
            view = self._views.get(clip_id)
            if view is None:
                view = self._views[clip_id] = self._row(*self._catalogue.locate(entry))
            rows.append(view)
        return rows

    def _entries(self, ids: Sequence[str]) -> list[int]:
        entries = self._catalogue.find(ids)
        records = self._catalogue.records
        missing, reasons = [], []
        for clip_id, entry in zip(ids, entries, strict=True):
            if entry < 0:
                missing.append(clip_id)
                reasons.append(f"{clip_id}: not extracted")
                continue
            place, slot = self._catalogue.locate(entry)
            if records[place].columns["status"][slot] != Status.OK:
                missing.append(clip_id)
                clip = records[place].clip(slot)
                reasons.append(f"{clip_id}: {clip.status.name.lower()}, {clip.reason or 'no reason given'}")
        if missing:
            known = self.ids if len(missing) == 1 and len(self) < 100_000 else ()
            raise MissingFeatureError(
                self.subject,
                expected="tokens of every clip asked for",
                got=f"none for {len(missing)}",
                next_step="Run `fcache extract` for new clips, `fcache retry` for failed ones."
                + suggest(missing[0], known),
                problems=reasons,
                clip_ids=missing,
            )
        return entries

    def _row(self, place: int, slot: int) -> np.ndarray:
        """(K, D) view of one row in the dtype of the disk, its checksum verified unless that is switched off."""
        part = self._parts[0]
        record = self._catalogue.records[place]
        data = self._map(place, 0)
        offsets = self._format.offsets(record, 0)
        begin = slot * part.row_bytes if offsets is None else int(offsets[slot])
        row = data[begin : begin + part.row_bytes]
        if self.verify == "first-touch":
            will_need(row)
            if google_crc32c.value(row) != record.columns["crc32c"][slot]:
                raise CorruptStoreError(
                    f"{self.subject}, clip {record.encoded_id(slot).decode()}",
                    expected="the bytes its record has the checksum of",
                    got=f"others, in shard {record.shard}, slot {slot}",
                    next_step=NEXT_STEP,
                )
        return row.view(part.dtype).reshape(part.shape)

    def _map(self, place: int, part: int) -> np.ndarray:
        data = self._maps.get((place, part))
        if data is None:
            record = self._catalogue.records[place]
            path = self._format.paths(self._folder, record.shard, self._parts)[part]
            data = self._maps[place, part] = map_file(Path(path), record.file_bytes[part], NEXT_STEP)
        return data

    def record(self, clip_id: str) -> ClipRecord | None:
        """What the commit record says of a clip, or None where no shard holds it."""
        entry = self._catalogue.find([clip_id])[0]
        if entry < 0:
            return None
        place, slot = self._catalogue.locate(entry)
        return self._catalogue.records[place].clip(slot)

    def records(self) -> Iterator[ClipRecord]:
        """Every clip's record, in row order."""
        records = self._catalogue.records
        return (records[place].clip(slot) for place, slot in self._catalogue.current())


def feature_not_found(location: str, name: str, names: Sequence[str]) -> StoreNotFoundError:
    """The error for a feature that a store does not have."""
    return StoreNotFoundError(
        f"{location}/{name}",
        expected="one of " + ", ".join(names) if names else "a feature",
        got="no such feature" if names else "an empty store",
        next_step=(suggest(name, names).strip() + " " if suggest(name, names) else "")
        + "Run `fcache extract` to make it.",
    )
