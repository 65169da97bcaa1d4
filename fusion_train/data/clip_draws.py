"""Which clip each turn draws: datasets by weight, the clips of a dataset without replacement.

Datasets are drawn independently, in blocks of BLOCK turns: the generator of a block gives how often it draws each
dataset, and in which order. So the draws of a dataset before any turn are counted from one small draw per earlier block
(a millisecond for 3 million turns), not turn by turn. Draw k of a dataset takes place k modulo N of the permutation
number k // N of its N clips. Without weights all clips are one dataset, and a turn is its draw.
A clip is a pure function of (seed, turn). Source: the released runner (one DistributedSampler per dataset).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from fusion_train.seeding import generator

BLOCK = 1 << 16
KEPT_ORDERS = 2
"""Permutations kept for each dataset: that of this epoch and, across its end, the other one."""


class ClipDraws:
    """An endless, indexable sequence of places in a list of clips."""

    def __init__(self, seed: int, places: Mapping[str, np.ndarray], shares: Mapping[str, float]) -> None:
        """Args:
        places: dataset -> places of its clips in the list, in ascending order.
        shares: dataset -> share of the draws; empty for every clip once per epoch, whatever its dataset.
        """
        self._seed, self._count = seed, sum(map(len, places.values()))
        self._names = list(shares)
        self._orders: dict[str | None, dict[int, np.ndarray]] = {}
        self._places = [places[name] for name in shares]
        self._shares = np.array(list(shares.values()))
        self._before = [np.zeros(len(shares), np.int64)]
        """Draws of each dataset before every block known so far."""
        self._block = lru_cache(maxsize=2)(self._read_block)

    def __getitem__(self, turn: int) -> int:
        """The place of the clip that is drawn at `turn`, from 0."""
        if not self._names:
            epoch, place = divmod(turn, self._count)
            return int(self._order(None, epoch, self._count)[place])
        block, offset = divmod(turn, BLOCK)
        datasets, ranks = self._block(block)
        dataset = int(datasets[offset])
        places = self._places[dataset]
        epoch, place = divmod(int(ranks[offset]), len(places))
        return int(places[self._order(self._names[dataset], epoch, len(places))[place]])

    def _order(self, dataset: str | None, epoch: int, count: int) -> np.ndarray:
        """(count,) the permutation of one epoch of a dataset, or of all clips."""
        kept = self._orders.setdefault(dataset, {})
        order = kept.get(epoch)
        if order is None:
            purpose = "epoch" if dataset is None else f"epoch of {dataset}"
            order = kept[epoch] = generator(self._seed, purpose, epoch).permutation(count)
            for other in list(kept)[:-KEPT_ORDERS]:
                kept.pop(other, None)
        return order

    def _read_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(BLOCK,) the dataset of each turn, and how often it was drawn before."""
        while len(self._before) <= block:
            last = len(self._before) - 1
            counts = generator(self._seed, "datasets", last).multinomial(BLOCK, self._shares)
            self._before.append(self._before[last] + counts)
        random = generator(self._seed, "datasets", block)
        counts = random.multinomial(BLOCK, self._shares)
        datasets = random.permutation(np.repeat(np.arange(len(counts)), counts))
        ranks = np.empty(BLOCK, np.int64)
        by_dataset = np.argsort(datasets, kind="stable")
        first = np.repeat(np.cumsum(counts) - counts, counts)
        ranks[by_dataset] = np.arange(BLOCK) - first + np.repeat(self._before[block], counts)
        return datasets, ranks
