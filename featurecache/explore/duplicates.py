"""Duplicates within a clip list, and leaks between training and test clips: exact copies and near copies.

    index ─▶ neighbourhood ─▶ exact pairs (hashes) + near pairs (calibrated) ─▶ groups ─▶ exclusion (a clip list)

- same media: equal hash of the media bytes and of the part of them that the clip uses.
- same content: equal tokens, bit for bit, in every feature that both clips have, so the decoded media were equal.
- near: the token summaries are similar over all features and in the less similar of sound and picture, and the
  recordings agree in time (see `agreement`). Thresholds and confidence come from a calibration (see `calibration`).

Copies that the encoders do not recognise are missed; the calibration measures the recall.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np

from featurecache.clips.clip_list import ClipList
from featurecache.explore.agreement import TimeAgreement
from featurecache.explore.calibration import Calibration
from featurecache.explore.search import Neighbourhood, nearest_rows
from featurecache.spec import Spec
from featurecache.store.local import LocalStore
from featurecache.store.protocols import Status

NUM_CANDIDATES = 32
"""Nearest neighbours per clip that are compared."""
QUERIES_AT_ONCE = 4096

Advance = Callable[[int, int], None]
Agree = Callable[[str, str], float | None]
"""Returns the agreement of two clips in time; None if their media cannot be compared."""


@dataclass(frozen=True)
class Pair:
    """Two clips that are duplicates, with the evidence."""

    a: str
    b: str
    kind: str
    """same media | same content | near"""
    similarity: float
    """Of the token summaries."""
    agreement: float
    """In time; the lower one of sound and picture."""
    confidence: float
    """0 to 1; 1 for exact copies."""


def modality(spec: Spec) -> str:
    """Return the modality of a feature: sound, picture, or other (if the spec does not tell)."""
    if "sampling_rate" in spec.preprocessing:
        return "sound"
    return "picture" if "frame_rule" in spec.preprocessing else "other"


class PairScorer:
    """Similarity of pairs over all features, and of the less similar modality."""

    def __init__(self, neighbourhood: Neighbourhood, specs: Mapping[str, Spec]) -> None:
        self._weights = neighbourhood.weights
        self._modality = {name: modality(specs[name]) for name in neighbourhood.names}
        self.modalities = sorted(set(self._modality.values()))

    def __call__(self, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Compare (n, R) vectors of both sides, by feature name.

        Returns (n,) similarity over all features, and (n,) similarity of the less similar modality. Only modalities
        that both clips have are compared; a pair without a common modality scores −1.
        """
        count = len(next(iter(a.values())))
        total, weight = np.zeros((2, len(self.modalities), count))
        for name in self._weights:
            row = self.modalities.index(self._modality[name])
            present = (np.abs(a[name]).sum(1) > 0) & (np.abs(b[name]).sum(1) > 0)
            total[row] += self._weights[name] * present * np.einsum("nr,nr->n", a[name], b[name])
            weight[row] += self._weights[name] * present
        common = weight.sum(0) > 0
        by_modality = np.where(weight > 0, total / np.maximum(weight, 1e-12), np.inf)
        similarity = np.where(common, total.sum(0) / np.maximum(weight.sum(0), 1e-12), -1)
        return similarity, np.where(common, by_modality.min(0), -1)


def exact_pairs(store: LocalStore, names: Sequence[str], included: Callable[[str], bool]) -> Iterator[Pair]:
    """Yield pairs with equal media or equal tokens: each clip with the first clip that has the same."""
    by_source: dict[tuple[str, str], str] = {}
    tokens: dict[str, list[tuple[str, int]]] = {}
    yielded: set[tuple[str, str]] = set()
    for name in names:
        for record in store[name].records():
            if record.status is not Status.OK or not included(record.id):
                continue
            tokens.setdefault(record.id, []).append((name, record.crc32c))
            first = by_source.setdefault((name, record.source), record.id) if record.source else record.id
            if first != record.id and (first, record.id) not in yielded:
                yielded.add((first, record.id))
                yield Pair(first, record.id, "same media", 1.0, 1.0, 1.0)
    by_tokens: dict[tuple[tuple[str, int], ...], str] = {}
    for clip_id, checksums in tokens.items():
        first = by_tokens.setdefault(tuple(sorted(checksums)), clip_id)
        if first != clip_id and (first, clip_id) not in yielded:
            yield Pair(first, clip_id, "same content", 1.0, 1.0, 1.0)


@dataclass
class NearPairs:
    """Near pairs, and the number of undecided ones."""

    pairs: list[Pair] = field(default_factory=list)
    undecided: int = 0
    """Pairs with similar summaries whose media cannot be compared in time."""


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
    advance: Advance = lambda done, total: None,
) -> NearPairs:
    """Find pairs of a clip of `queries` and a clip of `among` (by default `queries`) that the calibrated rule accepts.

    Pairs in `known` are left out.
    """
    candidates = list(_screened(neighbourhood, specs, calibration, queries, among, num_candidates))
    near = NearPairs()
    advance(0, len(candidates))
    for number, (a, b, similarity) in enumerate(sorted(candidates)):
        if frozenset((a, b)) not in known:
            agreement = agree(a, b)
            if agreement is None:
                near.undecided += 1
            elif agreement >= calibration.agreement:
                confidence = float(calibration.confidence(np.array(agreement)))
                near.pairs.append(Pair(a, b, "near", similarity, agreement, confidence))
        advance(number + 1, len(candidates))
    return near


def _screened(
    neighbourhood: Neighbourhood,
    specs: Mapping[str, Spec],
    calibration: Calibration,
    queries: Sequence[str],
    among: Sequence[str] | None,
    num_candidates: int,
) -> Iterator[tuple[str, str, float]]:
    """Yield pairs whose summaries are similar enough to compare their media, and the similarity."""
    scorer = PairScorer(neighbourhood, specs)
    rows = np.array([neighbourhood.row_of(clip_id) for clip_id in queries], np.int64)
    others = rows if among is None else np.array([neighbourhood.row_of(clip_id) for clip_id in among], np.int64)
    candidates = neighbourhood.vectors[others]
    yielded: set[tuple[int, int]] = set()
    for begin in range(0, len(rows), QUERIES_AT_ONCE):
        batch = rows[begin : begin + QUERIES_AT_ONCE]
        similarities, nearest = nearest_rows(neighbourhood.vectors[batch], candidates, num_candidates + 1)
        near = np.argwhere(similarities >= min(0.0, calibration.threshold))
        left, right = batch[near[:, 0]], others[nearest[near[:, 0], near[:, 1]]]
        similarity, floor = scorer(neighbourhood.by_feature(left), neighbourhood.by_feature(right))
        for n in np.flatnonzero(calibration.screens(similarity, floor)).tolist():
            pair = (min(int(left[n]), int(right[n])), max(int(left[n]), int(right[n])))
            if pair[0] != pair[1] and pair not in yielded:
                yielded.add(pair)
                yield neighbourhood.ids[int(left[n])], neighbourhood.ids[int(right[n])], float(similarity[n])


def groups(pairs: Iterable[Pair]) -> list[list[str]]:
    """Return the connected groups of clips by pairs, largest group first; ids sorted."""
    parent: dict[str, str] = {}

    def root(clip_id: str) -> str:
        parent.setdefault(clip_id, clip_id)
        while parent[clip_id] != clip_id:
            parent[clip_id] = parent[parent[clip_id]]
            clip_id = parent[clip_id]
        return clip_id

    for pair in pairs:
        parent[root(pair.a)] = root(pair.b)
    members: dict[str, list[str]] = {}
    for clip_id in parent:
        members.setdefault(root(clip_id), []).append(clip_id)
    return sorted((sorted(group) for group in members.values()), key=lambda group: (-len(group), group))


@dataclass(frozen=True)
class Duplicates:
    """Duplicate pairs, their groups, and the clips to exclude."""

    pairs: list[Pair]
    groups: list[list[str]]
    exclusion: list[str]
    """Clips to leave out so that no pair remains: of duplicates all but the first in the list, of leaks the training
    side. Near pairs of an uncalibrated rule exclude nothing."""
    undecided: int = 0
    """Pairs with similar summaries whose media cannot be compared in time."""


def find_duplicates(
    store: LocalStore,
    neighbourhood: Neighbourhood,
    clips: ClipList,
    calibration: Calibration,
    *,
    advance: Advance = lambda done, total: None,
) -> Duplicates:
    """Find duplicates among the clips of the list; `neighbourhood` has the comparison `copies`."""
    ids = [clip.id for clip in clips if clip.id in neighbourhood]
    compared_ids = set(ids)
    specs = {name: store.spec(name) for name in neighbourhood.names}
    exact = list(exact_pairs(store, neighbourhood.names, compared_ids.__contains__))
    near = near_pairs(
        neighbourhood, specs, calibration, TimeAgreement(clips.by_id), ids, known=_id_pairs(exact), advance=advance
    )
    pairs = [*exact, *near.pairs]
    order = {clip_id: n for n, clip_id in enumerate(clips.ids)}
    certain = groups(pairs if calibration.calibrated else exact)
    exclusion = [clip_id for group in certain for clip_id in sorted(group, key=order.__getitem__)[1:]]
    return Duplicates(_sorted(pairs), groups(pairs), sorted(exclusion, key=order.__getitem__), near.undecided)


def find_leaks(
    store: LocalStore,
    neighbourhood: Neighbourhood,
    clips: ClipList,
    train: Sequence[str],
    test: Sequence[str],
    calibration: Calibration,
    *,
    advance: Advance = lambda done, total: None,
) -> Duplicates:
    """Find pairs of a training clip and a test clip; the exclusion is the training side."""
    train, test = ([clip_id for clip_id in ids if clip_id in neighbourhood] for ids in (train, test))
    in_train, in_test = set(train), set(test)
    specs = {name: store.spec(name) for name in neighbourhood.names}
    exact = exact_pairs(store, neighbourhood.names, lambda clip_id: clip_id in in_train or clip_id in in_test)
    across = _across(exact, in_train, in_test)
    near = near_pairs(
        neighbourhood,
        specs,
        calibration,
        TimeAgreement(clips.by_id),
        test,
        train,
        known=_id_pairs(across),
        advance=advance,
    )
    pairs = [pair if pair.a in in_train else replace(pair, a=pair.b, b=pair.a) for pair in [*across, *near.pairs]]
    leaked = {pair.a for pair in pairs if calibration.calibrated or pair.kind != "near"}
    exclusion = [clip_id for clip_id in train if clip_id in leaked]
    return Duplicates(_sorted(pairs), groups(pairs), exclusion, near.undecided)


def _across(pairs: Iterable[Pair], train: set[str], test: set[str]) -> list[Pair]:
    """Return every train-test pair of each group of exact copies."""
    exact = list(pairs)
    kinds = {clip_id: pair.kind for pair in exact for clip_id in (pair.a, pair.b)}
    return [
        Pair(a, b, kinds[b], 1.0, 1.0, 1.0)
        for group in groups(exact)
        for a in group
        if a in train
        for b in group
        if b in test
    ]


def _id_pairs(pairs: Iterable[Pair]) -> set[frozenset[str]]:
    return {frozenset((pair.a, pair.b)) for pair in pairs}


def _sorted(pairs: Iterable[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (-pair.confidence, -pair.similarity, pair.a, pair.b))
