"""A map-style torch Dataset of tokens, safe in forked and spawned DataLoader workers.

A DataLoader requests the indices of a whole batch. They are read together, by one call per feature, and the items are
views of that batch. Shape of an item: (K, D). The sampler determines the order. Of the modules that read stores, only
this one imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from featurecache.store.local import LocalStore
from featurecache.store.prefetching import common_ids


class FeatureDataset(Dataset[dict[str, Any]]):
    """Items are dicts: `id`, and for each feature a tensor (K, D).

    By default, `ids` are the clips that have tokens in every named feature, in row order.

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
        """Return the items of many indices, read together."""
        ids = [self.ids[index] for index in indices]
        batch = {name: as_tensor(self.store[name].read(ids)) for name in self.names}
        return [{"id": clip_id} | {name: batch[name][row] for name in self.names} for row, clip_id in enumerate(ids)]


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return a tensor on the same memory; bfloat16 is reinterpreted through int16."""
    if array.dtype.kind == "V":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
