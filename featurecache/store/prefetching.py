"""Batches of tokens without torch: a plain iterator that reads ahead. `torch_dataset` has the Dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from featurecache.store.local import LocalStore

Batch = dict[str, Any]
"""`ids`, a list of clip ids; and for each feature an array (B, K, D)."""


def common_ids(store: LocalStore, names: Sequence[str]) -> list[str]:
    """Clips that have tokens in every one of these features, in the row order of the first."""
    others = [set(store[name].ids) for name in names[1:]]
    return [clip_id for clip_id in store[names[0]].ids if all(clip_id in other for other in others)]


def iterate(
    store: LocalStore,
    names: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    *,
    batch_size: int = 8,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Yield batches of clips in order, the last one shorter; `prefetch` of them are read ahead on a thread.

    Raises:
        MissingFeatureError: `ids` has clips without tokens in some feature.
    """
    chosen = store.names if names is None else list(names)
    wanted = common_ids(store, chosen) if ids is None else list(ids)
    groups = [wanted[begin : begin + batch_size] for begin in range(0, len(wanted), batch_size)]

    def read(group: list[str]) -> Batch:
        return {"ids": group} | {name: store[name].read(group) for name in chosen}

    if prefetch < 1:
        yield from map(read, groups)
        return
    with ThreadPoolExecutor(1, "featurecache-prefetch") as pool:
        ahead = [pool.submit(read, group) for group in groups[:prefetch]]
        for place in range(len(groups)):
            if place + prefetch < len(groups):
                ahead.append(pool.submit(read, groups[place + prefetch]))
            yield ahead[place].result()
            ahead[place] = None  # type: ignore[call-overload]  # a batch is not kept once it is used
