"""The index of one feature: a vector for every clip with tokens, kept beside the store.

    features.zarr.similar/whisper/space.safetensors        what tokens are projected with; its header names the feature
    features.zarr.similar/whisper/vectors/00000012-5f3a…   (n, R) float32 of shard 12's clips, in slot order, as .npy

Everything is derived from the store: a vector file is named by the checksum of its shard's commit record, so a repaired
or retried shard is another file, and `update` computes what is missing and drops what is left over. A space belongs to
one fingerprint. Files are published whole or not at all and read through memory maps.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from featurecache.errors import StoreError
from featurecache.similarity.space import NUM_FITTED, Space
from featurecache.similarity.summaries import summarise
from featurecache.store.copying import empty
from featurecache.store.feature import StoredFeature
from featurecache.store.lease import sole_writer
from featurecache.store.protocols import Status
from featurecache.store.publish import make_folder, replace_bytes, sweep
from featurecache.store.records import Record

INDEX_FORMAT = 1
ENDING = ".similar"
LOCK = ".writer"
MAX_KEPT = 16_384
"""Up to so many clips the first pass keeps all summaries, fits the space to them and reads nothing twice."""
READ_BYTES = 8 << 20
"""Tokens read at a time; one part is summarised while the next is read."""
REFIT_AT = 4
"""A space fitted on fewer clips than it could be is fitted anew once there are so many times more."""

Progress = Callable[[int, int], None]


class FeatureIndex:
    """Vectors of one feature's clips, read from beside the store."""

    def __init__(self, feature: StoredFeature, folder: Path) -> None:
        """`folder` is the feature's own; see `index_folder`."""
        self.feature, self.folder = feature, folder
        self._space_file = folder / "space.safetensors"
        self._vectors = folder / "vectors"
        self.space = self._load_space()

    def _load_space(self) -> Space | None:
        """The space, or None where there is none for this fingerprint and format."""
        try:
            with safe_open(self._space_file, "numpy") as file:
                stated = file.metadata() or {}
                if stated.get("fingerprint") != self.feature.fingerprint or stated.get("format") != str(INDEX_FORMAT):
                    return None
                return Space(file.get_tensor("mean"), file.get_tensor("axes"), int(stated["num_fitted"]))
        except (FileNotFoundError, SafetensorError):
            return None

    @property
    def missing(self) -> list[Record]:
        """Committed shards without vectors."""
        return [record for record in self.feature.committed if not self._file(record).is_file()]

    @property
    def complete(self) -> bool:
        return self.space is not None and not self.missing

    def update(self, progress: Progress = lambda done, total: None) -> int:
        """Bring the index up to the store; returns how many clips were computed.

        Raises:
            StoreError: fewer than two clips, or clips that are all equal.
            CorruptStoreError: the store's bytes contradict their checksum.
            WriteError: the disk is full, run again; or another process is writing this index.
        """
        with sole_writer(self.folder / LOCK, self.folder):
            return self._update(progress)

    def _update(self, progress: Progress) -> int:
        for folder in (self.folder, self._vectors):
            sweep(folder)  # what a killed update left
        summaries: dict[int, np.ndarray] = {}
        if self.space is None or self._outgrown(self.space):
            shutil.rmtree(self._vectors, ignore_errors=True)
            if len(self.feature) <= MAX_KEPT:
                summaries = {record.shard: self._summaries(_ok_ids(record)) for record in self.feature.committed}
            self.space = self._fit(summaries)
        make_folder(self._vectors)
        todo = self.missing
        total = sum(_num_ok(record) for record in todo)
        done = 0
        if total:
            progress(0, total)
        for record in todo:
            vectors = self._project(record, summaries, lambda count, done=done: progress(done + count, total))
            file = io.BytesIO()
            np.save(file, vectors, allow_pickle=False)
            replace_bytes(self._file(record), file.getvalue())
            done += len(vectors)
            progress(done, total)
        wanted = {self._file(record).name for record in self.feature.committed}
        for path in self._vectors.iterdir():
            if path.name not in wanted and not path.name.startswith("."):
                path.unlink()
        return total

    def _outgrown(self, space: Space) -> bool:
        return space.num_fitted < NUM_FITTED and len(self.feature) >= REFIT_AT * space.num_fitted

    def _fit(self, summaries: Mapping[int, np.ndarray]) -> Space:
        """Fit a space to clips spread over the feature and write it."""
        count = len(self.feature)
        chosen = np.unique(np.linspace(0, max(0, count - 1), min(NUM_FITTED, count)).astype(int))
        if summaries:
            everything = np.concatenate([summaries[shard] for shard in sorted(summaries)])
            fitted = everything[np.linspace(0, len(everything) - 1, len(chosen)).astype(int)]
        else:
            ids = self.feature.ids
            fitted = self._summaries([ids[place] for place in chosen.tolist()])
        try:
            space = Space.fit(fitted)
        except ValueError as error:
            raise StoreError(
                self.feature.subject, got=f"{error}, got {count}",
                next_step="Extract more clips, or choose other features with --feature.",
            ) from error  # fmt: skip
        make_folder(self.folder)
        stated = {"format": str(INDEX_FORMAT), "fingerprint": self.feature.fingerprint}
        stated["num_fitted"] = str(space.num_fitted)
        replace_bytes(self._space_file, save({"mean": space.mean, "axes": space.axes}, metadata=stated))
        return space

    def _project(
        self, record: Record, summaries: Mapping[int, np.ndarray], progress: Callable[[int], None]
    ) -> np.ndarray:
        space = self.require_space()
        if record.shard in summaries:
            return space.project(summaries[record.shard])
        ids = _ok_ids(record)
        vectors = np.empty((len(ids), space.num_axes), np.float32)
        done = 0
        for tokens in self._read(ids):
            vectors[done : done + len(tokens)] = space.project(summarise(tokens))
            done += len(tokens)
            progress(done)
        return vectors

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

    def vectors(self) -> tuple[list[str], np.ndarray]:
        """Ids of all clips with tokens, in row order, and their vectors (N, R).

        Raises:
            StoreError: there is no index, or it does not cover the store.
        """
        space = self.require_space()
        missing = self.missing
        if missing:
            raise StoreError(
                str(self.folder), expected=f"vectors of {len(self.feature.committed)} shards",
                got=f"{len(missing)} without", next_step="Run `fcache index`.",
            )  # fmt: skip
        ids: list[str] = []
        parts: list[np.ndarray] = []
        last: dict[str, int] = {}
        for record in self.feature.committed:
            these = _ok_ids(record)
            part = self._open(record, (len(these), space.num_axes))
            last.update(zip(these, range(len(ids), len(ids) + len(these)), strict=True))
            ids += these
            parts.append(part)
        matrix = np.concatenate(parts) if len(parts) > 1 else parts[0] if parts else np.zeros((0, space.num_axes), "f4")
        if len(last) == len(ids) == len(self.feature):
            return ids, matrix
        kept = [place for clip_id, place in last.items() if clip_id in self.feature]  # retried clips stand twice
        return [ids[place] for place in kept], matrix[kept]

    def _open(self, record: Record, shape: tuple[int, int]) -> np.ndarray:
        path = self._file(record)
        try:
            part = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise self._damaged(path, str(error)) from error
        if part.shape != shape or part.dtype != np.float32:
            raise self._damaged(path, f"{part.shape} of {part.dtype}")
        return part

    def _damaged(self, path: Path, got: str) -> StoreError:
        return StoreError(
            str(path), expected="vectors of this shard", got=got,
            next_step=f"Delete {self.folder}; `fcache index` makes it anew.",
        )  # fmt: skip

    def project(self, tokens: np.ndarray) -> np.ndarray:
        """(B, K, D) tokens of this feature's spec -> (B, R) vectors."""
        return self.require_space().project(summarise(tokens))

    def require_space(self) -> Space:
        """The space that vectors are projected with.

        Raises:
            StoreError: there is no index of this fingerprint.
        """
        if self.space is None:
            other = self._space_file.is_file()
            raise StoreError(
                str(self.folder), expected=f"an index of fingerprint {self.feature.fingerprint[:12]}…",
                got="one of another fingerprint or format" if other else "none", next_step="Run `fcache index`.",
            )  # fmt: skip
        return self.space

    def _file(self, record: Record) -> Path:
        digest = google_crc32c.value(record.pack())
        return self._vectors / f"{record.shard:08d}-{digest:08x}.npy"


def index_folder(location: str, name: str) -> Path:
    """Where the index of a feature lies: beside a local store, and for a remote one in the user's cache folder."""
    if "://" in location:
        from featurecache.hashing import cache_folder

        return cache_folder() / "similar" / location.replace("://", "/").strip("/") / name
    return Path(os.path.normpath(location) + ENDING) / name


def open_index(feature: StoredFeature) -> FeatureIndex:
    """Open the index of a feature, there or not."""
    return FeatureIndex(feature, index_folder(feature.location, feature.name))


def _num_ok(record: Record) -> int:
    return int((record.columns["status"] == Status.OK).sum())


def _ok_ids(record: Record) -> list[str]:
    slots = np.flatnonzero(record.columns["status"] == Status.OK).tolist()
    return [record.encoded_id(slot).decode() for slot in slots]
