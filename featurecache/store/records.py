"""Commit records: what is true of a shard, a column an attribute, a line a planned clip.

A shard is visible if and only if its record is. A record is packed by `columns` under MAGIC, n slots:

    id_hash u64[n] · ids bytes · ids_starts u32[n+1] · status u8[n] · crc32c u32[n] · absmax f32[n] · nan u32[n]
    reason u32[n] (into the header's "reasons") · source bytes[32 n]
    and, where the format needs them: offset u64[n], length u64[n], packed_crc32c u32[n] · scales_crc32c u32[n], and
    scales_offset, scales_length, scales_packed_crc32c like those of tokens · error_rms, error_max, error_cosine f32[n]

It knows the bytes of no shard.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.errors import CorruptStoreError
from featurecache.store import columns
from featurecache.store.layout import MAX_ROW_BYTES, MAX_SHARD_ROWS, STORE_FORMAT, id_hash
from featurecache.store.protocols import ClipRecord, Status

MAGIC = b"FCRECRD1"
SOURCE_BYTES = 32
MAX_REASON_CHARACTERS = 300
MAX_RECORD_BYTES = 4096 + MAX_SHARD_ROWS * 4096
NEXT_STEP = "Run `fcache verify` to list all damage and `fcache repair` to mend it."

_PER_CLIP = {
    "id_hash": "<u8",
    "status": "|u1",
    "crc32c": "<u4",
    "absmax": "<f4",
    "nan": "<u4",
    "reason": "<u4",
}
_OPTIONAL = {
    "offset": "<u8",
    "length": "<u8",
    "packed_crc32c": "<u4",
    "scales_crc32c": "<u4",
    "scales_offset": "<u8",
    "scales_length": "<u8",
    "scales_packed_crc32c": "<u4",
    "error_rms": "<f4",
    "error_max": "<f4",
    "error_cosine": "<f4",
}
QUANTISED_COLUMNS = ("scales_crc32c", "error_rms", "error_max", "error_cosine")


@dataclass(frozen=True)
class Record:
    """One commit record in memory; its columns are views of the file's bytes."""

    shard: int
    shard_rows: int
    fingerprint: str
    codec: str
    """How rows are compressed: "none" or the name of an archive codec."""
    row_bytes: int
    file_bytes: tuple[int, ...]
    """Size of each file of the shard: tokens, and scales where there are."""
    reasons: tuple[str, ...]
    columns: Mapping[str, np.ndarray] = field(repr=False)

    def __len__(self) -> int:
        return self.columns["status"].size

    @functools.cached_property
    def _texts(self) -> tuple[memoryview, memoryview]:
        return self.columns["ids"].data, self.columns["ids_starts"].data  # much quicker to index than arrays

    def encoded_id(self, slot: int) -> bytes:
        text, starts = self._texts
        return text[starts[slot] : starts[slot + 1]].tobytes()

    def encoded_ids(self) -> Iterator[bytes]:
        return (self.encoded_id(slot) for slot in range(len(self)))

    def clip(self, slot: int) -> ClipRecord:
        """What is known of the clip in one slot."""
        column = self.columns
        source = column["source"][slot * SOURCE_BYTES : (slot + 1) * SOURCE_BYTES]
        errors = {name: float(column[name][slot]) for name in QUANTISED_COLUMNS[1:] if name in column}
        return ClipRecord(
            id=self.encoded_id(slot).decode(),
            status=Status(int(column["status"][slot])),
            shard=self.shard,
            slot=slot,
            source=source.tobytes().hex() if source.any() else "",
            reason=self.reasons[int(column["reason"][slot])],
            crc32c=int(column["crc32c"][slot]),
            absmax=float(column["absmax"][slot]),
            nan_count=int(column["nan"][slot]),
            errors=errors,
        )

    def clips(self) -> Iterator[ClipRecord]:
        return (self.clip(slot) for slot in range(len(self)))

    def pack(self) -> bytes:
        """The file. Equal records give equal bytes."""
        header = {
            "format": STORE_FORMAT,
            "shard": self.shard,
            "shard_rows": self.shard_rows,
            "fingerprint": self.fingerprint,
            "codec": self.codec,
            "row_bytes": self.row_bytes,
            "file_bytes": list(self.file_bytes),
            "reasons": list(self.reasons),
        }
        return columns.pack(MAGIC, header, self.columns)


class RecordBuilder:
    """Collects what happens to each slot of one shard, in any order."""

    def __init__(
        self,
        shard: int,
        encoded_ids: list[bytes],
        shard_rows: int,
        fingerprint: str,
        codec: str,
        row_bytes: int,
        optional: Sequence[str] = (),
    ) -> None:
        self._stated = (shard, shard_rows, fingerprint, codec, row_bytes)
        count = len(encoded_ids)
        ids, starts = columns.pack_texts(encoded_ids)
        self._columns: dict[str, np.ndarray] = {
            "id_hash": np.array([id_hash(encoded) for encoded in encoded_ids], "<u8"),
            "ids": ids,
            "ids_starts": starts,
        }
        for name, dtype in _PER_CLIP.items():
            self._columns.setdefault(name, np.zeros(count, dtype))
        for name in optional:
            self._columns[name] = np.zeros(count, _OPTIONAL[name])
        self._columns["source"] = np.zeros(count * SOURCE_BYTES, "|u1")
        self._reasons = [""] * count
        self.decided = np.zeros(count, bool)

    def set(self, slot: int, status: Status, source: str, reason: str = "", **values: float) -> None:
        """Decide one slot.

        Raises:
            ValueError: decided before, no such slot, or a source that is not 64 hex digits (or empty).
        """
        if not 0 <= slot < self.decided.size:
            raise ValueError(f"slot {slot}: expected 0 to {self.decided.size - 1}")
        if self.decided[slot]:
            raise ValueError(f"slot {slot}: decided before")
        digest = bytes.fromhex(source)
        if digest and len(digest) != SOURCE_BYTES:
            raise ValueError(f"source: expected {2 * SOURCE_BYTES} hex digits, got {source!r}")
        self.decided[slot] = True
        self._columns["status"][slot] = status
        if digest:
            self._columns["source"][slot * SOURCE_BYTES : (slot + 1) * SOURCE_BYTES] = np.frombuffer(digest, "|u1")
        self._reasons[slot] = clean_reason(reason)
        for name, value in values.items():
            self._columns[name][slot] = value

    def part(self, shard: int, slots: Sequence[int]) -> RecordBuilder:
        """Return the builder of another shard that holds these slots, in this order, as they were decided here."""
        encoded = [self.encoded_id(slot) for slot in slots]
        taken = RecordBuilder(shard, encoded, *self._stated[1:])
        for name, column in self._columns.items():
            if name not in ("ids", "ids_starts"):
                taken._columns[name] = column.reshape(self.decided.size, -1)[slots].reshape(-1)
        taken._reasons = [self._reasons[slot] for slot in slots]
        taken.decided = self.decided[slots]
        return taken

    def encoded_id(self, slot: int) -> bytes:
        starts = self._columns["ids_starts"]
        return self._columns["ids"][starts[slot] : starts[slot + 1]].tobytes()

    def reason(self, slot: int) -> str:
        return self._reasons[slot]

    def column(self, name: str) -> np.ndarray:
        """One column, to be filled in."""
        return self._columns[name]

    def build(self, file_bytes: tuple[int, ...]) -> Record:
        """The finished record.

        Raises:
            ValueError: a slot is still undecided.
        """
        if not self.decided.all():
            raise ValueError(f"{int((~self.decided).sum())} slots are undecided")
        reasons = tuple(sorted({"", *self._reasons}))
        numbers = {reason: number for number, reason in enumerate(reasons)}
        self._columns["reason"][:] = [numbers[reason] for reason in self._reasons]
        return Record(*self._stated, file_bytes, reasons, self._columns)


def load_record(path: Path, shard: int, fingerprint: str) -> Record:
    """Read and check one commit record.

    Raises:
        CorruptStoreError: damaged, of another shard or another spec.
        FileNotFoundError: the shard is not committed.
    """
    header, found = columns.read(path, MAGIC, MAX_RECORD_BYTES, NEXT_STEP)
    return check_record(header, found, str(path), shard, fingerprint)


def check_record(
    header: Mapping[str, Any], found: Mapping[str, np.ndarray], subject: str, shard: int, fingerprint: str
) -> Record:
    """Make a record of unpacked columns, refusing whatever contradicts itself or its place."""

    def corrupt(expected: str, got: object) -> CorruptStoreError:
        return CorruptStoreError(subject, expected=expected, got=str(got), next_step=NEXT_STEP)

    if header.get("format") != STORE_FORMAT:
        raise CorruptStoreError(
            subject,
            expected=f"format {STORE_FORMAT}",
            got=repr(header.get("format")),
            next_step="Install the release of featurecache that wrote it.",
        )
    if header.get("shard") != shard:
        raise corrupt(f"the record of shard {shard}", f"shard {header.get('shard')!r}")
    if header.get("fingerprint") != fingerprint:
        raise corrupt(f"fingerprint {fingerprint[:12]}…", f"{str(header.get('fingerprint'))[:12]}…")
    sizes = {name: (dtype, 1) for name, dtype in (_PER_CLIP | _OPTIONAL).items()} | {"source": ("|u1", SOURCE_BYTES)}
    missing = [name for name in (*_PER_CLIP, "source", "ids", "ids_starts") if name not in found]
    if missing:
        raise corrupt("every column", f"no {', '.join(missing)}")
    count = found["status"].size
    for name, (dtype, width) in sizes.items():
        if name in found and (found[name].dtype != np.dtype(dtype) or found[name].size != count * width):
            raise corrupt(
                f"{count * width} items of {dtype} in {name}", f"{found[name].size} of {found[name].dtype.str}"
            )
    if found["ids"].dtype != np.dtype("|u1") or found["ids_starts"].dtype != np.dtype("<u4"):
        raise corrupt("ids as bytes", found["ids"].dtype.str)
    columns.check_texts(found, "ids", count, subject, NEXT_STEP)
    rows, row_bytes, file_bytes, reasons = (header.get(k) for k in ("shard_rows", "row_bytes", "file_bytes", "reasons"))
    if not _is_count(rows, MAX_SHARD_ROWS) or not 1 <= count <= rows:
        raise corrupt(f"1 to {MAX_SHARD_ROWS} rows a shard", f"{rows!r} with {count} clips")
    if not _is_count(row_bytes, MAX_ROW_BYTES):
        raise corrupt(f"rows of 1 to {MAX_ROW_BYTES} bytes", repr(row_bytes))
    sound = (
        isinstance(file_bytes, list) and len(file_bytes) in (1, 2) and all(_is_count(n, 1 << 62) for n in file_bytes)
    )
    if not sound:
        raise corrupt("one or two file sizes", repr(file_bytes))
    places = [found[name] for name in ("offset", "scales_offset", "length", "scales_length") if name in found]
    if any(int(column.max()) > max(file_bytes) for column in places):
        raise corrupt(f"rows inside files of {file_bytes} bytes", "places outside")
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise corrupt("a list of reasons", type(reasons).__name__)
    if found["reason"].max() >= len(reasons) or found["status"].max() > max(Status):
        raise corrupt("known reasons and statuses", "others")
    codec = header.get("codec")
    if not isinstance(codec, str):
        raise corrupt("a codec", repr(codec))
    return Record(shard, rows, fingerprint, codec, row_bytes, tuple(file_bytes), tuple(reasons), found)


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def clean_reason(reason: str) -> str:
    """One printable line of bounded length: reasons may quote media and file names."""
    line = "".join(char if char.isprintable() else " " for char in reason)
    return line if len(line) <= MAX_REASON_CHARACTERS else line[: MAX_REASON_CHARACTERS - 1] + "…"
