"""The index of one feature: coordinates of every clip with tokens, made from the store alone.

Its files (`index_files`) are a function of the store's bytes: a file of coordinates is named by the checksum of its
shard's commit record, so a repaired or retried shard is another file, and the space is fitted to clips that only the
number and order of clips decide. So an index that grew with its store equals one that is made at once. `update`
computes what is missing or damaged and drops what is left over.

Shapes: n clips of a shard, N clips of the feature, W width of a summary, R axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import google_crc32c
import numpy as np

from featurecache.errors import CorruptStoreError, StoreError
from featurecache.explore.index_files import NEXT_STEP, SPACE, VECTORS, IndexFiles, index_files
from featurecache.explore.projection import NUM_FITTED, Space, summarise
from featurecache.store.copying import empty
from featurecache.store.feature import StoredFeature

MAX_KEPT = 16_384
"""Up to so many clips the first pass keeps all summaries, fits the space to them and reads nothing twice."""
READ_BYTES = 8 << 20
"""Tokens read at a time; one part is summarised while the next is read."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class IndexedShard:
    """Clips of one committed shard that have tokens and were not superseded by a retry."""

    name: str
    """Of the file of their coordinates."""
    ids: list[str]


@dataclass
class Checked:
    """What one look at the files of an index gave."""

    coordinates: dict[str, np.ndarray] = field(default_factory=dict)
    """Name of a shard's file -> (n, R) float32."""
    missing: list[IndexedShard] = field(default_factory=list)
    """Shards without sound coordinates."""
    damaged: list[CorruptStoreError] = field(default_factory=list)


class FeatureIndex:
    """Coordinates of one feature's clips."""

    def __init__(self, feature: StoredFeature, files: IndexFiles) -> None:
        self.feature, self.files = feature, files
        self.shards = indexed_shards(feature)
        self._fitted_to = fitting_set(feature)
        self.damaged: list[CorruptStoreError] = []
        """Files that contradict their checksum, as far as they were read; `update` makes them anew."""
        self.space = self._load_space()

    def _load_space(self) -> Space | None:
        """The space that belongs to these clips and this fingerprint; None where there is none, or a damaged one."""
        try:
            header, arrays = self.files.load(self._name(SPACE))
        except FileNotFoundError:
            return None
        except CorruptStoreError as error:
            self.damaged.append(error)
            return None
        if header.get("fitted_to") != self._fitted_to[1] or header.get("fingerprint") != self.feature.fingerprint:
            return None
        mean, deviations, axes = (
            arrays[name].copy() for name in ("mean", "deviations", "axes")
        )  # writable, for tensors
        return Space(mean, axes.reshape(mean.size, -1), deviations, header["num_fitted"])

    def check(self) -> Checked:
        """Read every file of coordinates and compare checksums."""
        checked = Checked()
        for shard in self.shards:
            try:
                checked.coordinates[shard.name] = self._load_coordinates(shard)
            except FileNotFoundError:
                checked.missing.append(shard)
            except CorruptStoreError as error:
                checked.missing.append(shard)
                checked.damaged.append(error)
        return checked

    def update(self, progress: Progress = lambda done, total: None) -> int:
        """Bring the index up to the store; returns of how many clips coordinates were computed.

        What the disk does not take is kept in memory; `files.refused` says why.

        Raises:
            StoreError: fewer than two clips, or clips that are all equal.
            CorruptStoreError: the store's bytes contradict their checksum.
            WriteError: another process is writing this index.
        """
        with self.files.sole_writer(self.feature.name):
            return self._update(progress)

    def _update(self, progress: Progress) -> int:
        summaries: dict[str, np.ndarray] = {}
        if self.space is None:
            self.files.remove(self._name(VECTORS))
            if len(self.feature) <= MAX_KEPT:
                summaries = {shard.name: self._summaries(shard.ids) for shard in self.shards}
            self.space = self._fit(summaries)
        checked = self.check()
        self.files.damaged += [*self.damaged, *checked.damaged]
        self.damaged = []
        total = sum(len(shard.ids) for shard in checked.missing)
        done = 0
        if total:
            progress(0, total)
        for shard in checked.missing:
            coordinates = self._compute(shard, summaries, lambda count, done=done: progress(done + count, total))
            stated = {"fitted_to": self._fitted_to[1], "num_axes": self.space.num_axes}
            self.files.keep(self._path(shard), stated, {"coordinates": _halves(coordinates)})
            done += len(coordinates)
            progress(done, total)
        self._remove_leftovers()
        return total

    def _remove_leftovers(self) -> None:
        """Remove what no committed shard accounts for, and what killed processes left."""
        wanted = {self._path(shard) for shard in self.shards} | {self._name(SPACE)}
        for folder in (self.feature.name, self._name(VECTORS)):
            self.files.sweep(folder)
            for name in self.files.names(folder):
                if f"{folder}/{name}" not in wanted:
                    self.files.remove(f"{folder}/{name}")

    def _fit(self, summaries: Mapping[str, np.ndarray]) -> Space:
        """Fit a space to the clips that it belongs to and write it."""
        ids, fitted_to = self._fitted_to
        if summaries:
            rows = {
                clip_id: row
                for shard in self.shards
                for clip_id, row in zip(shard.ids, summaries[shard.name], strict=True)
            }
            fitted = np.stack([rows[clip_id] for clip_id in ids]) if ids else np.zeros((0, 1), np.float32)
        else:
            fitted = self._summaries(ids)
        try:
            space = Space.fit(fitted)
        except ValueError as error:
            raise StoreError(
                self.feature.subject,
                got=f"{error}, got {len(self.feature)}",
                next_step="Extract more clips, or choose other features with --feature.",
            ) from error
        stated = {"fingerprint": self.feature.fingerprint, "fitted_to": fitted_to, "num_fitted": space.num_fitted}
        arrays = {"mean": space.mean, "deviations": space.deviations, "axes": space.axes.reshape(-1)}
        self.files.keep(self._name(SPACE), stated, arrays)
        return space

    def _compute(
        self, shard: IndexedShard, summaries: Mapping[str, np.ndarray], progress: Callable[[int], None]
    ) -> np.ndarray:
        """(n, R) of one shard."""
        space = self.require_space()
        if shard.name in summaries:
            return space.coordinates(summaries[shard.name])
        coordinates = np.empty((len(shard.ids), space.num_axes), np.float32)
        done = 0
        for tokens in self._read(shard.ids):
            coordinates[done : done + len(tokens)] = space.coordinates(summarise(tokens))
            done += len(tokens)
            progress(done)
        return coordinates

    def _summaries(self, ids: Sequence[str]) -> np.ndarray:
        width = 2 * self.feature.shape[1]
        parts = [summarise(tokens) for tokens in self._read(ids)]
        return np.concatenate(parts) if parts else np.zeros((0, width), np.float32)

    def _read(self, ids: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield (B, K, D) of these clips, read ahead by one thread into two buffers."""
        feature = self.feature
        row_bytes = feature.shape[0] * feature.shape[1] * feature.dtype.itemsize
        size = max(1, READ_BYTES // row_bytes)
        groups = [ids[begin : begin + size] for begin in range(0, len(ids), size)]
        buffers = [empty((size, *feature.shape), feature.dtype) for _ in range(2)]

        def read(number: int) -> np.ndarray:
            return feature.read(groups[number], out=buffers[number % 2][: len(groups[number])])

        with ThreadPoolExecutor(1, "similarity-read") as pool:
            ahead = pool.submit(read, 0) if groups else None
            for number in range(len(groups)):
                tokens = ahead.result()  # type: ignore[union-attr]
                if number + 1 < len(groups):
                    ahead = pool.submit(read, number + 1)
                yield tokens

    def coordinates(self) -> tuple[list[str], np.ndarray]:
        """Ids of all clips with tokens, in row order, and their coordinates (N, R).

        Raises:
            StoreError: there is no index, or it does not cover the store.
            CorruptStoreError: a file of it contradicts its checksum.
        """
        space = self.require_space()
        checked = self.check()
        if checked.damaged:
            raise checked.damaged[0]
        if checked.missing:
            raise StoreError(
                self._subject,
                expected=f"coordinates of {len(self.shards)} shards",
                got=f"{len(checked.missing)} without",
                next_step="Run `fcache index`.",
            )
        ids = [clip_id for shard in self.shards for clip_id in shard.ids]
        parts = [checked.coordinates[shard.name] for shard in self.shards]
        return ids, np.concatenate(parts) if parts else np.zeros((0, space.num_axes), np.float32)

    def vectors(self, comparison: str) -> tuple[list[str], np.ndarray]:
        """Ids of all clips with tokens, in row order, and their vectors (N, R) of length 1; raises as `coordinates`."""
        ids, coordinates = self.coordinates()
        return ids, self.require_space().unit(coordinates, comparison)

    def _load_coordinates(self, shard: IndexedShard) -> np.ndarray:
        """(n, R) of one shard.

        Raises:
            FileNotFoundError: there is no file of them, or one of another space.
            CorruptStoreError: its bytes contradict their checksum, or the shard.
        """
        name, shape = self._path(shard), (len(shard.ids), self.require_space().num_axes)
        header, arrays = self.files.load(name)
        if header.get("fitted_to") != self._fitted_to[1]:
            raise FileNotFoundError(name)
        halves = arrays["coordinates"]
        if halves.size != shape[0] * shape[1]:
            raise CorruptStoreError(
                str(self.files.root / name),
                expected=f"{shape[0]} × {shape[1]} numbers",
                got=str(halves.size),
                next_step=NEXT_STEP,
            )
        return halves.view(np.float16).reshape(shape).astype(np.float32)

    def project(self, tokens: np.ndarray, comparison: str) -> np.ndarray:
        """(B, K, D) tokens of this feature's spec -> (B, R) vectors of length 1."""
        return self.require_space().project(summarise(tokens), comparison)

    def require_space(self) -> Space:
        """The space of this index.

        Raises:
            CorruptStoreError: its file contradicts its checksum.
            StoreError: there is no index of this fingerprint and these clips.
        """
        if self.space is None:
            if self.damaged:
                raise self.damaged[0]
            other = self.files.has(self._name(SPACE))
            raise StoreError(
                self._subject,
                expected=f"an index of fingerprint {self.feature.fingerprint[:12]}… and its clips",
                got="one of another fingerprint, or of fewer clips" if other else "none",
                next_step="Run `fcache index`.",
            )
        return self.space

    @property
    def _subject(self) -> str:
        return str(self.files.root / self.feature.name)

    def _name(self, last: str) -> str:
        return f"{self.feature.name}/{last}"

    def _path(self, shard: IndexedShard) -> str:
        return self._name(f"{VECTORS}/{shard.name}")


def indexed_shards(feature: StoredFeature) -> list[IndexedShard]:
    """Every committed shard; its file's name changes with its record, and when a retry supersedes one of its clips."""
    found = []
    for record, slots in zip(feature.committed, feature.ok_slots(), strict=True):
        digest = google_crc32c.extend(google_crc32c.value(record.pack()), slots.astype("<u4").tobytes())
        ids = [record.encoded_id(slot).decode() for slot in slots.tolist()]
        found.append(IndexedShard(f"{record.shard:08d}-{digest:08x}", ids))
    return found


def fitting_set(feature: StoredFeature) -> tuple[list[str], str]:
    """Ids of the clips that the space of a feature is fitted to, and a digest of them and their tokens.

    They are spread over the first 2^k or 1.5 · 2^k clips, as many as the feature has: a store that grows keeps its
    space until it has a third or a half more clips.
    """
    count = len(feature)
    power = 1 << max(0, count.bit_length() - 1)
    first = power + power // 2 if count >= power + power // 2 else power
    ids = feature.ids
    places = np.unique(np.linspace(0, first - 1, min(NUM_FITTED, first)).astype(int)) if count else []
    chosen = [ids[int(place)] for place in places]
    digest = 0
    for clip_id in chosen:
        record = feature.record(clip_id)
        assert record is not None
        digest = google_crc32c.extend(digest, f"{clip_id}\0{record.crc32c:08x}\0".encode())
    return chosen, f"{len(chosen)} clips, crc32c {digest:08x}"


def open_index(feature: StoredFeature, files: IndexFiles | None = None) -> FeatureIndex:
    """Open the index of a feature, there or not."""
    return FeatureIndex(feature, files or index_files(feature.location))


def _halves(coordinates: np.ndarray) -> np.ndarray:
    """(n, R) -> (n · R) bits of float16, which holds coordinates exactly: they are rounded to its precision."""
    return np.ascontiguousarray(coordinates, np.float16).reshape(-1).view("<u2")
