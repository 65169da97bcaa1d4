"""A map-style torch Dataset of tokens, safe in forked and spawned DataLoader workers.

A DataLoader asks for a batch of indices at once; they are read together, one call a feature, and the items it gets are
views of that batch. Shapes: (K, D) an item. Order and shuffling are the sampler's. This module alone of the reading
side imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from featurecache.store.local import LocalStore
from featurecache.store.prefetching import common_ids


class FeatureDataset(Dataset):
    """Items are dicts: `id`, and for each feature a tensor (K, D).

    `ids` are by default the clips that have tokens in every named feature, in row order.

    Raises (on access):
        MissingFeatureError: a clip of `ids` has no tokens in some feature.
    """

    def __init__(self, store: LocalStore, names: Sequence[str] | None = None, ids: Sequence[str] | None = None) -> None:
        self.store = store
        self.names = store.names if names is None else list(names)
        self.ids = common_ids(store, self.names) if ids is None else list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Items of many indices, read together."""
        ids = [self.ids[index] for index in indices]
        batch = {name: as_tensor(self.store[name].read(ids)) for name in self.names}
        return [{"id": clip_id} | {name: batch[name][row] for name in self.names} for row, clip_id in enumerate(ids)]


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """The same memory as a tensor; bfloat16 by way of its bits."""
    if array.dtype.kind == "V":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
