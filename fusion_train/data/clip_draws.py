"""Draw clips: datasets by weight, the clips of each dataset without replacement.

The mixture. A mixture gives datasets weights. If the clip list has clips of none of them, the mixture is not used:
every clip is drawn once per epoch. If it has some, only those datasets are drawn, by their weights among themselves;
the mixture's other datasets, and datasets of the list that the mixture does not name, are left out with a notice. With
`data.mixture_absent: refuse`, a dataset of the mixture without clips is an error.

The draws. A clip is a pure function of (seed, turn). Datasets are drawn independently, in blocks of BLOCK turns: one
generator per block gives how often the block draws each dataset, and in which order. The draws of a dataset before any
turn are therefore counted from one small draw per earlier block (a millisecond for 3 million turns), not turn by turn.
Draw k of a dataset with N clips takes place k modulo N of permutation k // N. Without a mixture all clips count as one
dataset, and turn k is its draw k. Source: the released runner (one DistributedSampler per dataset).
Knows no store and no task.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np

from featurecache.errors import suggest
from fusion_train.config import OnAbsent
from fusion_train.errors import DataError
from fusion_train.seeding import generator

BLOCK = 1 << 16
CACHED_ORDERS = 2
"""Permutations in memory per dataset: questions near the end of an epoch need those of two epochs."""


def weigh_datasets(
    weights: Mapping[str, float] | None, datasets: Collection[str], on_absent: OnAbsent, say: Callable[[str], None]
) -> dict[str, float]:
    """Return dataset -> share of the draws among `datasets`, which have clips; empty if no mixture is used.

    Args:
        weights: the mixture; None for no mixture.
        say: receives the notices about datasets that are left out.

    Raises:
        DataError: negative weights, no weight above 0, or a dataset without clips that may not be left out.
    """
    if not weights:
        return {}
    available = set(datasets)
    absent = [name for name in weights if name not in available]
    if absent and on_absent == "refuse":
        raise DataError(
            "data.mixture",
            expected="datasets of the clip list: " + ", ".join(sorted(available)),
            got=", ".join(absent),
            next_step=(
                suggest(absent[0], available) + " Set data.mixture_absent=leave_out to do without them."
            ).strip(),
        )
    drawn = {name: float(weight) for name, weight in weights.items() if name in available}
    if not drawn:
        say("mixture: none of its datasets is in the clip list, so every clip comes once an epoch")
        return {}
    if min(drawn.values()) < 0 or not sum(drawn.values()) > 0:
        raise DataError("data.mixture", expected="weights from 0 that do not sum to 0", got=str(drawn))
    total = sum(drawn.values())
    if absent:
        lost = sum(float(weights[name]) for name in absent) / sum(map(float, weights.values()))
        say(f"mixture: without {', '.join(absent)} ({lost:.0%} of its weight), which the clip list has no clips of")
    unnamed = sorted(available - set(weights))
    if unnamed:
        say(
            f"mixture: clips of {', '.join(name or 'no dataset' for name in unnamed)} are never drawn; give them a "
            f"weight with --set data.mixture.NAME=100, or --set data.mixture=null"
        )
    return {name: weight / total for name, weight in drawn.items() if weight}


def balance_labels(
    places: Mapping[str, np.ndarray], shares: Mapping[str, float], labels: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Divide every dataset by label, each label with the same share of the draws of the dataset.

    Args:
        places: dataset -> places of its clips in the list.
        shares: dataset -> share of the draws; if empty, every dataset has the share of its clips.
        labels: label of each clip of the list.

    Returns:
        The same two for `ClipDraws`, by dataset and label.
    """
    drawn = shares or {name: len(numbers) / len(labels) for name, numbers in places.items()}
    divided: dict[str, np.ndarray] = {}
    divided_shares: dict[str, float] = {}
    for name, share in drawn.items():
        by_label: dict[str, list[int]] = {}
        for place in places[name].tolist():
            by_label.setdefault(labels[place], []).append(place)
        for label in sorted(by_label):
            key = f"{name}, {label}"
            divided[key], divided_shares[key] = np.array(by_label[label]), share / len(by_label)
    return divided, divided_shares


class ClipDraws:
    """An endless, indexable sequence of places in a list of clips."""

    def __init__(self, seed: int, places: Mapping[str, np.ndarray], shares: Mapping[str, float]) -> None:
        """Args:
        places: dataset -> places of its clips in the list, in ascending order.
        shares: dataset -> share of the draws; if empty, every clip is drawn once per epoch, whatever its dataset.
        """
        self._seed, self._num_clips = seed, sum(map(len, places.values()))
        self._names = list(shares)
        self._orders: dict[str | None, dict[int, np.ndarray]] = {}
        """Dataset (None: all clips) -> epoch -> permutation."""
        self._places = [places[name] for name in shares]
        self._shares = np.array(list(shares.values()))
        self._draws_before = [np.zeros(len(shares), np.int64)]
        """Draws of each dataset before every block that was read so far."""
        self._block = lru_cache(maxsize=2)(self._read_block)

    def __getitem__(self, turn: int) -> int:
        """Return the place of the clip that is drawn at `turn`, counted from 0."""
        if not self._names:
            epoch, place = divmod(turn, self._num_clips)
            return int(self._order(None, epoch, self._num_clips)[place])
        block, offset = divmod(turn, BLOCK)
        datasets, ranks = self._block(block)
        dataset = int(datasets[offset])
        places = self._places[dataset]
        epoch, place = divmod(int(ranks[offset]), len(places))
        return int(places[self._order(self._names[dataset], epoch, len(places))[place]])

    def _order(self, dataset: str | None, epoch: int, count: int) -> np.ndarray:
        """Return the permutation (count,) of one epoch of a dataset, or of all clips."""
        orders = self._orders.setdefault(dataset, {})
        order = orders.get(epoch)
        if order is None:
            purpose = "epoch" if dataset is None else f"epoch of {dataset}"
            order = orders[epoch] = generator(self._seed, purpose, epoch).permutation(count)
            for other in list(orders)[:-CACHED_ORDERS]:
                orders.pop(other, None)
        return order

    def _read_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (BLOCK,) the dataset of each turn, and (BLOCK,) how often it was drawn before that turn."""
        while len(self._draws_before) <= block:
            last = len(self._draws_before) - 1
            counts = generator(self._seed, "datasets", last).multinomial(BLOCK, self._shares)
            self._draws_before.append(self._draws_before[last] + counts)
        random = generator(self._seed, "datasets", block)
        counts = random.multinomial(BLOCK, self._shares)
        datasets = random.permutation(np.repeat(np.arange(len(counts)), counts))
        # Within a block, the draws of one dataset are numbered in the order of their turns.
        ranks = np.empty(BLOCK, np.int64)
        by_dataset = np.argsort(datasets, kind="stable")
        first = np.repeat(np.cumsum(counts) - counts, counts)
        ranks[by_dataset] = np.arange(BLOCK) - first + np.repeat(self._draws_before[block], counts)
        return datasets, ranks
