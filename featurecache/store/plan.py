"""The plan of a feature: which clips lie in which slots of which shards, decided before anything is encoded.

A plan is a row of segments, each published once and never changed. A segment holds a run of shards; it starts on a
fresh one, and all its shards but the last are full. A worker that loses the race to publish a segment reads the
winner's and plans what is still missing, so any number of workers with one clip list arrive at one plan. A segment is
packed by `columns` under MAGIC: counts u32[shards] · ids bytes · ids_starts u32[n+1]. It knows no record and no shard.
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
class Segment:
    """Shards planned together."""

    number: int
    first_shard: int
    shard_rows: int
    codec: str
    """How rows are compressed: "none" or the name of an archive codec."""
    counts: np.ndarray
    """Clips of each shard, u32."""
    ids: np.ndarray
    ids_starts: np.ndarray

    @property
    def end_shard(self) -> int:
        return self.first_shard + self.counts.size

    @property
    def num_clips(self) -> int:
        return self.ids_starts.size - 1

    def encoded_ids(self, first: int = 0, last: int | None = None) -> list[bytes]:
        """Ids of a range of the segment's clips."""
        data = self.ids.tobytes() if last is None else self.ids
        starts = self.ids_starts[first : (self.num_clips if last is None else last) + 1].tolist()
        return [bytes(data[begin:end]) for begin, end in itertools.pairwise(starts)]

    def shards(self) -> Iterator[tuple[int, int, int]]:
        """(number, first clip, last clip + 1) of each shard."""
        ends = np.cumsum(self.counts.astype(np.int64)).tolist()
        begin = 0
        for offset, end in enumerate(ends):
            yield self.first_shard + offset, begin, end
            begin = end

    def pack(self) -> bytes:
        """The file. Equal segments give equal bytes."""
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
) -> Segment:
    """Divide clips over fresh shards, in order."""
    if counts is None:
        whole, rest = divmod(len(encoded_ids), shard_rows)
        counts = [shard_rows] * whole + [rest] * (rest > 0)
    ids, starts = columns.pack_texts(encoded_ids)
    return Segment(number, first_shard, shard_rows, codec, np.array(counts, "<u4"), ids, starts)


def publish_segment(folder: FeatureFolder, segment: Segment) -> bool:
    """Publish; False where another worker published this number first."""
    return publish_bytes(folder.segment(segment.number), segment.pack(), folder.temporary)


def load_segment(path: Path, number: int | None) -> Segment:
    """Read and check one segment; `number` None takes the one it states, for repair.

    Raises:
        CorruptStoreError: damaged or contradicting itself.
    """
    header, found = columns.read(path, MAGIC, MAX_SEGMENT_BYTES, NEXT_STEP)

    def corrupt(expected: str, got: object) -> CorruptStoreError:
        return CorruptStoreError(str(path), expected=expected, got=str(got), next_step=NEXT_STEP)

    expected = {"counts": "<u4", "ids": "|u1", "ids_starts": "<u4"}
    if any(name not in found or found[name].dtype != np.dtype(dtype) for name, dtype in expected.items()):
        raise corrupt(", ".join(expected), ", ".join(found))
    first, rows, codec = header.get("first_shard"), header.get("shard_rows"), header.get("codec")
    if header.get("format") != STORE_FORMAT:
        raise corrupt(f"format {STORE_FORMAT}", repr(header.get("format")))
    if number is None and isinstance(header.get("number"), int):
        number = header["number"]
    if number is None or header.get("number") != number:
        raise corrupt(f"segment {number}", f"segment {header.get('number')!r}")
    if not isinstance(first, int) or not 0 <= first <= MAX_SHARDS or found["counts"].size > MAX_SHARDS:
        raise corrupt(f"at most {MAX_SHARDS} shards", f"first shard {first!r} of {found['counts'].size}")
    if not isinstance(rows, int) or not 1 <= rows <= MAX_SHARD_ROWS:
        raise corrupt(f"1 to {MAX_SHARD_ROWS} rows a shard", repr(rows))
    if not isinstance(codec, str):
        raise corrupt("a codec", repr(codec))
    counts = found["counts"]
    if counts.size and int(counts.max()) > rows:
        raise corrupt(f"at most {rows} clips a shard", int(counts.max()))
    columns.check_texts(found, "ids", int(counts.sum(dtype=np.int64)), str(path), NEXT_STEP)
    return Segment(number, first, rows, codec, counts, found["ids"], found["ids_starts"])


class Plan:
    """Every segment of a feature, read as they appear."""

    def __init__(self, folder: FeatureFolder) -> None:
        self._folder = folder
        self.segments: list[Segment] = []
        self.refresh()

    def refresh(self) -> None:
        """Read the segments published since.

        Raises:
            CorruptStoreError: a segment is damaged, missing in between, or overlaps the one before.
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
        """Number of the first shard that is not planned."""
        return self.segments[-1].end_shard if self.segments else 0

    @property
    def num_rows(self) -> int:
        """Length N of the array: rows up to the last planned clip, gaps at the ends of segments included."""
        for segment in reversed(self.segments):
            if segment.counts.size:
                return (segment.end_shard - 1) * segment.shard_rows + int(segment.counts[-1])
        return 0

    def shards(self) -> Iterator[tuple[Segment, int, int, int]]:
        """(segment, number, first clip, last clip + 1) of every planned shard that holds clips."""
        for segment in self.segments:
            for number, begin, end in segment.shards():
                if end > begin:
                    yield segment, number, begin, end
