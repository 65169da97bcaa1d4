"""Averages of the features of many clips, in memory; the store is read once, in its own order.

An epoch over a store larger than memory would read it in random order, epoch after epoch. The probe reads every clip
once, row after row, and keeps K averages of its tokens: 64 × 1280 + 64 × 1408 + 1 × 1408 values per clip become 23
thousand, 46 KB, for K = 8. One thread reads while others average. Of the image only the CLS token is kept.

Shapes: N clips, K_m tokens of width D_m in the store, K tokens in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from featurecache.store.copying import empty
from featurecache.store.protocols import Feature
from featurecache.terminal import show_progress
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.models.normalisation import statistics_of
from fusion_train.models.token_averages import average, kept_tokens

READ_BYTES = 4 << 20
"""Bytes per read: the tokens are still in the processor's cache when they are averaged."""
CACHED_BYTES = 3 << 19
"""Bytes that one thread averages at a time: in float32 they are twice as many, and must fit into the cache."""


class PooledFeatures:
    """Modality -> averaged tokens of the clips that were loaded."""

    def __init__(self, reader: FeatureReader, num_tokens: int) -> None:
        self._reader, self._num_tokens = reader, num_tokens
        self._place: dict[str, dict[str, int]] = {modality: {} for modality in reader.modalities}
        self._blocks: dict[str, list[Tensor]] = {modality: [] for modality in reader.modalities}
        self._averages: dict[str, Tensor] = {}

    def load(self, clip_ids: Sequence[str]) -> None:
        """Read the clips that are not in memory yet; modalities that a clip lacks are left out."""
        requested = set(clip_ids)
        for modality, feature in self._reader.features.items():
            place = self._place[modality]
            ids = [clip_id for clip_id in feature.ids if clip_id in requested and clip_id not in place]
            if not ids:
                continue
            averages = torch.empty((len(ids), *self._shape(modality, feature)), dtype=torch.float16)
            with show_progress(f"reading {feature.name}", "clips") as progress, _serial_operations() as threads:
                progress(0, len(ids), "")
                for start, tokens in _read_ahead(feature, ids):
                    inputs = kept_tokens(modality, tokens)
                    outputs = averages[start : start + len(tokens)]
                    rows = max(1, CACHED_BYTES // (tokens[0].nbytes))
                    list(threads.map(average, inputs.split(rows), outputs.split(rows)))
                    progress(start + len(tokens), len(ids), "")
            first = sum(map(len, self._blocks[modality]))
            place |= {clip_id: first + row for row, clip_id in enumerate(ids)}
            self._blocks[modality].append(averages)
            self._averages[modality] = (
                self._blocks[modality][0] if len(self._blocks[modality]) == 1 else torch.cat(self._blocks[modality])
            )
            self._blocks[modality] = [self._averages[modality]]

    def of(self, clip_ids: Sequence[str]) -> dict[str, Tensor]:
        """Return modality -> (N, K, D) float16 of those clips that have the modality, among loaded ones."""
        return {
            modality: self._averages[modality][[place[clip_id] for clip_id in clip_ids if clip_id in place]]
            for modality, place in self._place.items()
            if modality in self._averages
        }

    def normalise(self, groups: Iterable[Sequence[str]]) -> None:
        """Normalise the loaded clips of each group by the mean and the standard deviation of the group, in place."""
        for clip_ids in groups:
            for modality, place in self._place.items():
                rows = [place[clip_id] for clip_id in clip_ids if clip_id in place]
                if rows:
                    averages = self._averages[modality]
                    mean, scale = statistics_of(averages[rows])
                    averages[rows] = ((averages[rows].float() - mean) / scale).to(averages.dtype)

    def take(self, clip_ids: Sequence[str], present: Tensor) -> dict[str, Tensor]:
        """Return modality -> (B, K, D) float16; rows where `present` (B, M) is False are zero and must not be used."""
        out: dict[str, Tensor] = {}
        for m, (modality, feature) in enumerate(self._reader.features.items()):
            out[modality] = torch.zeros((len(clip_ids), *self._shape(modality, feature)), dtype=torch.float16)
            rows = present[:, m].nonzero().flatten()
            if len(rows):
                place = self._place[modality]
                out[modality][rows] = self._averages[modality][[place[clip_ids[row]] for row in rows.tolist()]]
        return out

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._averages.values())

    def _shape(self, modality: str, feature: Feature) -> tuple[int, int]:
        return (1 if modality == "image" else self._num_tokens), feature.shape[1]


@contextmanager
def _serial_operations() -> Iterator[ThreadPoolExecutor]:
    """Run each operation of torch on one thread inside the block; parallel parts of such small ones cost time."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(max(1, num_threads - 1), thread_name_prefix="average") as threads:  # one more reads
            yield threads
    finally:
        torch.set_num_threads(num_threads)


def _read_ahead(feature: Feature, ids: Sequence[str]) -> Iterator[tuple[int, Tensor]]:
    """Yield (place of the first clip, tokens (n, K_m, D_m)) of all `ids`; a thread reads the next tokens meanwhile."""
    row_bytes = int(np.prod(feature.shape)) * feature.dtype.itemsize
    step = max(1, READ_BYTES // row_bytes)
    buffers = [empty((min(step, len(ids)), *feature.shape), feature.dtype) for _ in range(2)]

    def read(number: int) -> tuple[int, np.ndarray]:
        chunk = ids[number * step : (number + 1) * step]
        return number * step, feature.read(chunk, out=buffers[number % 2][: len(chunk)])

    count = -(-len(ids) // step)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="pooled") as pool:
        ahead = pool.submit(read, 0)
        for number in range(count):
            start, array = ahead.result()
            if number + 1 < count:
                ahead = pool.submit(read, number + 1)
            yield start, _as_tensor(array)


def _as_tensor(array: np.ndarray) -> Tensor:
    if array.dtype.name == "bfloat16":  # NumPy has none of its own
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
