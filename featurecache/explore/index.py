"""Similarity index of one feature: the coordinates of every clip with tokens, derived from the store only.

The files of an index (`index_files`) are a function of the store's bytes. A coordinates file is named by the checksum
of its shard's commit record, so a repaired or retried shard gets another file. The projection is fitted to clips that
depend only on the number and order of clips. So an index that grew with its store equals one made at once. `update`
computes missing and damaged files and removes leftover ones.

Shapes: n clips of a shard, N clips of the feature, W width of a summary, R axes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import google_crc32c
import numpy as np

from featurecache.errors import CorruptStoreError, StoreError
from featurecache.explore.index_files import NEXT_STEP, PROJECTION, VECTORS, IndexFiles, index_files
from featurecache.explore.projection import NUM_FITTED, Projection, summarise
from featurecache.store.copying import empty
from featurecache.store.feature import StoredFeature

MAX_SUMMARIES = 16_384
"""Up to so many clips, all summaries stay in memory, so the first update reads every clip only once."""
READ_BYTES = 8 << 20
"""Tokens per read; one group of clips is summarised while the next is read."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class IndexedShard:
    """The clips of one committed shard that have tokens and that no retry superseded."""

    name: str
    """Name of the coordinates file."""
    ids: list[str]


@dataclass
class IndexCheck:
    """Result of reading all coordinates files of an index."""

    coordinates: dict[str, np.ndarray] = field(default_factory=dict)
    """(n, R) float32 by name of the file."""
    missing: list[IndexedShard] = field(default_factory=list)
    """Shards whose coordinates file is missing or damaged."""
    damaged: list[CorruptStoreError] = field(default_factory=list)


class FeatureIndex:
    """Projection and coordinates of one feature."""

    def __init__(self, feature: StoredFeature, files: IndexFiles) -> None:
        self.feature, self.files = feature, files
        self.shards = indexed_shards(feature)
        self._fit_ids, self._fit_digest = fitting_set(feature)
        self.damaged: list[CorruptStoreError] = []
        """Errors of damaged files that were read so far; `update` makes the files again."""
        self.projection = self._load_projection()

    def _load_projection(self) -> Projection | None:
        """Return the projection of this fingerprint and these clips; None if its file is missing, damaged or older."""
        try:
            header, arrays = self.files.load(self._name(PROJECTION))
        except FileNotFoundError:
            return None
        except CorruptStoreError as error:
            self.damaged.append(error)
            return None
        if header.get("fitted_to") != self._fit_digest or header.get("fingerprint") != self.feature.fingerprint:
            return None
        # Copied, because torch needs writable arrays.
        mean, deviations, axes = (arrays[name].copy() for name in ("mean", "deviations", "axes"))
        return Projection(mean, axes.reshape(mean.size, -1), deviations, header["num_fitted"])

    def check(self) -> IndexCheck:
        """Read every coordinates file and verify its checksum."""
        check = IndexCheck()
        for shard in self.shards:
            try:
                check.coordinates[shard.name] = self._load_coordinates(shard)
            except FileNotFoundError:
                check.missing.append(shard)
            except CorruptStoreError as error:
                check.missing.append(shard)
                check.damaged.append(error)
        return check

    def update(self, progress: Progress = lambda done, total: None) -> int:
        """Make the index complete for its store; return the number of clips whose coordinates were computed.

        A file that cannot be written is kept in memory; `files.refused` holds the error.

        Raises:
            StoreError: fewer than two clips, or all clips are equal.
            CorruptStoreError: the store's bytes contradict their checksum.
            WriteError: another process is writing this index.
        """
        with self.files.sole_writer(self.feature.name):
            return self._update(progress)

    def _update(self, progress: Progress) -> int:
        summaries: dict[str, np.ndarray] = {}
        if self.projection is None:
            self.files.remove(self._name(VECTORS))
            if len(self.feature) <= MAX_SUMMARIES:
                summaries = {shard.name: self._summaries(shard.ids) for shard in self.shards}
            self.projection = self._fit(summaries)
        check = self.check()
        self.files.damaged += [*self.damaged, *check.damaged]
        self.damaged = []
        total = sum(len(shard.ids) for shard in check.missing)
        done = 0
        if total:
            progress(0, total)
        for shard in check.missing:

            def advance(count: int, done: int = done) -> None:
                progress(done + count, total)

            coordinates = self._compute(shard, summaries, advance)
            header = {"fitted_to": self._fit_digest, "num_axes": self.projection.num_axes}
            self.files.save(self._path(shard), header, {"coordinates": _half_bits(coordinates)})
            done += len(coordinates)
            progress(done, total)
        self._remove_leftovers()
        return total

    def _remove_leftovers(self) -> None:
        """Remove files of shards that are no longer committed, and temporary files of killed processes."""
        current = {self._path(shard) for shard in self.shards} | {self._name(PROJECTION)}
        for folder in (self.feature.name, self._name(VECTORS)):
            self.files.sweep(folder)
            for name in self.files.names(folder):
                if f"{folder}/{name}" not in current:
                    self.files.remove(f"{folder}/{name}")

    def _fit(self, summaries: Mapping[str, np.ndarray]) -> Projection:
        """Fit the projection to the clips of `fitting_set` and write it."""
        if summaries:
            rows = {
                clip_id: row
                for shard in self.shards
                for clip_id, row in zip(shard.ids, summaries[shard.name], strict=True)
            }
            fit_rows = [rows[clip_id] for clip_id in self._fit_ids]
            fitted = np.stack(fit_rows) if fit_rows else np.zeros((0, 1), np.float32)
        else:
            fitted = self._summaries(self._fit_ids)
        try:
            projection = Projection.fit(fitted)
        except ValueError as error:
            raise StoreError(
                self.feature.subject,
                got=f"{error}, got {len(self.feature)}",
                next_step="Extract more clips, or choose other features with --feature.",
            ) from error
        header = {
            "fingerprint": self.feature.fingerprint,
            "fitted_to": self._fit_digest,
            "num_fitted": projection.num_fitted,
        }
        arrays = {"mean": projection.mean, "deviations": projection.deviations, "axes": projection.axes.reshape(-1)}
        self.files.save(self._name(PROJECTION), header, arrays)
        return projection

    def _compute(
        self, shard: IndexedShard, summaries: Mapping[str, np.ndarray], progress: Callable[[int], None]
    ) -> np.ndarray:
        """Compute the (n, R) coordinates of one shard."""
        projection = self.require_projection()
        if shard.name in summaries:
            return projection.coordinates(summaries[shard.name])
        coordinates = np.empty((len(shard.ids), projection.num_axes), np.float32)
        done = 0
        for tokens in self._read(shard.ids):
            coordinates[done : done + len(tokens)] = projection.coordinates(summarise(tokens))
            done += len(tokens)
            progress(done)
        return coordinates

    def _summaries(self, ids: Sequence[str]) -> np.ndarray:
        """Compute the (n, W) summaries of clips."""
        width = 2 * self.feature.shape[1]
        groups = [summarise(tokens) for tokens in self._read(ids)]
        return np.concatenate(groups) if groups else np.zeros((0, width), np.float32)

    def _read(self, ids: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield the tokens (B, K, D) of these clips; one thread reads ahead into two buffers."""
        feature = self.feature
        row_bytes = feature.shape[0] * feature.shape[1] * feature.dtype.itemsize
        size = max(1, READ_BYTES // row_bytes)
        groups = [ids[begin : begin + size] for begin in range(0, len(ids), size)]
        buffers = [empty((size, *feature.shape), feature.dtype) for _ in range(2)]

        def read(number: int) -> np.ndarray:
            return feature.read(groups[number], out=buffers[number % 2][: len(groups[number])])

        with ThreadPoolExecutor(1, "similarity-read") as pool:
            # Two buffers allow one read ahead of the group that the caller works on.
            pending = deque(pool.submit(read, number) for number in range(min(1, len(groups))))
            for number in range(len(groups)):
                tokens = pending.popleft().result()
                if number + 1 < len(groups):
                    pending.append(pool.submit(read, number + 1))
                yield tokens

    def coordinates(self) -> tuple[list[str], np.ndarray]:
        """Return the ids of all clips with tokens, in row order, and their coordinates (N, R).

        Raises:
            StoreError: the index is missing, or it lacks clips of the store.
            CorruptStoreError: a file of the index contradicts its checksum.
        """
        projection = self.require_projection()
        check = self.check()
        if check.damaged:
            raise check.damaged[0]
        if check.missing:
            raise StoreError(
                self._subject,
                expected=f"coordinates of {len(self.shards)} shards",
                got=f"{len(check.missing)} without",
                next_step="Run `fcache index`.",
            )
        ids = [clip_id for shard in self.shards for clip_id in shard.ids]
        arrays = [check.coordinates[shard.name] for shard in self.shards]
        return ids, np.concatenate(arrays) if arrays else np.zeros((0, projection.num_axes), np.float32)

    def vectors(self, comparison: str) -> tuple[list[str], np.ndarray]:
        """Return the ids of all clips with tokens and their unit vectors (N, R). Raises the errors of `coordinates`."""
        ids, coordinates = self.coordinates()
        return ids, self.require_projection().unit(coordinates, comparison)

    def _load_coordinates(self, shard: IndexedShard) -> np.ndarray:
        """Read the (n, R) coordinates of one shard.

        Raises:
            FileNotFoundError: no such file, or it belongs to another projection.
            CorruptStoreError: the file contradicts its checksum, or has another size than the shard.
        """
        name, shape = self._path(shard), (len(shard.ids), self.require_projection().num_axes)
        header, arrays = self.files.load(name)
        if header.get("fitted_to") != self._fit_digest:
            raise FileNotFoundError(name)
        half_bits = arrays["coordinates"]
        if half_bits.size != shape[0] * shape[1]:
            raise CorruptStoreError(
                str(self.files.root / name),
                expected=f"{shape[0]} × {shape[1]} numbers",
                got=str(half_bits.size),
                next_step=NEXT_STEP,
            )
        return half_bits.view(np.float16).reshape(shape).astype(np.float32)

    def project(self, tokens: np.ndarray, comparison: str) -> np.ndarray:
        """Project tokens (B, K, D) of this feature's spec to unit vectors (B, R)."""
        return self.require_projection().project(summarise(tokens), comparison)

    def require_projection(self) -> Projection:
        """Return the projection of this index.

        Raises:
            CorruptStoreError: the file contradicts its checksum.
            StoreError: there is no index of this fingerprint and these clips.
        """
        if self.projection is None:
            if self.damaged:
                raise self.damaged[0]
            outdated = self.files.has(self._name(PROJECTION))
            raise StoreError(
                self._subject,
                expected=f"an index of fingerprint {self.feature.fingerprint[:12]}… and its clips",
                got="one of another fingerprint, or of fewer clips" if outdated else "none",
                next_step="Run `fcache index`.",
            )
        return self.projection

    @property
    def _subject(self) -> str:
        return str(self.files.root / self.feature.name)

    def _name(self, file: str) -> str:
        return f"{self.feature.name}/{file}"

    def _path(self, shard: IndexedShard) -> str:
        return self._name(f"{VECTORS}/{shard.name}")


def indexed_shards(feature: StoredFeature) -> list[IndexedShard]:
    """Return every committed shard. The file name changes with the record, and when a retry supersedes a clip."""
    shards = []
    for record, slots in zip(feature.committed, feature.ok_slots(), strict=True):
        digest = google_crc32c.extend(google_crc32c.value(record.pack()), slots.astype("<u4").tobytes())
        ids = [record.encoded_id(slot).decode() for slot in slots.tolist()]
        shards.append(IndexedShard(f"{record.shard:08d}-{digest:08x}", ids))
    return shards


def fitting_set(feature: StoredFeature) -> tuple[list[str], str]:
    """Return the ids of the clips that the projection is fitted to, and a digest of these clips and their tokens.

    The clips are spread evenly over the first 2^k or 1.5 · 2^k clips, the largest such number that the feature has.
    So a growing store keeps its projection until it has a third or a half more clips.
    """
    count = len(feature)
    power = 1 << max(0, count.bit_length() - 1)
    first = power + power // 2 if count >= power + power // 2 else power
    ids = feature.ids
    rows = np.unique(np.linspace(0, first - 1, min(NUM_FITTED, first)).astype(int)).tolist() if count else []
    fit_ids = [ids[row] for row in rows]
    digest = 0
    for clip_id in fit_ids:
        record = feature.record(clip_id)
        assert record is not None
        digest = google_crc32c.extend(digest, f"{clip_id}\0{record.crc32c:08x}\0".encode())
    return fit_ids, f"{len(fit_ids)} clips, crc32c {digest:08x}"


def open_index(feature: StoredFeature, files: IndexFiles | None = None) -> FeatureIndex:
    """Open the index of a feature, whether its files exist or not."""
    return FeatureIndex(feature, files or index_files(feature.location))


def _half_bits(coordinates: np.ndarray) -> np.ndarray:
    """(n, R) -> (n · R) uint16, the bits of float16. The coordinates are already rounded to float16 precision."""
    return np.ascontiguousarray(coordinates, np.float16).reshape(-1).view("<u2")
