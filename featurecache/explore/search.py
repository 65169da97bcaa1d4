"""Search for the nearest clips by one or several features.

A clip's vector concatenates its unit vectors of all features, each times the square root of the feature's weight, and
is normalised to length 1; a feature that the clip lacks gives zeros. The dot product of two such vectors is their
similarity, −1 to 1. The search is exact up to 200,000 clips; above, it uses an inverted file (faiss IVF), whose
recall is measured when it is built.

Shapes: N clips, Q queries, R axes of all features together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np

from featurecache.errors import CorruptStoreError, MissingFeatureError, StoreError, suggest
from featurecache.explore.index import Progress, open_index
from featurecache.explore.index_files import APPROXIMATE, CHECKSUM, IndexFiles, file_crc32c, index_files
from featurecache.explore.projection import OVERALL
from featurecache.store.local import LocalStore

MAX_EXACT = 200_000
RECALL_AT = 10
WANTED_RECALL = 0.95
NUM_MEASURED = 500
"""Queries for measuring the recall of an approximate index."""
TRAINING_POINTS = 64
"""Per list of the inverted file."""


@dataclass(frozen=True)
class Neighbour:
    """A clip and its similarity to the query."""

    id: str
    similarity: float


class Neighbourhood:
    """Joined vectors of clips, searchable by similarity."""

    def __init__(
        self,
        parts: Mapping[str, tuple[Sequence[str], np.ndarray]],
        weights: Mapping[str, float],
        comparison: str = OVERALL,
    ) -> None:
        """Join `parts`: (ids, (N, R) unit vectors) by feature name. `comparison` is that of `projection`."""
        self.comparison = comparison
        self.weights = {name: float(weights[name]) for name in parts}
        self._axes = {name: vectors.shape[1] for name, (_, vectors) in parts.items()}
        row_by_id: dict[str, int] = {}
        for ids, _ in parts.values():
            for clip_id in ids:
                row_by_id.setdefault(clip_id, len(row_by_id))
        self.ids = list(row_by_id)
        self._row_by_id = row_by_id
        self.vectors = np.zeros((len(row_by_id), sum(self._axes.values())), np.float32)
        self.has = np.zeros((len(row_by_id), len(parts)), bool)
        """(N, features): whether a clip has tokens in a feature."""
        begin = 0
        for column, (name, (ids, vectors)) in enumerate(parts.items()):
            rows = np.fromiter((row_by_id[clip_id] for clip_id in ids), np.int64, len(ids))
            self.vectors[rows, begin : begin + self._axes[name]] = vectors * np.sqrt(self.weights[name])
            self.has[rows, column] = True
            begin += self._axes[name]
        present = self.has @ np.array(list(self.weights.values()), np.float32)
        self.vectors /= np.sqrt(present)[:, None]

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._row_by_id

    @property
    def names(self) -> list[str]:
        return list(self.weights)

    def row_of(self, clip_id: str) -> int:
        """Return the row of a clip.

        Raises:
            MissingFeatureError: the clip has no tokens in these features.
        """
        try:
            return self._row_by_id[clip_id]
        except KeyError:
            raise MissingFeatureError(
                clip_id,
                expected="tokens in one of " + ", ".join(self.names),
                got="none",
                next_step="Run `fcache extract` for it." + suggest(clip_id, self.ids),
                clip_ids=[clip_id],
            ) from None

    def join(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Join (Q, R) unit vectors of other clips by feature name; some features may be missing."""
        count = len(next(iter(vectors.values())))
        present = sum(self.weights[name] for name in vectors)
        columns = [
            vectors[name] * np.float32(np.sqrt(self.weights[name] / present))
            if name in vectors
            else np.zeros((count, axes), np.float32)
            for name, axes in self._axes.items()
        ]
        return np.concatenate(columns, axis=1)

    def by_feature(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Return the (n, R) unit vectors of some rows by feature name; zeros where a clip lacks the feature."""
        return self.split(self.vectors[rows])

    def split(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """Inverse of `join`: split (n, R of all features) into (n, R) unit vectors, or zeros, by feature name."""
        by_feature, begin = {}, 0
        for name, axes in self._axes.items():
            part = vectors[:, begin : begin + axes]
            by_feature[name] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
            begin += axes
        return by_feature

    def search(self, queries: np.ndarray, k: int, approximate: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Search for (Q, R) queries; return similarities and rows (Q, min(k, N)), nearest first.

        `approximate` is a faiss index; without one, the search is exact.
        """
        if approximate is not None:
            return approximate.search(np.ascontiguousarray(queries, np.float32), min(k, len(self)))
        return nearest_rows(queries, self.vectors, k)

    @cached_property
    def digest(self) -> str:
        """Digest of the vectors and their order."""
        digest = hashlib.sha256(json.dumps([self.weights, self.vectors.shape]).encode())
        digest.update("\n".join(self.ids).encode())
        digest.update(self.vectors.data)
        return digest.hexdigest()[:16]


def nearest_rows(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return dot products and rows (Q, min(k, N)) of the nearest of (N, R) for each of (Q, R), largest first.

    Exact, on a GPU if faiss has one.
    """
    import faiss

    queries, vectors = (np.ascontiguousarray(array, np.float32) for array in (queries, vectors))
    k = min(k, len(vectors))
    if faiss.get_num_gpus():
        return faiss.knn_gpu(faiss.StandardGpuResources(), queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


def build_approximate(neighbourhood: Neighbourhood, *, seed: int = 0) -> tuple[Any, dict[str, float]]:
    """Build an inverted file that finds at least 95 % of the ten nearest clips; return it and its measured recall."""
    import faiss

    vectors = neighbourhood.vectors
    num_lists = int(2 ** np.round(np.log2(4 * np.sqrt(len(vectors)))))
    index: Any = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(vectors.shape[1]), vectors.shape[1], num_lists, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.max_points_per_centroid = TRAINING_POINTS
    index.cp.seed = seed
    index.train(vectors)
    index.add(vectors)
    queries = vectors[np.random.default_rng(seed).choice(len(vectors), min(NUM_MEASURED, len(vectors)), replace=False)]
    _, exact = neighbourhood.search(queries, RECALL_AT)
    index.nprobe = 1
    while True:
        recall = recall_at(exact, index.search(queries, RECALL_AT)[1])
        if recall >= WANTED_RECALL or index.nprobe >= num_lists:
            return index, {"recall_at_10": recall, "lists": num_lists, "lists_read": index.nprobe}
        index.nprobe = min(num_lists, index.nprobe * 2)


def recall_at(exact: np.ndarray, approximate: np.ndarray) -> float:
    """Return the share of the rows of `exact` (Q, k) that `approximate` (Q, k) has too."""
    num_common = [len(np.intersect1d(*rows)) for rows in zip(exact, approximate, strict=True)]
    return float(np.sum(num_common) / exact.size)


def update_indices(
    store: LocalStore,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    files: IndexFiles | None = None,
) -> int:
    """Update the indices of some features, by default all; return the number of clips computed."""
    return sum(
        open_index(store[name], files).update(progress or (lambda done, total: None)) for name in names or store.names
    )


def open_neighbourhood(
    store: LocalStore,
    weights: Mapping[str, float] | None = None,
    comparison: str = OVERALL,
    files: IndexFiles | None = None,
) -> Neighbourhood:
    """Read the indices of some features, by default all with equal weights, for one `comparison`.

    Raises:
        StoreError: an index is missing, or lacks clips of the store; a weight is not above 0.
        CorruptStoreError: a file of an index contradicts its checksum.
    """
    weights = dict(weights or dict.fromkeys(store.names, 1.0))
    invalid = [f"{name}={weight}" for name, weight in weights.items() if not weight > 0]
    if invalid or not weights:
        raise StoreError("--feature", expected="weights above 0", got=", ".join(invalid) or "no feature")
    parts = {name: open_index(store[name], files).vectors(comparison) for name in weights}
    return Neighbourhood(parts, weights, comparison)


def approximate_index(store: LocalStore, neighbourhood: Neighbourhood, files: IndexFiles | None = None) -> Any:
    """Return the faiss index of these clips, built if it is missing or damaged; None up to `MAX_EXACT` clips."""
    if len(neighbourhood) <= MAX_EXACT:
        return None
    import faiss

    files = files or index_files(store.location)
    name = f"{APPROXIMATE}/{neighbourhood.digest}"
    header = _stated_measurements(files, name)
    if header is None:
        built, measured = build_approximate(neighbourhood)
        files.remove(APPROXIMATE)
        data = faiss.serialize_index(built).tobytes()
        files.write(f"{name}.faiss", data)
        header = {**measured, CHECKSUM: google_crc32c.value(data)}
        files.save(f"{name}.stated", header, {})
    index: Any
    if files.refused is None:
        index = faiss.read_index(str(files.root / f"{name}.faiss"), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    else:
        index = faiss.deserialize_index(np.frombuffer(files.read(f"{name}.faiss"), np.uint8))
    index.nprobe = int(header["lists_read"])
    return index


def _stated_measurements(files: IndexFiles, name: str) -> dict[str, Any] | None:
    """Return the measurements of a stored faiss index; None if one of its two files is missing or damaged."""
    try:
        header, _ = files.load(f"{name}.stated")
        sound = file_crc32c(files.root / f"{name}.faiss") == header[CHECKSUM]
    except FileNotFoundError:
        return None
    except CorruptStoreError as error:
        files.damaged.append(error)
        return None
    return header if sound else None
