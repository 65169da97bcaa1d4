"""Commit records: the contents of a shard as a table with one line per slot and one column per attribute.

A shard is visible if and only if its commit record exists. A record is a file of `columns` with MAGIC; for n slots:

    id_hash u64[n] · ids bytes · ids_starts u32[n+1] · status u8[n] · crc32c u32[n] · absmax f32[n] · nan u32[n]
    reason u32[n] (into the header's "reasons") · source bytes[32 n]
    and if the format needs them: offset u64[n], length u64[n], packed_crc32c u32[n] · scales_crc32c u32[n], and
    scales_offset, scales_length, scales_packed_crc32c like those of tokens · error_rms, error_max, error_cosine f32[n]

This module reads no shard.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

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
class CommitRecord:
    """One commit record in memory. Its columns are views of the file's bytes."""

    shard: int
    shard_rows: int
    fingerprint: str
    codec: str
    """Compression of rows: "none" or the name of an archive codec."""
    row_bytes: int
    file_bytes: tuple[int, ...]
    """Size of each file of the shard: of tokens, and of scales if the feature is quantised."""
    reasons: tuple[str, ...]
    columns: Mapping[str, np.ndarray] = field(repr=False)

    def __len__(self) -> int:
        return self.columns["status"].size

    @functools.cached_property
    def _texts(self) -> tuple[memoryview, memoryview]:
        return self.columns["ids"].data, self.columns["ids_starts"].data  # indexed much faster than arrays

    def encoded_id(self, slot: int) -> bytes:
        text, starts = self._texts
        return text[starts[slot] : starts[slot + 1]].tobytes()

    def encoded_ids(self) -> Iterator[bytes]:
        return (self.encoded_id(slot) for slot in range(len(self)))

    def clip(self, slot: int) -> ClipRecord:
        """Return the record of the clip in one slot."""
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
        """Return the bytes of the file. Equal records give equal bytes."""
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
    """Collects the results of the slots of one shard, in any order."""

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
        self._header = (shard, shard_rows, fingerprint, codec, row_bytes)
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

    def set(
        self, slot: int, status: Status, source: str, reason: str = "", values: Mapping[str, float] | None = None
    ) -> None:
        """Set the result of one slot; `values` go to further columns.

        Raises:
            ValueError: the slot is decided or does not exist, or the source is neither 64 hex digits nor empty.
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
        for name, value in (values or {}).items():
            self._columns[name][slot] = value

    def subset(self, shard: int, slots: Sequence[int]) -> RecordBuilder:
        """Return a builder for another shard that holds these slots with their results, in this order."""
        encoded = [self.encoded_id(slot) for slot in slots]
        subset = RecordBuilder(shard, encoded, *self._header[1:])
        for name, column in self._columns.items():
            if name not in ("ids", "ids_starts"):
                subset._columns[name] = column.reshape(self.decided.size, -1)[slots].reshape(-1)
        subset._reasons = [self._reasons[slot] for slot in slots]
        subset.decided = self.decided[slots]
        return subset

    def encoded_id(self, slot: int) -> bytes:
        starts = self._columns["ids_starts"]
        return self._columns["ids"][starts[slot] : starts[slot + 1]].tobytes()

    def reason(self, slot: int) -> str:
        return self._reasons[slot]

    def column(self, name: str) -> np.ndarray:
        """Return a column that the caller may fill in."""
        return self._columns[name]

    def build(self, file_bytes: tuple[int, ...]) -> CommitRecord:
        """Return the finished record.

        Raises:
            ValueError: some slots are undecided.
        """
        if not self.decided.all():
            raise ValueError(f"{int((~self.decided).sum())} slots are undecided")
        reasons = tuple(sorted({"", *self._reasons}))
        numbers = {reason: number for number, reason in enumerate(reasons)}
        self._columns["reason"][:] = [numbers[reason] for reason in self._reasons]
        return CommitRecord(*self._header, file_bytes, reasons, self._columns)


def load_record(path: Path, shard: int, fingerprint: str) -> CommitRecord:
    """Read and check one commit record.

    Raises:
        CorruptStoreError: the file is damaged, or belongs to another shard or another spec.
        FileNotFoundError: the shard is not committed.
    """
    header, packed = columns.read(path, MAGIC, MAX_RECORD_BYTES, NEXT_STEP)
    return check_record(header, packed, str(path), shard, fingerprint)


def check_record(
    header: Mapping[str, Any], packed: Mapping[str, np.ndarray], subject: str, shard: int, fingerprint: str
) -> CommitRecord:
    """Return the record that the columns of a file form.

    Raises:
        CorruptStoreError: the columns contradict each other, or the shard and fingerprint of the file's location.
    """

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
    missing = [name for name in (*_PER_CLIP, "source", "ids", "ids_starts") if name not in packed]
    if missing:
        raise corrupt("every column", f"no {', '.join(missing)}")
    count = packed["status"].size
    for name, (dtype, width) in sizes.items():
        if name in packed and (packed[name].dtype != np.dtype(dtype) or packed[name].size != count * width):
            raise corrupt(
                f"{count * width} items of {dtype} in {name}", f"{packed[name].size} of {packed[name].dtype.str}"
            )
    if packed["ids"].dtype != np.dtype("|u1") or packed["ids_starts"].dtype != np.dtype("<u4"):
        raise corrupt("ids as bytes", packed["ids"].dtype.str)
    columns.check_texts(packed, "ids", count, subject, NEXT_STEP)
    rows, row_bytes, file_bytes, reasons = (
        header.get("shard_rows"),
        header.get("row_bytes"),
        header.get("file_bytes"),
        header.get("reasons"),
    )
    if not _is_count(rows, MAX_SHARD_ROWS) or not 1 <= count <= rows:
        raise corrupt(f"1 to {MAX_SHARD_ROWS} rows per shard", f"{rows!r} with {count} clips")
    if not _is_count(row_bytes, MAX_ROW_BYTES):
        raise corrupt(f"rows of 1 to {MAX_ROW_BYTES} bytes", repr(row_bytes))
    if not _are_file_sizes(file_bytes):
        raise corrupt("one or two file sizes", repr(file_bytes))
    positions = [packed[name] for name in ("offset", "scales_offset", "length", "scales_length") if name in packed]
    if any(int(column.max()) > max(file_bytes) for column in positions):
        raise corrupt(f"rows inside files of {file_bytes} bytes", "places outside")
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise corrupt("a list of reasons", type(reasons).__name__)
    if packed["reason"].max() >= len(reasons) or packed["status"].max() > max(Status):
        raise corrupt("known reasons and statuses", "others")
    codec = header.get("codec")
    if not isinstance(codec, str):
        raise corrupt("a codec", repr(codec))
    return CommitRecord(shard, rows, fingerprint, codec, row_bytes, tuple(file_bytes), tuple(reasons), packed)


def _is_count(value: object, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _are_file_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) in (1, 2) and all(_is_count(size, 1 << 62) for size in value)


def clean_reason(reason: str) -> str:
    """Return a reason as one printable line of bounded length; reasons may quote media metadata and file names."""
    line = "".join(char if char.isprintable() else " " for char in reason)
    return line if len(line) <= MAX_REASON_CHARACTERS else line[: MAX_REASON_CHARACTERS - 1] + "…"
