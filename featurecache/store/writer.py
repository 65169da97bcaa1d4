"""Write tokens: plan clips onto shards, fill a shard slot by slot, commit it whole.

A shard's files are published first and its commit record last; until then nobody sees anything of it. Of two writers of
one shard the second finds the record and does no harm. Writing NaN or infinity is refused. Tokens come as (K, D) in
float32 or the stored dtype.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np

from featurecache.errors import SpecError, StoreError, WriteError
from featurecache.files.lease import LEASE_S, Lease
from featurecache.files.publish import UNSUPPORTED, make_folder, publish_bytes, replace_bytes, sweep, writing
from featurecache.spec import Spec
from featurecache.store.feature import StoredFeature, Verify
from featurecache.store.formats import Geometry, ShardFormat
from featurecache.store.layout import (
    LOGICAL_DTYPES,
    MAX_ROW_BYTES,
    MAX_SHARD_ROWS,
    RECORD_DIGITS,
    FeatureFolder,
    default_shard_rows,
    encode_ids,
    numbered,
)
from featurecache.store.plan import Plan, Segment, make_segment, publish_segment
from featurecache.store.protocols import NotFiniteError, Shard, Status
from featurecache.store.quantize import LARGEST, dequantise, measured_error, quantise
from featurecache.store.records import QUANTISED_COLUMNS, RecordBuilder, load_record

COMMIT_PATIENCE_S = 30.0
DECIDED_LATER = "a later shard holds it: an extraction was stopped in the midst of this one"


class StoredFeatureWriter(StoredFeature):
    """A feature open for extraction; implements `FeatureWriter`."""

    def __init__(
        self,
        location: str,
        folder: FeatureFolder,
        name: str,
        form: ShardFormat,
        spec: Spec,
        verify: Verify,
        shard_rows: int | None = None,
        codec: str = "none",
        unread: Container[int] = (),
    ) -> None:
        super().__init__(location, folder, name, form, spec, verify, unread)
        row_bytes = self.parts[0].row_bytes
        if row_bytes > MAX_ROW_BYTES:
            raise SpecError(
                "shape", expected=f"at most {MAX_ROW_BYTES} bytes a clip", got=f"{row_bytes} for {spec.shape}"
            )
        with writing(self.subject):
            sweep(folder.temporary)
            Lease.sweep(folder.leases)
        self._plan = Plan(folder)
        self._again: tuple[int, dict[bytes, list[int]]] = (0, {})
        """Number of segments looked at, and what `_planned_again` found in them."""
        first = self._plan.segments[0] if self._plan.segments else None
        self.shard_rows: int = first.shard_rows if first else shard_rows or default_shard_rows(row_bytes)
        self.codec: str = first.codec if first else codec
        if not 1 <= self.shard_rows <= MAX_SHARD_ROWS:
            raise SpecError("shard_rows", expected=f"1 to {MAX_SHARD_ROWS}", got=str(self.shard_rows))
        self._write_derived()

    def plan(self, ids: Sequence[str]) -> None:
        """Plan every clip of `ids` that is not planned yet, in this order, on fresh shards.

        Raises:
            StoreError: unsound or repeated ids.
            WriteError: the disk is full or refuses.
        """
        encoded = encode_ids(ids)
        while True:
            self._plan.refresh()
            planned = self._planned_ids()
            wanted = [data for data in encoded if data not in planned]
            if not wanted or self._publish(wanted):
                return

    def retry(self, ids: Sequence[str]) -> None:
        """Plan these clips anew on fresh shards, except where they are pending already.

        Raises:
            StoreError: unsound or repeated ids.
            WriteError: the disk is full or refuses.
        """
        encoded = encode_ids(ids)
        while True:
            pending = {
                clip_id.encode() for shard in self.pending() for clip_id in set(shard.ids) - self.decided_later(shard)
            }
            wanted = [data for data in encoded if data not in pending]
            if not wanted or self._publish(wanted):
                return

    def stopped_retry(self) -> set[str]:
        """Clips of retries that were stopped: of segments that plan clips anew and have shards that are pending."""
        self._plan.refresh()
        committed = set(numbered(self.folder.records, RECORD_DIGITS))
        before: set[bytes] = set()
        stopped: set[bytes] = set()
        for segment in self._plan.segments:
            encoded = segment.encoded_ids()
            if not before.isdisjoint(encoded) and any(
                end > begin and shard not in committed for shard, begin, end in segment.shards()
            ):
                stopped.update(encoded)
            before.update(encoded)
        return {data.decode() for data in stopped}

    def planned_last(self, ids: set[str]) -> bool:
        """Whether the newest segment plans these clips; those that stops have made of some of them are passed over."""
        self._plan.refresh()
        wanted = {clip_id.encode() for clip_id in ids}
        planned = (set(segment.encoded_ids()) for segment in reversed(self._plan.segments))
        return next((these for these in planned if not these < wanted), None) == wanted

    def plan_like(self, segment: Segment) -> None:
        """Plan the very shards of another store's segment, for copies that keep its division.

        Raises:
            StoreError: this plan has another segment of that number.
        """
        self._plan.refresh()
        if segment.number == len(self._plan.segments):
            self._publish_segment(replace(segment, codec=self.codec))
        mine = next((each for each in self._plan.segments if each.number == segment.number), None)
        if mine is None or replace(mine, codec=segment.codec).pack() != segment.pack():
            raise StoreError(
                self.subject,
                expected=f"the plan of the store it is copied from, in segment {segment.number}",
                got="another",
                next_step="Copy to a fresh place, or with --compact.",
            )

    def plan_kept(self, encoded: list[bytes]) -> int:
        """Plan one shard for clips of a pending one, after all others, and return its number.

        Raises:
            WriteError: the disk is full or refuses.
        """
        while (segment := self._publish(encoded)) is None:
            pass
        return segment.first_shard

    def _publish(self, encoded: list[bytes]) -> Segment | None:
        """Plan clips on fresh shards; None where another worker published a segment first."""
        first = max(self._plan.end_shard, *(shard + 1 for shard in numbered(self.folder.records, RECORD_DIGITS)), 0)
        segment = make_segment(len(self._plan.segments), first, self.shard_rows, self.codec, encoded)
        return segment if self._publish_segment(segment) else None

    def _publish_segment(self, segment: Segment) -> bool:
        published = publish_segment(self.folder, segment)
        self._plan.refresh()
        self.shard_rows, self.codec = self._plan.segments[0].shard_rows, self._plan.segments[0].codec
        self._write_derived()
        return published

    def _planned_ids(self) -> set[bytes]:
        planned = {data for segment in self._plan.segments for data in segment.encoded_ids()}
        for record in self._catalogue.records:  # also what a lost plan had planned
            planned.update(
                record.encoded_id(slot) for slot in range(len(record)) if record.shard >= self._plan.end_shard
            )
        return planned

    def _write_derived(self) -> None:
        """Bring the files that follow from spec and plan up to date, again where the plan has grown meanwhile."""
        while True:
            for path, data in self.derived_files().items():
                if not _holds(path, data):
                    replace_bytes(path, data, self.folder.temporary)
            known = len(self._plan.segments)
            self._plan.refresh()
            if len(self._plan.segments) == known:
                return

    def derived_files(self) -> dict[Path, bytes]:
        """Files that follow from spec and plan, and what they must hold."""
        return self.format.derived_files(self.geometry, self.folder.spec.read_bytes(), self._plan)

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.folder, self.name, self.spec, self.parts, self.shard_rows, self.codec)

    @property
    def work_folder(self) -> Path:
        """Where processes note what they are at; no part of what is stored."""
        return self.folder.leases

    def shards(self) -> list[Shard]:
        """Every planned shard that holds clips, committed or not, by number."""
        self._plan.refresh()
        return [
            Shard(number, tuple(data.decode() for data in segment.encoded_ids(begin, end)))
            for segment, number, begin, end in self._plan.shards()
        ]

    def pending(self) -> list[Shard]:
        """Planned shards without a commit record, by number; shards that others committed since are left out."""
        self._plan.refresh()
        committed = set(numbered(self.folder.records, RECORD_DIGITS))
        return [
            Shard(number, tuple(data.decode() for data in segment.encoded_ids(begin, end)))
            for segment, number, begin, end in self._plan.shards()
            if number not in committed
        ]

    def decided_later(self, shard: Shard) -> frozenset[str]:
        """Clips of a pending shard that a committed shard after it holds; what they have there is the truth."""
        again = self._planned_again()
        if not again:
            return frozenset()
        return frozenset(
            clip_id
            for clip_id in shard.ids
            if any(
                number > shard.number and self.folder.record(number).exists()
                for number in again.get(clip_id.encode(), ())
            )
        )

    def _planned_again(self) -> dict[bytes, list[int]]:
        """Shards that hold clips which an earlier shard holds too, by encoded id."""
        if self._again[0] != len(self._plan.segments):
            again: dict[bytes, list[int]] = {}
            seen: set[bytes] = set()
            if len(self._plan.segments) > 1:
                for segment, number, begin, end in self._plan.shards():
                    for encoded in segment.encoded_ids(begin, end):
                        if encoded in seen:
                            again.setdefault(encoded, []).append(number)
                        seen.add(encoded)
            self._again = (len(self._plan.segments), again)
        return self._again[1]

    def begin(self, shard: Shard) -> StoredShardWriter:
        """Start writing one pending shard.

        Raises:
            WriteError: the disk is full or refuses.
        """
        return StoredShardWriter(self, shard)

    def claim(self, shard: Shard, *, lease_s: float = LEASE_S) -> StoredShardWriter | None:
        """Like `begin`, but None where the shard is committed or another process holds its lease.

        A lease whose holder has died, or has written nothing for `lease_s`, is taken over; should that holder wake, its
        commit finds the record and changes nothing.

        Raises:
            WriteError: the disk is full or refuses.
        """
        record = self.folder.record(shard.number)
        with writing(self.subject):
            lease = None if record.exists() else Lease.take(self.folder.leases, record.name, lease_s)
        if lease is not None and record.exists():  # committed between the look and the lease
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
        geometry = feature.geometry
        optional = [*feature.format.columns(geometry), *(QUANTISED_COLUMNS if len(feature.parts) == 2 else ())]
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
            self._sink = feature.format.sink(geometry, shard.number, encoded)

    def put(self, slot: int, tokens: np.ndarray, source: str) -> None:
        """Write (K, D) tokens.

        Raises:
            NotFiniteError: NaN or infinity, also after rounding.
            ValueError: another shape or dtype, or a slot that is decided.
            WriteError: the disk is full or refuses.
        """
        rows, stated = encode_tokens(tokens, self._feature.spec)
        self.put_rows(slot, rows, source, stated)

    def put_rows(self, slot: int, rows: Sequence[np.ndarray], source: str, stated: Mapping[str, float]) -> None:
        """Write what another store holds of a clip: an array for each part, and its absmax and errors as recorded."""
        parts = self._feature.parts
        checksums = {part.column("crc32c"): google_crc32c.value(row) for part, row in zip(parts, rows, strict=True)}
        self._builder.set(slot, Status.OK, source, **checksums, **stated)
        try:
            with writing(self._subject):
                self._sink.put(slot, rows)
        except WriteError:
            self._builder.decided[slot] = False
            raise
        self._renew()

    def fail(self, slot: int, reason: str, source: str = "") -> None:
        """Record that a clip has no tokens because something went wrong."""
        self._builder.set(slot, Status.FAILED, source, reason)
        self._renew()

    def absent(self, slot: int, reason: str, source: str = "") -> None:
        """Record that a clip does not have the modality."""
        self._builder.set(slot, Status.ABSENT, source, reason)
        self._renew()

    def _renew(self) -> None:
        if self._lease:
            self._lease.renew()

    def decided_later(self, slot: int) -> None:
        """Record that a later shard holds the clip, which is the truth of it: nothing is written twice."""
        self._builder.set(slot, Status.FAILED, "", DECIDED_LATER)

    def commit_decided(self, *, failed: bool = True) -> list[str]:
        """Commit what is decided and give up the rest; returns the clips. The shard is not written to any more.

        They become a shard of their own, planned after all others, so that the plan of the rest stays what it was: the
        shard begun is pending still, and whoever writes it finds these clips decided later. Without `failed`, clips
        that failed are given up too.

        Raises:
            WriteError: the disk is full or refuses.
        """
        decided = np.flatnonzero(self._builder.decided).tolist()
        later = {slot for slot in decided if self._builder.reason(slot) == DECIDED_LATER}
        slots = [slot for slot in decided if slot not in later and self._to_keep(slot, failed)]
        ids = tuple(self.shard.ids[slot] for slot in slots)
        if len(slots) + len(later) == len(self.shard.ids):
            self.commit()
            return list(ids)
        if not slots:
            self.abort()
            return []
        encoded = [clip_id.encode() for clip_id in ids]
        number = self._feature.plan_kept(encoded)
        with writing(self._subject):
            self._sink.renumber(number, encoded, slots)
        self._builder = self._builder.part(number, slots)
        self.shard = Shard(number, ids)
        self.commit()
        return list(ids)

    def _to_keep(self, slot: int, failed: bool) -> bool:
        """Whether a decided slot has anything to keep: a row that is there whole, or a reason of its own."""
        status = self._builder.column("status")[slot]
        if status == Status.FAILED:
            return failed
        checksums = [int(self._builder.column(part.column("crc32c"))[slot]) for part in self._feature.parts]
        try:
            return status != Status.OK or self._sink.holds(slot, checksums)
        except OSError:
            return False

    def commit(self, *, replacing: bool = False) -> None:
        """Make the shard visible, whole. Where another worker was first, nothing changes, unless `replacing` (repair).

        Raises:
            ValueError: a slot is undecided.
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
                            file.replace(target)  # damaged, or left by a writer that died before its record
                    (replace_bytes if replacing else publish_bytes)(path, record.pack(), folder.temporary)
        self.abort()
        feature._add(load_record(path, self.shard.number, feature.fingerprint))

    def abort(self) -> None:
        """Remove what was written; nothing of it was visible."""
        self._sink.close()
        if self._lease:
            self._lease.release()

    def __enter__(self) -> StoredShardWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.abort()


def encode_tokens(tokens: np.ndarray, spec: Spec) -> tuple[list[np.ndarray], dict[str, float]]:
    """Tokens (K, D) as they are stored, an array for each part; their largest magnitude and measured errors.

    Raises:
        NotFiniteError: NaN or infinity, or a value too large for the stored dtype.
        ValueError: another shape or dtype.
    """
    tokens = np.asarray(tokens)
    if tokens.shape != spec.shape:
        raise ValueError(f"tokens: expected shape {spec.shape}, got {tokens.shape}")
    logical = LOGICAL_DTYPES[spec.stored_dtype]
    exact = np.ascontiguousarray(tokens)
    if tokens.dtype != logical:
        if tokens.dtype != np.float32:
            raise ValueError(f"tokens: expected float32 or {logical}, got {tokens.dtype}")
        with np.errstate(over="ignore"):
            tokens = tokens.astype(logical)
    row = np.ascontiguousarray(tokens)
    absmax, finite = magnitude(row)
    if not finite:
        raise NotFiniteError(f"tokens: expected finite numbers of {logical}, got NaN or infinity")
    if spec.stored_dtype in LARGEST:
        q, scales = quantise(exact, spec.stored_dtype)
        return [q, scales], {"absmax": absmax, **measured_error(exact, dequantise(q, scales))}
    return [row.view(np.uint16) if logical.kind == "V" else row], {"absmax": absmax}


def magnitude(row: np.ndarray) -> tuple[float, bool]:
    """(largest absolute value, whether all are finite), from the bits: much faster than arithmetic on half floats.

    Read as unsigned numbers, the largest has the largest magnitude of the negative values, if there are any; read as
    signed ones, of the positive values.
    """
    unsigned = row.view(np.uint32 if row.itemsize == 4 else np.uint16)
    sign = 1 << (8 * row.itemsize - 1)
    below = int(unsigned.max())
    above = int(unsigned.view(np.int32 if row.itemsize == 4 else np.int16).max())
    largest = max(below - sign, above)
    infinity = int(np.array(np.inf, row.dtype).view(unsigned.dtype))
    return float(np.array(largest, unsigned.dtype).view(row.dtype)), largest < infinity


@contextlib.contextmanager
def commit_lock(folder: Path, subject: str) -> Iterator[None]:
    """Only one writer of a feature publishes at a time, so that data and record are always of one hand."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + COMMIT_PATIENCE_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in UNSUPPORTED:
                    break  # a file system without locks: publishing without replacing has to do
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
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
