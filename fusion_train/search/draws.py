"""Draw the trials of a search: which features, which head, which hyperparameters.

Draw number d has the same hyperparameters for every feature and every head, so that features are compared in pairs of
trials that differ in nothing else. Trials are in the order of their draws: a search whose budget ends early has seen
every feature equally often. A `Sampler` is the one interface that another way to choose hyperparameters implements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from fusion_train.search.search_file import ALONE, TOGETHER, Distribution, Hyperparameters, SearchFile
from fusion_train.seeding import generator


@dataclass(frozen=True)
class Trial:
    """A point of the search: features in the order of the modalities, a head, and its hyperparameters."""

    name: str
    """Unique in a search: `hubert/mer-attention/7`."""
    draw: int
    features: tuple[str, ...]
    combined: str
    """`alone` or `together`."""
    head: str
    hidden: int
    dropout: float
    lr: float
    weight_decay: float
    balance: float
    batch_size: int

    @property
    def record(self) -> dict[str, Any]:
        return asdict(self)


class Sampler(Protocol):
    """Chooses hyperparameters."""

    def draw(self, number: int, space: Hyperparameters) -> Mapping[str, float]:
        """Return the value of every hyperparameter for the draw of this number."""
        ...


@dataclass(frozen=True)
class RandomSampler:
    """Draws every hyperparameter independently."""

    seed: int

    def draw(self, number: int, space: Hyperparameters) -> Mapping[str, float]:
        """Return the value of every hyperparameter; a pure function of seed and number."""
        values = {}
        for place, name in enumerate(type(space).model_fields):
            distribution = getattr(space, name)
            if isinstance(distribution, Distribution):
                distribution = _value(distribution, generator(self.seed, "hyperparameter", number, place).random())
            values[name] = distribution
        return values


def _value(distribution: Distribution, position: float) -> float:
    """Map a position in [0, 1) to a value."""
    if distribution.choice is not None:
        return distribution.choice[int(position * len(distribution.choice))]
    if distribution.uniform is not None:
        low, high = distribution.uniform
        return low + position * (high - low)
    assert distribution.log_uniform is not None
    low, high = map(math.log, distribution.log_uniform)
    return math.exp(low + position * (high - low))


def draw_trials(search: SearchFile, sampler: Sampler) -> list[Trial]:
    """Draw all trials, draw by draw."""
    return [trial for number in range(search.draws) for trial in _of_draw(search, sampler, number)]


def _of_draw(search: SearchFile, sampler: Sampler, number: int) -> Iterator[Trial]:
    values = dict(sampler.draw(number, search.hyperparameters))
    sets: list[tuple[str, tuple[str, ...]]] = []
    if ALONE in search.combine:
        sets += [(ALONE, (name,)) for name in search.feature_names]
    if TOGETHER in search.combine and len(search.features) > 1:
        random = generator(search.seed, "features", number)
        sets.append((TOGETHER, tuple(names[random.integers(len(names))] for names in search.features.values())))
    for combined, features in sets:
        for head in search.heads:
            name = f"{'+'.join(features)}/{head}/{number}"
            yield Trial(name, number, features, combined, head, **values)  # type: ignore[arg-type]
