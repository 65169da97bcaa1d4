"""`fcache duplicates` and `fcache leaks`: pairs, groups, and the clips to leave out.

indices ─▶ neighbourhood ─▶ exact pairs (hashes) + near pairs (calibrated) ─▶ groups ─▶ exclusion (a clip list)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.error import FFmpegError

from featurecache.again import OpenEncoder
from featurecache.clips import Clip, ClipList
from featurecache.errors import ClipListError
from featurecache.extras import require
from featurecache.similarity.augment import AUGMENTATIONS, augment
from featurecache.similarity.calibration import (
    MAX_FALSE_POSITIVE_RATE,
    Calibration,
    fit_calibration,
    load_calibration,
    uncalibrated,
)
from featurecache.similarity.duplicates import Pair, PairScorer, exact_pairs, groups, near_pairs
from featurecache.similarity.index import index_folder
from featurecache.similarity.media_vectors import media_vectors
from featurecache.similarity.search import Neighbourhood
from featurecache.store.local import LocalStore
from featurecache.store.publish import make_folder, replace_bytes

NUM_CALIBRATED = 40
NUM_RANDOM_PAIRS = 200_000

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Doubles:
    """What was found."""

    pairs: list[Pair]
    groups: list[list[str]]
    exclusion: list[str]
    """Clips to leave out so that no pair is left: of duplicates all but the first in the list, of leaks the training
    side."""


def known_calibration(store: LocalStore, neighbourhood: Neighbourhood) -> Calibration:
    """The calibration kept for these features and weights, or a cautious rule where there is none."""
    fingerprints = {name: store[name].fingerprint for name in neighbourhood.names}
    found = load_calibration(_calibration_file(store), fingerprints, neighbourhood.weights)
    if found is not None:
        return found
    random = np.random.default_rng(0)
    left, right = random.integers(len(neighbourhood), size=(2, NUM_RANDOM_PAIRS))
    left, right = left[left != right], right[left != right]
    scorer = PairScorer(neighbourhood, {name: store.spec(name) for name in neighbourhood.names})
    some = np.array_split(np.arange(len(left)), max(1, len(left) // 10_000))
    scores = [scorer(neighbourhood.parts(left[part]), neighbourhood.parts(right[part])) for part in some]
    similarity, agreement = (np.concatenate([score[side] for score in scores]) for side in (0, 1))
    common = similarity > -1
    return uncalibrated(similarity[common], agreement[common], fingerprints, neighbourhood.weights)


def calibrate(
    store: LocalStore,
    neighbourhood: Neighbourhood,
    clips: ClipList,
    open_for: OpenEncoder,
    *,
    num_clips: int = NUM_CALIBRATED,
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE,
    seed: int = 0,
    advance: Advance = lambda done, total: None,
) -> Calibration:
    """Alter some clips of the list, measure, and keep the rule beside the store.

    Raises:
        ClipListError: fewer than four clips with moving pictures or sound.
        FingerprintError: an encoder that opens is not the one a feature was made with.
    """
    require("explore", "sklearn", subject="--calibrate")
    usable = [clip for clip in clips if clip.id in neighbourhood and (clip.video or clip.audio)]
    if len(usable) < 4:
        raise ClipListError("--calibrate", expected="at least 4 clips with video or audio", got=str(len(usable)))
    # Opened first: weights that are missing, or others, are told before the work of altering.
    encoders = {name: open_for(store.spec(name)) for name in neighbourhood.names}
    chosen = np.random.default_rng(seed).choice(len(usable), min(num_clips, len(usable)), replace=False)
    with tempfile.TemporaryDirectory(prefix="fcache-altered-") as folder:
        copies, ways, originals = _alter([usable[n] for n in sorted(chosen)], Path(folder), advance)
        ids, vectors, _ = media_vectors(store, neighbourhood, copies, encoders)
    kept = [n for n, clip in enumerate(copies) if clip.id in set(ids)]
    original = np.array([neighbourhood.place(originals[n]) for n in kept])
    similarity, agreement = _against_all(store, neighbourhood, vectors)
    doubles: dict[int, set[int]] = {}
    for pair in exact_pairs(store, neighbourhood.names, lambda clip_id: True):
        a, b = neighbourhood.place(pair.a), neighbourhood.place(pair.b)
        doubles.setdefault(a, set()).add(b)
        doubles.setdefault(b, set()).add(a)
    for row, place in enumerate(original.tolist()):
        similarity[row, list(doubles.get(place, ()))] = -1  # neither true nor false: they are copies, too
    rule = fit_calibration(
        similarity, agreement, original, [ways[n] for n in kept],
        {name: store[name].fingerprint for name in neighbourhood.names}, neighbourhood.weights, max_false_positive_rate,
    )  # fmt: skip
    make_folder(_calibration_file(store).parent)
    replace_bytes(_calibration_file(store), rule.to_json().encode())
    return rule


def find_duplicates(
    store: LocalStore,
    neighbourhood: Neighbourhood,
    clips: ClipList,
    calibration: Calibration,
    *,
    advance: Advance = lambda done, total: None,
) -> Doubles:
    """Pairs among the clips of the list."""
    here = [clip.id for clip in clips if clip.id in neighbourhood]
    listed = set(here)
    specs = {name: store.spec(name) for name in neighbourhood.names}
    pairs = list(exact_pairs(store, neighbourhood.names, listed.__contains__))
    pairs += _new(pairs, near_pairs(neighbourhood, specs, calibration, here, advance=advance))
    found = groups(pairs)
    order = {clip_id: n for n, clip_id in enumerate(clips.ids)}
    left_out = [clip_id for group in found for clip_id in sorted(group, key=order.__getitem__)[1:]]
    return Doubles(_sorted(pairs), found, sorted(left_out, key=order.__getitem__))


def find_leaks(
    store: LocalStore,
    neighbourhood: Neighbourhood,
    train: Sequence[str],
    test: Sequence[str],
    calibration: Calibration,
    *,
    advance: Advance = lambda done, total: None,
) -> Doubles:
    """Pairs of a training clip with a test clip; the exclusion is the training side."""
    train, test = ([clip_id for clip_id in ids if clip_id in neighbourhood] for ids in (train, test))
    in_train, in_test = set(train), set(test)
    specs = {name: store.spec(name) for name in neighbourhood.names}
    exact = exact_pairs(store, neighbourhood.names, lambda clip_id: clip_id in in_train or clip_id in in_test)
    pairs = _across(exact, in_train, in_test)
    pairs += _new(pairs, near_pairs(neighbourhood, specs, calibration, test, train, advance=advance))
    pairs = [pair if pair.a in in_train else Pair(pair.b, pair.a, *_rest(pair)) for pair in pairs]
    leaked = {pair.a for pair in pairs}
    return Doubles(_sorted(pairs), groups(pairs), [clip_id for clip_id in train if clip_id in leaked])


def _across(pairs: Iterable[Pair], train: set[str], test: set[str]) -> list[Pair]:
    """Every train-test pair of each group of exact copies."""
    exact = list(pairs)
    kinds = {clip_id: pair.kind for pair in exact for clip_id in (pair.a, pair.b)}
    return [
        Pair(a, b, kinds[b], 1.0, 1.0, 1.0)
        for group in groups(exact) for a in group if a in train for b in group if b in test
    ]  # fmt: skip


def _rest(pair: Pair) -> tuple[str, float, float, float]:
    return pair.kind, pair.similarity, pair.agreement, pair.confidence


def _new(pairs: Sequence[Pair], more: Iterable[Pair]) -> list[Pair]:
    known = {frozenset((pair.a, pair.b)) for pair in pairs}
    return [pair for pair in more if frozenset((pair.a, pair.b)) not in known]


def _sorted(pairs: Iterable[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (-pair.confidence, -pair.similarity, pair.a, pair.b))


def _alter(clips: Sequence[Clip], folder: Path, advance: Advance) -> tuple[list[Clip], list[str], list[str]]:
    """Write every clip altered in every way that its media allow."""
    copies, ways, originals = [], [], []
    total = len(clips) * len(AUGMENTATIONS)
    advance(0, total)
    for number, (clip, how) in enumerate((clip, how) for clip in clips for how in AUGMENTATIONS):
        path = folder / f"{number}.mp4"
        applies = (
            (how.video and clip.video) or (how.audio and (clip.audio or clip.video)) or not (how.video or how.audio)
        )
        if applies:
            try:
                augment(clip, how, path)
            except (FFmpegError, OSError, ValueError):  # too short for the cut, say: one copy fewer to measure on
                continue
            copies.append(
                Clip(f"copy-{number}", video=path if clip.video else None, audio=None if clip.video else path)
            )
            ways.append(how.name)
            originals.append(clip.id)
        advance(number + 1, total)
    return copies, ways, originals


def _against_all(store: LocalStore, neighbourhood: Neighbourhood, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Q, R) vectors -> (Q, N) similarity and agreement with every clip."""
    scorer = PairScorer(neighbourhood, {name: store.spec(name) for name in neighbourhood.names})
    everything = neighbourhood.parts(np.arange(len(neighbourhood)))
    outside = neighbourhood.split(vectors)
    rows = []
    for row in range(len(vectors)):
        one = {name: np.broadcast_to(part[row], everything[name].shape) for name, part in outside.items()}
        rows.append(scorer(one, everything))
    return np.stack([row[0] for row in rows]), np.stack([row[1] for row in rows])


def _calibration_file(store: LocalStore) -> Path:
    return index_folder(store.location, "calibration.json")
