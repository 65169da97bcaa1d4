"""Lookup of clips by id in all commit records of a feature, without one Python object per clip.

An entry is one slot of one record; entries are numbered in (shard, slot) order. Ids are found through sorted 64-bit
hashes and then compared in full, so a hash collision costs only time. If several shards hold a clip (it was retried),
the entry in the highest shard is valid and the others are superseded. One million clips take about 100 MB and half a
second.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from featurecache.store.layout import id_hash
from featurecache.store.protocols import Status
from featurecache.store.records import CommitRecord


class Catalogue:
    """The commit records of one feature, by shard. The lookup tables are rebuilt lazily after `add`."""

    def __init__(self, records: Sequence[CommitRecord] = ()) -> None:
        self._records = {record.shard: record for record in records}
        self._built = False

    def add(self, record: CommitRecord) -> None:
        self._records[record.shard] = record
        self._built = False

    def __contains__(self, shard: int) -> bool:
        return shard in self._records

    @property
    def shards(self) -> list[int]:
        """Numbers of committed shards, sorted."""
        return sorted(self._records)

    @property
    def records(self) -> list[CommitRecord]:
        """Records in the order of shard numbers; `locate` returns indices of this list."""
        self._build()
        return self._ordered

    def _build(self) -> None:
        if self._built:
            return
        self._ordered = [self._records[shard] for shard in sorted(self._records)]
        self._starts = np.zeros(len(self._ordered) + 1, np.int64)
        np.cumsum([len(record) for record in self._ordered], out=self._starts[1:])
        self._begins: list[int] = self._starts.tolist()
        hashes = np.concatenate([record.columns["id_hash"] for record in self._ordered] or [np.zeros(0, "<u8")])
        self._order = np.argsort(hashes, kind="stable").astype(np.uint32)
        self._hashes = hashes[self._order]
        self._superseded = self._find_superseded()
        self._statuses = np.concatenate([record.columns["status"] for record in self._ordered] or [np.zeros(0, "|u1")])
        self._ok = self._statuses == Status.OK
        self._built = True

    def _find_superseded(self) -> np.ndarray:
        """Return (entries,) bool: whether a later shard holds the same clip. Only equal hashes need a loop."""
        superseded = np.zeros(self._hashes.size, bool)
        repeated = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        for hashed in np.unique(self._hashes[repeated]):
            begin, end = (
                np.searchsorted(self._hashes, [hashed], "left")[0],
                np.searchsorted(self._hashes, [hashed], "right")[0],
            )
            latest: dict[bytes, int] = {}
            for entry in self._order[begin:end].tolist():  # ascending: the sort is stable
                encoded = self.encoded_id(entry)
                if encoded in latest:
                    superseded[latest[encoded]] = True
                latest[encoded] = entry
        return superseded

    def locate_all(self, entries: Sequence[int]) -> list[tuple[int, int]]:
        """Like `locate`, for many entries at once."""
        self._build()
        indices = np.searchsorted(self._starts, entries, "right") - 1
        slots = np.asarray(entries, np.int64) - self._starts[indices]
        return list(zip(indices.tolist(), slots.tolist(), strict=True))

    def locate(self, entry: int) -> tuple[int, int]:
        """Return (index of the record in `records`, slot) of an entry."""
        index = bisect.bisect_right(self._begins, entry) - 1
        return index, entry - self._begins[index]

    def encoded_id(self, entry: int) -> bytes:
        index, slot = self.locate(entry)
        return self._ordered[index].encoded_id(slot)

    def find(self, ids: Sequence[str]) -> list[int]:
        """Return the valid entry of each clip, -1 if no record holds it."""
        self._build()
        if not self._hashes.size:
            return [-1] * len(ids)
        encoded = [clip_id.encode("utf-8", "surrogatepass") for clip_id in ids]
        hashes = np.array([id_hash(data) for data in encoded], np.uint64)
        begins = self._hashes.searchsorted(hashes)
        entries = self._order[np.minimum(begins, self._hashes.size - 1)].tolist()  # the first entry with this hash
        indices = self.locate_all(entries)
        return [
            entry
            if self._ordered[index].encoded_id(slot) == data and not self._superseded[entry]
            else self._find_among_equal_hashes(begin, hashed, data)
            for entry, (index, slot), begin, hashed, data in zip(
                entries, indices, begins.tolist(), hashes, encoded, strict=True
            )
        ]

    def _find_among_equal_hashes(self, begin: int, hashed: np.uint64, encoded: bytes) -> int:
        """Return the valid entry of an id among the entries with its hash, which begin at `begin`; -1 if none."""
        while begin < self._hashes.size and self._hashes[begin] == hashed:
            entry = int(self._order[begin])
            if not self._superseded[entry] and self.encoded_id(entry) == encoded:
                return entry
            begin += 1
        return -1

    def statuses(self, ids: Sequence[str]) -> np.ndarray:
        """Return (ids,) int8: the `Status` of each clip, -1 if no record holds it."""
        entries = np.asarray(self.find(ids), np.int64)
        statuses = np.full(entries.size, -1, np.int8)
        statuses[entries >= 0] = self._statuses[entries[entries >= 0]]
        return statuses

    def current(self) -> Iterator[tuple[int, int]]:
        """Yield (record index, slot) of every clip's valid entry, in row order."""
        self._build()
        for index, record in enumerate(self._ordered):
            begin = int(self._starts[index])
            valid_slots = np.flatnonzero(~self._superseded[begin : begin + len(record)])
            yield from ((index, slot) for slot in valid_slots.tolist())

    def ok_entries(self) -> np.ndarray:
        """Return the valid entries that have tokens, in row order."""
        self._build()
        return np.flatnonzero(self._ok & ~self._superseded)

    def ok_slots(self) -> list[np.ndarray]:
        """Return per record, in shard order, the slots with tokens that are not superseded."""
        entries = self.ok_entries()
        by_record = np.split(entries, np.searchsorted(entries, self._starts[1:-1])) if self._ordered else []
        return [entries - begin for entries, begin in zip(by_record, self._starts, strict=False)]

    def all_ok(self, entries: Sequence[int]) -> bool:
        """Return whether all these entries exist and have tokens."""
        return not entries or (min(entries) >= 0 and bool(self._ok[entries].all()))

    def counts(self) -> dict[Status, int]:
        """Return the number of clips per status."""
        self._build()
        return {status: int(((self._statuses == status) & ~self._superseded).sum()) for status in Status}


class ClipIds(Sequence[str]):
    """The ids of some entries, decoded on access."""

    def __init__(self, catalogue: Catalogue, entries: np.ndarray) -> None:
        self._catalogue = catalogue
        self._entries = entries

    def __len__(self) -> int:
        return self._entries.size

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._catalogue.encoded_id(entry).decode() for entry in self._entries[index].tolist()]
        return self._catalogue.encoded_id(int(self._entries[index])).decode()

    def __iter__(self) -> Iterator[str]:
        return (self._catalogue.encoded_id(entry).decode() for entry in self._entries.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # a list is not hashable either

    def __repr__(self) -> str:
        return f"<{len(self)} clip ids>"
