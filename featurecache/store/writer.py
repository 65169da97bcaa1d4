"""Write tokens: assign clips to shards, fill a shard slot by slot, commit the shard as a whole.

A commit publishes the files of a shard first and its commit record last; until then no reader sees the shard. If two
processes write the same shard, the second finds the record and changes nothing. Tokens are (K, D) in float32 or the
stored dtype; NaN and infinity are refused.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np

from featurecache.errors import SpecError, StoreError, WriteError
from featurecache.files.lease import LEASE_S, Lease
from featurecache.files.publish import lock_now, make_folder, publish_bytes, replace_bytes, sweep, writing
from featurecache.spec import Spec
from featurecache.store.feature import StoredFeature, Verify
from featurecache.store.layout import (
    MAX_ROW_BYTES,
    MAX_SHARD_ROWS,
    RECORD_DIGITS,
    FeatureFolder,
    default_shard_rows,
    encode_ids,
    numbered,
)
from featurecache.store.plan import PlanSegment, ShardPlan, make_segment, publish_segment
from featurecache.store.protocols import Shard, Status
from featurecache.store.quantize import encode_tokens
from featurecache.store.records import QUANTISED_COLUMNS, RecordBuilder, load_record
from featurecache.store.shard_format import FeatureLayout, ShardFormat

COMMIT_PATIENCE_S = 30.0
SUPERSEDED_REASON = "a later shard holds it: an extraction was stopped in the midst of this one"


class StoredFeatureWriter(StoredFeature):
    """A feature open for extraction; implements `FeatureWriter`."""

    def __init__(
        self,
        location: str,
        folder: FeatureFolder,
        name: str,
        shard_format: ShardFormat,
        spec: Spec,
        verify: Verify,
        shard_rows: int | None = None,
        codec: str = "none",
        skipped_shards: Container[int] = (),
    ) -> None:
        super().__init__(location, folder, name, shard_format, spec, verify, skipped_shards)
        row_bytes = self.parts[0].row_bytes
        if row_bytes > MAX_ROW_BYTES:
            raise SpecError(
                "shape", expected=f"at most {MAX_ROW_BYTES} bytes per clip", got=f"{row_bytes} for {spec.shape}"
            )
        with writing(self.subject):
            sweep(folder.temporary)
            Lease.sweep(folder.leases)
        self._plan = ShardPlan(folder)
        self._replanned: tuple[int, dict[bytes, list[int]]] = (0, {})
        """Number of segments that `_replanned_shards` has read, and its result for them."""
        first = self._plan.segments[0] if self._plan.segments else None
        self.shard_rows: int = first.shard_rows if first else shard_rows or default_shard_rows(row_bytes)
        self.codec: str = first.codec if first else codec
        if not 1 <= self.shard_rows <= MAX_SHARD_ROWS:
            raise SpecError("shard_rows", expected=f"1 to {MAX_SHARD_ROWS}", got=str(self.shard_rows))
        self._write_derived()

    def plan(self, ids: Sequence[str]) -> None:
        """Assign every clip that has no planned slot to new shards, in this order.

        Raises:
            StoreError: invalid or repeated ids.
            WriteError: the disk is full or refuses.
        """
        encoded = encode_ids(ids)
        while True:
            self._plan.refresh()
            planned = self._planned_ids()
            unplanned = [data for data in encoded if data not in planned]
            if not unplanned or self._publish(unplanned):
                return

    def retry(self, ids: Sequence[str]) -> None:
        """Assign these clips to new shards, except clips that are pending already.

        Raises:
            StoreError: invalid or repeated ids.
            WriteError: the disk is full or refuses.
        """
        encoded = encode_ids(ids)
        while True:
            pending = {
                clip_id.encode() for shard in self.pending() for clip_id in set(shard.ids) - self.superseded(shard)
            }
            to_plan = [data for data in encoded if data not in pending]
            if not to_plan or self._publish(to_plan):
                return

    def unfinished_retries(self) -> set[str]:
        """Return the clips of unfinished retries: of segments that plan clips again and have pending shards."""
        self._plan.refresh()
        committed = set(numbered(self.folder.records, RECORD_DIGITS))
        planned_before: set[bytes] = set()
        unfinished: set[bytes] = set()
        for segment in self._plan.segments:
            encoded = segment.encoded_ids()
            if not planned_before.isdisjoint(encoded) and any(
                end > begin and shard not in committed for shard, begin, end in segment.shards()
            ):
                unfinished.update(encoded)
            planned_before.update(encoded)
        return {data.decode() for data in unfinished}

    def newest_segment_plans(self, ids: set[str]) -> bool:
        """Return whether the newest segment plans exactly these clips. Segments of partial shards are ignored."""
        self._plan.refresh()
        clips = {clip_id.encode() for clip_id in ids}
        segments = (set(segment.encoded_ids()) for segment in reversed(self._plan.segments))
        return next((planned for planned in segments if not planned < clips), None) == clips

    def plan_same_shards(self, segment: PlanSegment) -> None:
        """Plan the same shards as a segment of another store, for copies that keep its shards.

        Raises:
            StoreError: this plan has a different segment of that number.
        """
        self._plan.refresh()
        if segment.number == len(self._plan.segments):
            self._publish_segment(replace(segment, codec=self.codec))
        existing = next((planned for planned in self._plan.segments if planned.number == segment.number), None)
        if existing is None or replace(existing, codec=segment.codec).pack() != segment.pack():
            raise StoreError(
                self.subject,
                expected=f"the plan of the store it is copied from, in segment {segment.number}",
                got="another",
                next_step="Copy to a fresh place, or with --compact.",
            )

    def plan_partial_shard(self, encoded: list[bytes]) -> int:
        """Plan one shard for some clips of a pending shard, after all other shards; return its number.

        Raises:
            WriteError: the disk is full or refuses.
        """
        while (segment := self._publish(encoded)) is None:
            pass
        return segment.first_shard

    def _publish(self, encoded: list[bytes]) -> PlanSegment | None:
        """Assign clips to new shards in a new segment; return None if another worker published a segment first."""
        first = max(self._plan.end_shard, *(shard + 1 for shard in numbered(self.folder.records, RECORD_DIGITS)), 0)
        segment = make_segment(len(self._plan.segments), first, self.shard_rows, self.codec, encoded)
        return segment if self._publish_segment(segment) else None

    def _publish_segment(self, segment: PlanSegment) -> bool:
        """Publish a segment, if its number is free, and update everything that follows from the plan."""
        published = publish_segment(self.folder, segment)
        self._plan.refresh()
        self.shard_rows, self.codec = self._plan.segments[0].shard_rows, self._plan.segments[0].codec
        self._write_derived()
        return published

    def _planned_ids(self) -> set[bytes]:
        planned = {data for segment in self._plan.segments for data in segment.encoded_ids()}
        for record in self._catalogue.records:  # also clips whose plan segment was lost
            planned.update(
                record.encoded_id(slot) for slot in range(len(record)) if record.shard >= self._plan.end_shard
            )
        return planned

    def _write_derived(self) -> None:
        """Rewrite the derived files, and repeat that if another process has extended the plan meanwhile."""
        while True:
            for path, data in self.derived_files().items():
                if not _holds(path, data):
                    replace_bytes(path, data, self.folder.temporary)
            num_segments = len(self._plan.segments)
            self._plan.refresh()
            if len(self._plan.segments) == num_segments:
                return

    def derived_files(self) -> dict[Path, bytes]:
        """Return the files that follow from spec and plan, with their contents."""
        return self.format.derived_files(self.layout, self.folder.spec.read_bytes(), self._plan)

    @property
    def layout(self) -> FeatureLayout:
        return FeatureLayout(self.folder, self.name, self.spec, self.parts, self.shard_rows, self.codec)

    @property
    def work_folder(self) -> Path:
        """Folder for notes of running processes; not part of the stored data."""
        return self.folder.leases

    def shards(self) -> list[Shard]:
        """Return every planned shard that holds clips, committed or not, by number."""
        self._plan.refresh()
        return [
            Shard(number, tuple(data.decode() for data in segment.encoded_ids(begin, end)))
            for segment, number, begin, end in self._plan.shards()
        ]

    def pending(self) -> list[Shard]:
        """Return the planned shards without a commit record, also of other processes, by number."""
        self._plan.refresh()
        committed = set(numbered(self.folder.records, RECORD_DIGITS))
        return [
            Shard(number, tuple(data.decode() for data in segment.encoded_ids(begin, end)))
            for segment, number, begin, end in self._plan.shards()
            if number not in committed
        ]

    def superseded(self, shard: Shard) -> frozenset[str]:
        """Return the clips of a pending shard that a later committed shard holds; their result there is valid."""
        later_shards = self._replanned_shards()
        if not later_shards:
            return frozenset()
        return frozenset(
            clip_id
            for clip_id in shard.ids
            if any(
                number > shard.number and self.folder.record(number).exists()
                for number in later_shards.get(clip_id.encode(), ())
            )
        )

    def _replanned_shards(self) -> dict[bytes, list[int]]:
        """Return by encoded id the shards of clips that an earlier shard holds too."""
        if self._replanned[0] != len(self._plan.segments):
            later_shards: dict[bytes, list[int]] = {}
            seen: set[bytes] = set()
            if len(self._plan.segments) > 1:
                for segment, number, begin, end in self._plan.shards():
                    for encoded in segment.encoded_ids(begin, end):
                        if encoded in seen:
                            later_shards.setdefault(encoded, []).append(number)
                        seen.add(encoded)
            self._replanned = (len(self._plan.segments), later_shards)
        return self._replanned[1]

    def begin(self, shard: Shard) -> StoredShardWriter:
        """Start to write a pending shard.

        Raises:
            WriteError: the disk is full or refuses.
        """
        return StoredShardWriter(self, shard)

    def claim(self, shard: Shard, *, lease_s: float = LEASE_S) -> StoredShardWriter | None:
        """Like `begin`, but return None if the shard is committed or another process holds its lease.

        A lease is taken over if its holder is dead or wrote nothing for `lease_s` seconds. If such a holder continues,
        its commit finds the record and changes nothing.

        Raises:
            WriteError: the disk is full or refuses.
        """
        record = self.folder.record(shard.number)
        with writing(self.subject):
            lease = None if record.exists() else Lease.take(self.folder.leases, record.name, lease_s)
        if lease is not None and record.exists():  # committed between the check and the lease
            lease.release()
            lease = None
        return None if lease is None else StoredShardWriter(self, shard, lease)


class StoredShardWriter:
    """Writes one shard; implements `ShardWriter`."""

    def __init__(self, feature: StoredFeatureWriter, shard: Shard, lease: Lease | None = None) -> None:
        self.shard = shard
        self._lease = lease
        self._feature = feature
        self._subject = f"{feature.subject}, shard {shard.number}"
        encoded = [clip_id.encode() for clip_id in shard.ids]
        layout = feature.layout
        optional = [*feature.format.columns(layout), *(QUANTISED_COLUMNS if len(feature.parts) == 2 else ())]
        self._builder = RecordBuilder(
            shard.number,
            encoded,
            feature.shard_rows,
            feature.fingerprint,
            feature.codec,
            feature.parts[0].row_bytes,
            optional,
        )
        with writing(self._subject):
            self._sink = feature.format.sink(layout, shard.number, encoded)

    def put(self, slot: int, tokens: np.ndarray, source: str) -> None:
        """Write (K, D) tokens.

        Raises:
            NotFiniteError: NaN or infinity, possibly only after rounding.
            ValueError: another shape or dtype, or the slot is decided already.
            WriteError: the disk is full or refuses.
        """
        rows, measures = encode_tokens(tokens, self._feature.spec)
        self.put_rows(slot, rows, source, measures)

    def put_rows(self, slot: int, rows: Sequence[np.ndarray], source: str, measures: Mapping[str, float]) -> None:
        """Write the stored arrays of a clip, one per part, with its recorded absmax and quantisation errors."""
        parts = self._feature.parts
        checksums = {part.column("crc32c"): google_crc32c.value(row) for part, row in zip(parts, rows, strict=True)}
        self._builder.set(slot, Status.OK, source, values={**checksums, **measures})
        try:
            with writing(self._subject):
                self._sink.put(slot, rows)
        except WriteError:
            self._builder.decided[slot] = False
            raise
        self._renew()

    def fail(self, slot: int, reason: str, source: str = "") -> None:
        """Record that the clip failed."""
        self._builder.set(slot, Status.FAILED, source, reason)
        self._renew()

    def absent(self, slot: int, reason: str, source: str = "") -> None:
        """Record that the clip lacks the modality."""
        self._builder.set(slot, Status.ABSENT, source, reason)
        self._renew()

    def _renew(self) -> None:
        if self._lease:
            self._lease.renew()

    def mark_superseded(self, slot: int) -> None:
        """Record that a later shard holds the clip, so that its tokens are not written twice."""
        self._builder.set(slot, Status.FAILED, "", SUPERSEDED_REASON)

    def commit_partial(self, *, failed: bool = True) -> list[str]:
        """Commit the decided slots as a new shard and drop the others; return the clips of the new shard.

        The new shard is planned after all others, so the plan of the other clips does not change: this shard stays
        pending, and its next writer finds these clips superseded. Without `failed`, failed clips are dropped too. This
        writer cannot be used afterwards.

        Raises:
            WriteError: the disk is full or refuses.
        """
        decided = np.flatnonzero(self._builder.decided).tolist()
        superseded = {slot for slot in decided if self._builder.reason(slot) == SUPERSEDED_REASON}
        slots = [slot for slot in decided if slot not in superseded and self._to_keep(slot, failed)]
        ids = tuple(self.shard.ids[slot] for slot in slots)
        if len(slots) + len(superseded) == len(self.shard.ids):
            self.commit()
            return list(ids)
        if not slots:
            self.abort()
            return []
        encoded = [clip_id.encode() for clip_id in ids]
        number = self._feature.plan_partial_shard(encoded)
        with writing(self._subject):
            self._sink.renumber(number, encoded, slots)
        self._builder = self._builder.subset(number, slots)
        self.shard = Shard(number, ids)
        self.commit()
        return list(ids)

    def _to_keep(self, slot: int, failed: bool) -> bool:
        """Return whether a decided slot is worth a commit: its rows are complete, or it has a record without rows."""
        status = self._builder.column("status")[slot]
        if status == Status.FAILED:
            return failed
        checksums = [int(self._builder.column(part.column("crc32c"))[slot]) for part in self._feature.parts]
        try:
            return status != Status.OK or self._sink.holds(slot, checksums)
        except OSError:
            return False

    def commit(self, *, replacing: bool = False) -> None:
        """Publish the shard as a whole. If it is committed already, nothing changes, unless `replacing` (repair).

        Raises:
            ValueError: some slots are undecided.
            WriteError: the disk is full or refuses; the shard stays pending.
        """
        feature, folder = self._feature, self._feature.folder
        path = folder.record(self.shard.number)
        with writing(self._subject):
            files = self._sink.finish(self._builder)
            record = self._builder.build(tuple(os.fstat(file.fd).st_size for file, _ in files))
            for file, _ in files:
                file.sync()
            make_folder(folder.records)
            with commit_lock(folder.records, self._subject):
                if replacing or not path.exists():
                    for file, target in files:
                        if replacing or not file.publish(target):
                            file.replace(target)  # a damaged file, or one of a writer that died before its record
                    (replace_bytes if replacing else publish_bytes)(path, record.pack(), folder.temporary)
        self.abort()
        feature._add(load_record(path, self.shard.number, feature.fingerprint))

    def abort(self) -> None:
        """Remove the written data, which was never visible, and release the lease."""
        self._sink.close()
        if self._lease:
            self._lease.release()

    def __enter__(self) -> StoredShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()


@contextlib.contextmanager
def commit_lock(folder: Path, subject: str) -> Iterator[None]:
    """Hold the commit lock of a feature, so that the files and the record of a shard come from the same process."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + COMMIT_PATIENCE_S
        while not lock_now(fd):  # True on a file system without locks: publishing without replacing must suffice there
            if time.monotonic() > deadline:
                raise WriteError(
                    subject,
                    expected="the commit lock within 30 s",
                    got="another process holds it, perhaps stopped",
                    next_step="Continue or end that process, then run the same command again.",
                )
            time.sleep(0.005)
        yield
    finally:
        os.close(fd)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except FileNotFoundError:
        return False
