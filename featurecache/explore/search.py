"""Nearest clips over one or several features.

A clip's vector joins those of its features, each times the root of its weight, and has length 1 again; what a clip does
not have counts nothing. The product of two such vectors, −1 to 1, is their similarity. Up to 200,000 clips the search
is exact; above, an inverted file (faiss IVF) whose recall against the exact search is measured when it is built.

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
"""Queries that the recall of an approximate index is measured on."""
TRAINING_POINTS = 64
"""A list of the inverted file."""


@dataclass(frozen=True)
class Neighbour:
    """A clip, and how like the query it is."""

    id: str
    similarity: float


class Neighbourhood:
    """Clips that can be asked for their nearest."""

    def __init__(
        self,
        parts: Mapping[str, tuple[Sequence[str], np.ndarray]],
        weights: Mapping[str, float],
        comparison: str = OVERALL,
    ) -> None:
        """`parts`: feature name -> (ids, (N, R) vectors of length 1); `comparison` says of which kind (see `space`)."""
        self.comparison = comparison
        self.weights = {name: float(weights[name]) for name in parts}
        self._axes = {name: vectors.shape[1] for name, (_, vectors) in parts.items()}
        places: dict[str, int] = {}
        for ids, _ in parts.values():
            for clip_id in ids:
                places.setdefault(clip_id, len(places))
        self.ids = list(places)
        self._places = places
        self.vectors = np.zeros((len(places), sum(self._axes.values())), np.float32)
        self.has = np.zeros((len(places), len(parts)), bool)
        """(N, features): which features a clip has tokens in."""
        begin = 0
        for column, (name, (ids, vectors)) in enumerate(parts.items()):
            rows = np.fromiter((places[clip_id] for clip_id in ids), np.int64, len(ids))
            self.vectors[rows, begin : begin + self._axes[name]] = vectors * np.sqrt(self.weights[name])
            self.has[rows, column] = True
            begin += self._axes[name]
        present = self.has @ np.array(list(self.weights.values()), np.float32)
        self.vectors /= np.sqrt(present)[:, None]

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._places

    @property
    def names(self) -> list[str]:
        return list(self.weights)

    def place(self, clip_id: str) -> int:
        """Row of a clip.

        Raises:
            MissingFeatureError: no feature in use has tokens of it.
        """
        try:
            return self._places[clip_id]
        except KeyError:
            raise MissingFeatureError(
                clip_id,
                expected="tokens in one of " + ", ".join(self.names),
                got="none",
                next_step="Run `fcache extract` for it." + suggest(clip_id, self.ids),
                clip_ids=[clip_id],
            ) from None

    def join(self, vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """Feature name -> (Q, R) vectors of other clips, some features left out -> (Q, R) as of clips in here."""
        count = len(next(iter(vectors.values())))
        present = sum(self.weights[name] for name in vectors)
        columns = [
            vectors[name] * np.float32(np.sqrt(self.weights[name] / present))
            if name in vectors
            else np.zeros((count, axes), np.float32)
            for name, axes in self._axes.items()
        ]
        return np.concatenate(columns, axis=1)

    def parts(self, places: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Feature name -> (n, R) vectors of length 1 of some rows, zeros where a clip lacks the feature."""
        return self.split(self.vectors[places])

    def split(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """The inverse of `join`: (n, R of all features) -> feature name -> (n, R) of length 1, or zeros."""
        found, begin = {}, 0
        for name, axes in self._axes.items():
            part = vectors[:, begin : begin + axes]
            found[name] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
            begin += axes
        return found

    def search(self, queries: np.ndarray, k: int, approximate: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """(Q, R) -> similarities and rows (Q, min(k, N)), nearest first; exact unless a faiss index is given."""
        if approximate is not None:
            return approximate.search(np.ascontiguousarray(queries, np.float32), min(k, len(self)))
        return nearest_rows(queries, self.vectors, k)

    @cached_property
    def digest(self) -> str:
        """Names the vectors and their order."""
        digest = hashlib.sha256(json.dumps([self.weights, self.vectors.shape]).encode())
        digest.update("\n".join(self.ids).encode())
        digest.update(self.vectors.data)
        return digest.hexdigest()[:16]


def nearest_rows(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, R) among (N, R) -> products and rows (Q, min(k, N)), largest first; exact, on a GPU where faiss has one."""
    import faiss

    queries, vectors = (np.ascontiguousarray(each, np.float32) for each in (queries, vectors))
    k = min(k, len(vectors))
    if faiss.get_num_gpus():
        return faiss.knn_gpu(faiss.StandardGpuResources(), queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


def build_approximate(neighbourhood: Neighbourhood, *, seed: int = 0) -> tuple[Any, dict[str, float]]:
    """Build an inverted file that finds at least 95 % of the ten nearest; returns it and what was measured."""
    import faiss

    vectors = neighbourhood.vectors
    num_lists = int(2 ** np.round(np.log2(4 * np.sqrt(len(vectors)))))
    index = faiss.IndexIVFFlat(
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


def recall_at(exact: np.ndarray, found: np.ndarray) -> float:
    """Share of the rows of `exact` (Q, k) that `found` (Q, k) has too."""
    same = [len(np.intersect1d(wanted, got)) for wanted, got in zip(exact, found, strict=True)]
    return float(np.sum(same) / exact.size)


def update_indices(
    store: LocalStore,
    names: Sequence[str] | None = None,
    progress: Progress | None = None,
    files: IndexFiles | None = None,
) -> int:
    """Bring the indices of some features (by default all) up to the store; returns how many clips were computed."""
    return sum(
        open_index(store[name], files).update(progress or (lambda done, total: None)) for name in names or store.names
    )


def open_neighbourhood(
    store: LocalStore,
    weights: Mapping[str, float] | None = None,
    comparison: str = OVERALL,
    files: IndexFiles | None = None,
) -> Neighbourhood:
    """Read the indices of some features, by default all alike, to compare clips `overall` or by `content`.

    Raises:
        StoreError: an index is missing or behind the store; weights that are not above 0.
        CorruptStoreError: a file of an index contradicts its checksum.
    """
    weights = dict(weights or dict.fromkeys(store.names, 1.0))
    wrong = [f"{name}={weight}" for name, weight in weights.items() if not weight > 0]
    if wrong or not weights:
        raise StoreError("--feature", expected="weights above 0", got=", ".join(wrong) or "no feature")
    parts = {name: open_index(store[name], files).vectors(comparison) for name in weights}
    return Neighbourhood(parts, weights, comparison)


def approximate_index(store: LocalStore, neighbourhood: Neighbourhood, files: IndexFiles | None = None) -> Any:
    """Return the faiss index kept for these clips, built where there is none or a damaged one; None up to `MAX_EXACT`
    clips."""
    if len(neighbourhood) <= MAX_EXACT:
        return None
    import faiss

    files = files or index_files(store.location)
    name = f"{APPROXIMATE}/{neighbourhood.digest}"
    stated = _measured(files, name)
    if stated is None:
        index, measured = build_approximate(neighbourhood)
        files.remove(APPROXIMATE)
        data = faiss.serialize_index(index).tobytes()
        files.write(f"{name}.faiss", data)
        stated = {**measured, CHECKSUM: google_crc32c.value(data)}
        files.keep(f"{name}.stated", stated, {})
    if files.refused is None:
        index = faiss.read_index(str(files.root / f"{name}.faiss"), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    else:
        index = faiss.deserialize_index(np.frombuffer(files.read(f"{name}.faiss"), np.uint8))
    index.nprobe = int(stated["lists_read"])
    return index


def _measured(files: IndexFiles, name: str) -> dict[str, Any] | None:
    """What was measured when a faiss index was built; None where one of its two files is missing or damaged."""
    try:
        stated, _ = files.load(f"{name}.stated")
        sound = file_crc32c(files.root / f"{name}.faiss") == stated[CHECKSUM]
    except FileNotFoundError:
        return None
    except CorruptStoreError as error:
        files.damaged.append(error)
        return None
    return stated if sound else None
