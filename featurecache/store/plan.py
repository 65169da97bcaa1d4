"""The shard plan of a feature: which clip has which slot of which shard. It is made before anything is encoded.

A plan is a sequence of segments. A segment is published once and never changed. It holds consecutive new shards, all
full except the last. If two workers publish a segment at the same time, the slower one reads the segment of the faster
one and plans the clips that are still missing, so all workers with the same clip list get the same plan.

A segment is a file of `columns` with MAGIC: counts u32[shards] · ids bytes · ids_starts u32[n+1]. This module knows no
commit record and no shard file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featurecache.errors import CorruptStoreError
from featurecache.files.publish import publish_bytes
from featurecache.store import columns
from featurecache.store.layout import MAX_SHARD_ROWS, MAX_SHARDS, SEGMENT_DIGITS, STORE_FORMAT, FeatureFolder, numbered

MAGIC = b"FCPLAN01"
MAX_SEGMENT_BYTES = 4 << 30
NEXT_STEP = "Run `fcache repair` to rebuild it from the commit records."


@dataclass(frozen=True)
class PlanSegment:
    """Consecutive shards that were planned together: one file of the plan."""

    number: int
    first_shard: int
    shard_rows: int
    codec: str
    """Compression of rows: "none" or the name of an archive codec."""
    counts: np.ndarray
    """(shards,) u32: number of clips per shard."""
    ids: np.ndarray
    ids_starts: np.ndarray

    @property
    def end_shard(self) -> int:
        return self.first_shard + self.counts.size

    @property
    def num_clips(self) -> int:
        return self.ids_starts.size - 1

    def encoded_ids(self, first: int = 0, last: int | None = None) -> list[bytes]:
        """Return the ids of the clips [first, last) of the segment, by default of all."""
        data = self.ids.tobytes() if last is None else self.ids
        starts = self.ids_starts[first : (self.num_clips if last is None else last) + 1].tolist()
        return [bytes(data[begin:end]) for begin, end in itertools.pairwise(starts)]

    def shards(self) -> Iterator[tuple[int, int, int]]:
        """Yield (number, first clip, last clip + 1) per shard."""
        ends = np.cumsum(self.counts.astype(np.int64)).tolist()
        begin = 0
        for offset, end in enumerate(ends):
            yield self.first_shard + offset, begin, end
            begin = end

    def pack(self) -> bytes:
        """Return the bytes of the file. Equal segments give equal bytes."""
        header = {
            "format": STORE_FORMAT,
            "number": self.number,
            "first_shard": self.first_shard,
            "shard_rows": self.shard_rows,
            "codec": self.codec,
        }
        return columns.pack(MAGIC, header, {"counts": self.counts, "ids": self.ids, "ids_starts": self.ids_starts})


def make_segment(
    number: int,
    first_shard: int,
    shard_rows: int,
    codec: str,
    encoded_ids: list[bytes],
    counts: Sequence[int] | None = None,
) -> PlanSegment:
    """Return a segment that assigns clips to new shards in order, by default `shard_rows` clips per shard."""
    if counts is None:
        num_full, num_left = divmod(len(encoded_ids), shard_rows)
        counts = [shard_rows] * num_full + [num_left] * (num_left > 0)
    ids, starts = columns.pack_texts(encoded_ids)
    return PlanSegment(number, first_shard, shard_rows, codec, np.array(counts, "<u4"), ids, starts)


def publish_segment(folder: FeatureFolder, segment: PlanSegment) -> bool:
    """Publish a segment. Return False if another worker has published a segment of this number."""
    return publish_bytes(folder.segment(segment.number), segment.pack(), folder.temporary)


def load_segment(path: Path, number: int | None) -> PlanSegment:
    """Read and check one segment. With `number` None, any number that the file states is accepted (for repair).

    Raises:
        CorruptStoreError: the file is damaged or inconsistent.
    """
    header, packed = columns.read(path, MAGIC, MAX_SEGMENT_BYTES, NEXT_STEP)

    def corrupt(expected: str, got: object) -> CorruptStoreError:
        return CorruptStoreError(str(path), expected=expected, got=str(got), next_step=NEXT_STEP)

    expected = {"counts": "<u4", "ids": "|u1", "ids_starts": "<u4"}
    if any(name not in packed or packed[name].dtype != np.dtype(dtype) for name, dtype in expected.items()):
        raise corrupt(", ".join(expected), ", ".join(packed))
    first, rows, codec = header.get("first_shard"), header.get("shard_rows"), header.get("codec")
    if header.get("format") != STORE_FORMAT:
        raise corrupt(f"format {STORE_FORMAT}", repr(header.get("format")))
    if number is None and isinstance(header.get("number"), int):
        number = header["number"]
    if number is None or header.get("number") != number:
        raise corrupt(f"segment {number}", f"segment {header.get('number')!r}")
    if not isinstance(first, int) or not 0 <= first <= MAX_SHARDS or packed["counts"].size > MAX_SHARDS:
        raise corrupt(f"at most {MAX_SHARDS} shards", f"first shard {first!r} of {packed['counts'].size}")
    if not isinstance(rows, int) or not 1 <= rows <= MAX_SHARD_ROWS:
        raise corrupt(f"1 to {MAX_SHARD_ROWS} rows per shard", repr(rows))
    if not isinstance(codec, str):
        raise corrupt("a codec", repr(codec))
    counts = packed["counts"]
    if counts.size and int(counts.max()) > rows:
        raise corrupt(f"at most {rows} clips per shard", int(counts.max()))
    columns.check_texts(packed, "ids", int(counts.sum(dtype=np.int64)), str(path), NEXT_STEP)
    return PlanSegment(number, first, rows, codec, counts, packed["ids"], packed["ids_starts"])


class ShardPlan:
    """All segments of a feature."""

    def __init__(self, folder: FeatureFolder) -> None:
        self._folder = folder
        self.segments: list[PlanSegment] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the segments that were published since the last call.

        Raises:
            CorruptStoreError: a segment is damaged or missing, or overlaps the previous one.
        """
        for number in numbered(self._folder.plan, SEGMENT_DIGITS)[len(self.segments) :]:
            path = self._folder.segment(number)
            if number != len(self.segments):
                raise CorruptStoreError(
                    str(path), expected=f"segment {len(self.segments)} before it", got="none", next_step=NEXT_STEP
                )
            segment = load_segment(path, number)
            if self.segments and (
                segment.first_shard < self.end_shard or segment.shard_rows != self.segments[0].shard_rows
            ):
                rows = self.segments[0].shard_rows
                raise CorruptStoreError(
                    str(path),
                    expected=f"shards from {self.end_shard}, {rows} rows each",
                    got=f"from {segment.first_shard}, {segment.shard_rows} rows each",
                    next_step=NEXT_STEP,
                )
            self.segments.append(segment)

    @property
    def end_shard(self) -> int:
        """Number of the first shard after the planned ones."""
        return self.segments[-1].end_shard if self.segments else 0

    @property
    def num_rows(self) -> int:
        """Length N of the array: rows up to the last planned clip, including the gaps after short shards."""
        for segment in reversed(self.segments):
            if segment.counts.size:
                return (segment.end_shard - 1) * segment.shard_rows + int(segment.counts[-1])
        return 0

    def shards(self) -> Iterator[tuple[PlanSegment, int, int, int]]:
        """Yield (segment, number, first clip, last clip + 1) per planned shard that holds clips."""
        for segment in self.segments:
            for number, begin, end in segment.shards():
                if end > begin:
                    yield segment, number, begin, end
