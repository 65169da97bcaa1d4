"""Clips that are the same: exactly, by the hashes that the store already keeps, or nearly.

- same media: the hash of the media bytes and the part of them used is equal.
- same content: tokens of every feature that both have are equal to the bit, so what was decoded was equal too.
- near: averages of tokens are alike over all features and in the less alike of sound and picture, and the recordings
  agree in time (see `agreement`). Thresholds and confidence come from a calibration (see `calibration`).

Recall falls on what the encoders cannot tell; the calibration says how far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from featurecache.explore.calibration import Calibration
from featurecache.explore.search import Neighbourhood, nearest_rows
from featurecache.spec import Spec
from featurecache.store.local import LocalStore
from featurecache.store.protocols import Status

NUM_CANDIDATES = 32
"""Neighbours of a clip that are looked at."""
QUERIES_AT_ONCE = 4096

Agree = Callable[[str, str], float | None]
"""How far two clips agree in time; None where their media cannot be compared."""


@dataclass(frozen=True)
class Pair:
    """Two clips taken for the same, and why."""

    a: str
    b: str
    kind: str
    """same media | same content | near"""
    similarity: float
    """Of averages."""
    agreement: float
    """In time, of the less of sound and picture."""
    confidence: float
    """0 to 1; 1 for exact ones."""


def modality(spec: Spec) -> str:
    """What a feature is made of: sound, picture, or other (an encoder that does not say)."""
    if "sampling_rate" in spec.preprocessing:
        return "sound"
    return "picture" if "frame_rule" in spec.preprocessing else "other"


class PairScorer:
    """Similarity of pairs, over everything and by modality."""

    def __init__(self, neighbourhood: Neighbourhood, specs: Mapping[str, Spec]) -> None:
        self._weights = neighbourhood.weights
        self._modality = {name: modality(specs[name]) for name in neighbourhood.names}
        self.modalities = sorted(set(self._modality.values()))

    def __call__(self, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Feature name -> (n, R) vectors of both sides -> (n,) similarity, and (n,) that of the less alike modality.

        A modality counts where both have it; a pair without a common one scores −1.
        """
        count = len(next(iter(a.values())))
        total, weight = np.zeros((2, len(self.modalities), count))
        for name in self._weights:
            row = self.modalities.index(self._modality[name])
            both = (np.abs(a[name]).sum(1) > 0) & (np.abs(b[name]).sum(1) > 0)
            total[row] += self._weights[name] * both * np.einsum("nr,nr->n", a[name], b[name])
            weight[row] += self._weights[name] * both
        common = weight.sum(0) > 0
        by_modality = np.where(weight > 0, total / np.maximum(weight, 1e-12), np.inf)
        similarity = np.where(common, total.sum(0) / np.maximum(weight.sum(0), 1e-12), -1)
        return similarity, np.where(common, by_modality.min(0), -1)


def exact_pairs(store: LocalStore, names: Sequence[str], wanted: Callable[[str], bool]) -> Iterator[Pair]:
    """Pairs with equal media or equal tokens, each clip with the first of its kind."""
    by_source: dict[tuple[str, str], str] = {}
    tokens: dict[str, list[tuple[str, int]]] = {}
    said: set[tuple[str, str]] = set()
    for name in names:
        for record in store[name].records():
            if record.status is not Status.OK or not wanted(record.id):
                continue
            tokens.setdefault(record.id, []).append((name, record.crc32c))
            first = by_source.setdefault((name, record.source), record.id) if record.source else record.id
            if first != record.id and (first, record.id) not in said:
                said.add((first, record.id))
                yield Pair(first, record.id, "same media", 1.0, 1.0, 1.0)
    by_tokens: dict[tuple[tuple[str, int], ...], str] = {}
    for clip_id, checksums in tokens.items():
        first = by_tokens.setdefault(tuple(sorted(checksums)), clip_id)
        if first != clip_id and (first, clip_id) not in said:
            yield Pair(first, clip_id, "same content", 1.0, 1.0, 1.0)


@dataclass
class NearPairs:
    """Near pairs, and how many could not be decided."""

    pairs: list[Pair] = field(default_factory=list)
    undecided: int = 0
    """Pairs alike by averages whose media cannot be compared in time."""


def near_pairs(
    neighbourhood: Neighbourhood,
    specs: Mapping[str, Spec],
    calibration: Calibration,
    agree: Agree,
    queries: Sequence[str],
    among: Sequence[str] | None = None,
    *,
    known: Set[frozenset[str]] = frozenset(),
    num_candidates: int = NUM_CANDIDATES,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> NearPairs:
    """Pairs of a clip of `queries` with one of `among` (by default of `queries` too) that pass the calibration.

    Pairs in `known` are left out. `agree` says how far two clips agree in time, or None.
    """
    candidates = list(_screened(neighbourhood, specs, calibration, queries, among, num_candidates))
    found = NearPairs()
    advance(0, len(candidates))
    for number, (a, b, similarity) in enumerate(sorted(candidates)):
        if frozenset((a, b)) not in known:
            agreement = agree(a, b)
            if agreement is None:
                found.undecided += 1
            elif agreement >= calibration.agreement:
                confidence = float(calibration.confidence(np.array(agreement)))
                found.pairs.append(Pair(a, b, "near", similarity, agreement, confidence))
        advance(number + 1, len(candidates))
    return found


def _screened(
    neighbourhood: Neighbourhood,
    specs: Mapping[str, Spec],
    calibration: Calibration,
    queries: Sequence[str],
    among: Sequence[str] | None,
    num_candidates: int,
) -> Iterator[tuple[str, str, float]]:
    """Yield pairs whose averages are alike, and their similarity."""
    scorer = PairScorer(neighbourhood, specs)
    rows = np.array([neighbourhood.place(clip_id) for clip_id in queries], np.int64)
    others = rows if among is None else np.array([neighbourhood.place(clip_id) for clip_id in among], np.int64)
    candidates = neighbourhood.vectors[others]
    seen: set[tuple[int, int]] = set()
    for begin in range(0, len(rows), QUERIES_AT_ONCE):
        some = rows[begin : begin + QUERIES_AT_ONCE]
        similarities, nearest = nearest_rows(neighbourhood.vectors[some], candidates, num_candidates + 1)
        near = np.argwhere(similarities >= min(0.0, calibration.threshold))
        left, right = some[near[:, 0]], others[nearest[near[:, 0], near[:, 1]]]
        similarity, floor = scorer(neighbourhood.parts(left), neighbourhood.parts(right))
        for n in np.flatnonzero(calibration.screens(similarity, floor)).tolist():
            pair = (min(int(left[n]), int(right[n])), max(int(left[n]), int(right[n])))
            if pair[0] != pair[1] and pair not in seen:
                seen.add(pair)
                yield neighbourhood.ids[int(left[n])], neighbourhood.ids[int(right[n])], float(similarity[n])


def groups(pairs: Iterable[Pair]) -> list[list[str]]:
    """Clips that hang together by pairs, largest group first; ids sorted."""
    parent: dict[str, str] = {}

    def root(clip_id: str) -> str:
        parent.setdefault(clip_id, clip_id)
        while parent[clip_id] != clip_id:
            parent[clip_id] = parent[parent[clip_id]]
            clip_id = parent[clip_id]
        return clip_id

    for pair in pairs:
        parent[root(pair.a)] = root(pair.b)
    found: dict[str, list[str]] = {}
    for clip_id in parent:
        found.setdefault(root(clip_id), []).append(clip_id)
    return sorted((sorted(group) for group in found.values()), key=lambda group: (-len(group), group))
