"""Features of many clips averaged to few tokens, in memory: read once, in the store's order, at the store's own speed.

An epoch over a store larger than memory would read it in random order, epoch after epoch. The probe reads every clip
once, row after row, and keeps K averages of its tokens: 64 × 1280 + 64 × 1408 + 1 × 1408 values of a clip become 23
thousand, 46 KB, at K = 8. One thread reads while others average. Of the image the CLS token is kept.

Shapes: N clips, K_m tokens of width D_m as cached, K as kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featurecache.store.copying import empty
from featurecache.store.protocols import Feature
from featurecache.terminal import show_progress
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.models.fusion_inputs import resample

READ_BYTES = 4 << 20
"""Read at a time: what is averaged is still in the processor's cache."""
CACHED_BYTES = 3 << 19
"""Averaged at a time: twice as much in float32 must stay in the processor's cache."""


class PooledFeatures:
    """Modality -> averaged tokens of the clips loaded so far."""

    def __init__(self, reader: FeatureReader, num_tokens: int) -> None:
        self._reader, self._num_tokens = reader, num_tokens
        self._place: dict[str, dict[str, int]] = {modality: {} for modality in reader.modalities}
        self._blocks: dict[str, list[Tensor]] = {modality: [] for modality in reader.modalities}
        self._kept: dict[str, Tensor] = {}

    def load(self, clip_ids: Sequence[str]) -> None:
        """Read the clips that are not in memory yet; one without a modality has none of it here either."""
        wanted = set(clip_ids)
        for modality, feature in self._reader.features.items():
            place = self._place[modality]
            ids = [clip_id for clip_id in feature.ids if clip_id in wanted and clip_id not in place]
            if not ids:
                continue
            kept = torch.empty((len(ids), *self._shape(modality, feature)), dtype=torch.float16)
            with show_progress(f"reading {feature.name}", "clips") as progress, _serial_operations() as pool:
                progress(0, len(ids), "")
                for start, tokens in _read_ahead(feature, ids):
                    parts = tokens[:, :1] if modality == "image" else tokens
                    places = kept[start : start + len(tokens)]
                    rows = max(1, CACHED_BYTES // (tokens[0].nbytes))
                    list(pool.map(average, parts.split(rows), places.split(rows)))
                    progress(start + len(tokens), len(ids), "")
            first = sum(map(len, self._blocks[modality]))
            place |= {clip_id: first + row for row, clip_id in enumerate(ids)}
            self._blocks[modality].append(kept)
            self._kept[modality] = (
                self._blocks[modality][0] if len(self._blocks[modality]) == 1 else torch.cat(self._blocks[modality])
            )
            self._blocks[modality] = [self._kept[modality]]

    def take(self, clip_ids: Sequence[str], present: Tensor) -> dict[str, Tensor]:
        """Modality -> (B, K, D) float16; rows where `present` (B, M) is False are zero and must not be used."""
        out: dict[str, Tensor] = {}
        for m, (modality, feature) in enumerate(self._reader.features.items()):
            out[modality] = torch.zeros((len(clip_ids), *self._shape(modality, feature)), dtype=torch.float16)
            rows = present[:, m].nonzero().flatten()
            if len(rows):
                place = self._place[modality]
                out[modality][rows] = self._kept[modality][[place[clip_ids[row]] for row in rows.tolist()]]
        return out

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._kept.values())

    def _shape(self, modality: str, feature: Feature) -> tuple[int, int]:
        return (1 if modality == "image" else self._num_tokens), feature.shape[1]


def average(tokens: Tensor, out: Tensor) -> None:
    """(n, K_m, D_m) -> `out` (n, K, D_m)."""
    share, rest = divmod(tokens.shape[1], out.shape[1])
    if rest:
        out.copy_(resample(tokens.float(), out.shape[1]))
    elif share == 1:
        out.copy_(tokens)
    elif tokens.dtype == torch.float16 and share & (share - 1) == 0:
        out.copy_(_average_halves(tokens, share).view_as(out))
    else:
        out.copy_(tokens.unflatten(1, (out.shape[1], share)).float().mean(dim=2))


def _average_halves(tokens: Tensor, share: int) -> Tensor:
    """(n, K_m, D_m) float16 -> (n * K, D_m), each the average of `share` (a power of two) rows.

    A bag of embeddings is added up in float32 as it is read, which takes half as long as widening the tokens first. The
    result is the same to the bit: `1 / share` is exact and the sum is rounded once.
    """
    rows = tokens.reshape(-1, tokens.shape[2])
    weights = torch.full((len(rows),), 1 / share, dtype=tokens.dtype)
    return functional.embedding_bag(
        torch.arange(len(rows)), rows, torch.arange(0, len(rows), share), mode="sum", per_sample_weights=weights
    )


@contextmanager
def _serial_operations() -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads each work alone: operations this small lose more by waiting for helpers than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="average") as pool:  # one reads
            yield pool
    finally:
        torch.set_num_threads(threads)


def _read_ahead(feature: Feature, ids: Sequence[str]) -> Iterator[tuple[int, Tensor]]:
    """Yield (place of the first, tokens (n, K_m, D_m)) of all `ids`; the next ones are read meanwhile."""
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
