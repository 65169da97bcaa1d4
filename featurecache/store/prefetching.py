"""Batches of tokens without torch: an iterator that prefetches. `torch_dataset` has a Dataset for torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from featurecache.store.local import LocalStore

TokenBatch = dict[str, Any]
"""`ids`, a list of clip ids; and per feature an array (B, K, D)."""


def common_ids(store: LocalStore, names: Sequence[str]) -> list[str]:
    """Return the clips that have tokens in all these features, in the row order of the first feature."""
    others = [set(store[name].ids) for name in names[1:]]
    return [clip_id for clip_id in store[names[0]].ids if all(clip_id in other for other in others)]


def iterate(
    store: LocalStore,
    names: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    *,
    batch_size: int = 8,
    prefetch: int = 2,
) -> Iterator[TokenBatch]:
    """Yield batches of clips in order; the last one may be shorter. A thread reads `prefetch` batches ahead.

    Raises:
        MissingFeatureError: some clips of `ids` have no tokens in a feature.
    """
    chosen = store.names if names is None else list(names)
    clip_ids = common_ids(store, chosen) if ids is None else list(ids)
    groups = [clip_ids[begin : begin + batch_size] for begin in range(0, len(clip_ids), batch_size)]

    def read(group: list[str]) -> TokenBatch:
        return {"ids": group} | {name: store[name].read(group) for name in chosen}

    if prefetch < 1:
        yield from map(read, groups)
        return
    with ThreadPoolExecutor(1, "featurecache-prefetch") as pool:
        pending = deque(pool.submit(read, group) for group in groups[:prefetch])
        for group in groups[prefetch:]:
            pending.append(pool.submit(read, group))
            yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
