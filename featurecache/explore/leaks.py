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

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.errors import ClipListError
from featurecache.explore.agreement import TimeAgreement
from featurecache.explore.augment import AUGMENTATIONS, augment
from featurecache.explore.calibration import (
    FAR_DEVIATIONS,
    MAX_FALSE_POSITIVE_RATE,
    SCREEN_DEVIATIONS,
    Calibration,
    Measured,
    fit_calibration,
    load_calibration,
    uncalibrated,
)
from featurecache.explore.duplicates import Pair, PairScorer, exact_pairs, groups, near_pairs
from featurecache.explore.index_files import CALIBRATION, IndexFiles, index_files
from featurecache.explore.media_vectors import media_vectors
from featurecache.explore.search import Neighbourhood, nearest_rows
from featurecache.extract.job import OpenEncoder
from featurecache.extras import require
from featurecache.store.local import LocalStore

NUM_CALIBRATED = 40
NUM_RANDOM_PAIRS = 200_000
NUM_LOOKALIKES = 8
"""Pairs that matter a clip, of the same text by other speakers; and as many nearest ones."""
NUM_NEAREST = 256
"""Nearest clips that these are sought among."""

Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Doubles:
    """Pairs, and what follows of them."""

    pairs: list[Pair]
    groups: list[list[str]]
    exclusion: list[str]
    """Clips to leave out so that no pair is left: of duplicates all but the first in the list, of leaks the training
    side. Near pairs of a rule that is not calibrated leave nothing out."""
    undecided: int = 0
    """Pairs alike by averages whose media cannot be compared in time."""


def known_calibration(store: LocalStore, neighbourhood: Neighbourhood, files: IndexFiles | None = None) -> Calibration:
    """The calibration kept for these features and weights, or a cautious rule where there is none.

    `neighbourhood` compares as copies are found.
    """
    kept = load_calibration(
        files or index_files(store.location), _fingerprints(store, neighbourhood), neighbourhood.weights
    )
    return kept or cautious_rule(store, neighbourhood, SCREEN_DEVIATIONS)


def cautious_rule(store: LocalStore, neighbourhood: Neighbourhood, deviations: float = FAR_DEVIATIONS) -> Calibration:
    """The rule that pairs drawn at random give: so many deviations above their median."""
    random = np.random.default_rng(0)
    left, right = random.integers(len(neighbourhood), size=(2, NUM_RANDOM_PAIRS))
    left, right = left[left != right], right[left != right]
    scorer = PairScorer(neighbourhood, {name: store.spec(name) for name in neighbourhood.names})
    some = np.array_split(np.arange(len(left)), max(1, len(left) // 10_000))
    scores = [scorer(neighbourhood.parts(left[part]), neighbourhood.parts(right[part])) for part in some]
    similarity, floor = (np.concatenate([score[side] for score in scores]) for side in (0, 1))
    common = similarity > -1
    return uncalibrated(
        similarity[common], floor[common], _fingerprints(store, neighbourhood), neighbourhood.weights, deviations
    )


def calibrate(
    store: LocalStore,
    neighbourhood: Neighbourhood,
    clips: ClipList,
    open_for: OpenEncoder,
    *,
    num_clips: int = NUM_CALIBRATED,
    max_false_positive_rate: float = MAX_FALSE_POSITIVE_RATE,
    seed: int = 0,
    files: IndexFiles | None = None,
    advance: Advance = lambda done, total: None,
) -> Calibration:
    """Alter some clips of the list, measure, and keep the rule beside the store.

    Raises:
        ClipListError: fewer than four clips with moving pictures or sound.
        StoreError: none of their media can be compared in time.
        FingerprintError: an encoder that opens is not the one a feature was made with.
    """
    require("explore", "sklearn", subject="--calibrate")
    usable = [clip for clip in clips if clip.id in neighbourhood and (clip.video or clip.audio)]
    if len(usable) < 4:
        raise ClipListError("--calibrate", expected="at least 4 clips with video or audio", got=str(len(usable)))
    # Opened first: weights that are missing, or others, are told before the work of altering.
    encoders = {name: open_for(store.spec(name)) for name in neighbourhood.names}
    places = np.random.default_rng(seed).choice(len(usable), min(num_clips, len(usable)), replace=False)
    chosen = [usable[n] for n in sorted(places)]
    specs = {name: store.spec(name) for name in neighbourhood.names}
    scorer = PairScorer(neighbourhood, specs)
    with tempfile.TemporaryDirectory(prefix="fcache-altered-") as folder:
        copies, ways, originals = _alter(chosen, Path(folder), advance)
        ids, vectors, _ = media_vectors(store, neighbourhood, copies, encoders, files)
        encoded = set(ids)
        kept = [n for n, clip in enumerate(copies) if clip.id in encoded]
        by_id = {clip.id: clip for clip in [*clips, *copies]}
        agree = TimeAgreement(by_id.__getitem__)
        agreement = [agree(originals[n], copies[n].id) for n in kept]
    original = np.array([neighbourhood.place(originals[n]) for n in kept])
    similarity, floor = scorer(neighbourhood.split(vectors), neighbourhood.parts(original))
    false = _pairs_that_matter(store, neighbourhood, clips, chosen)
    left, right = (np.array([neighbourhood.place(pair[side]) for pair in false]) for side in (0, 1))
    false_similarity, false_floor = scorer(neighbourhood.parts(left), neighbourhood.parts(right))
    false_agreement = np.array([-1.0 if (value := agree(a, b)) is None else value for a, b, _ in false])
    rule = fit_calibration(
        Measured(
            similarity,
            floor,
            np.array([-1.0 if value is None else value for value in agreement]),
            original,
            [ways[n] for n in kept],
            false_similarity,
            false_floor,
            false_agreement,
            left,
            np.array([same_text for _, _, same_text in false]),
        ),
        _fingerprints(store, neighbourhood),
        neighbourhood.weights,
        max_false_positive_rate,
    )
    (files or index_files(store.location)).write(CALIBRATION, rule.to_bytes())
    return rule


def _pairs_that_matter(
    store: LocalStore, neighbourhood: Neighbourhood, clips: ClipList, chosen: Sequence[Clip]
) -> list[tuple[str, str, bool]]:
    """Pairs of different clips that a rule could mistake: ids, and whether they are of one text by two speakers.

    Where text and speaker are not known, the nearest clips stand for them. Copies among these are what is sought, so
    that exact ones are left out; of near ones nothing is known, and clips of one speaker and text may be such.
    """
    listed = {clip.id: clip for clip in clips if clip.id in neighbourhood}
    copies: dict[str, set[str]] = {}
    for pair in exact_pairs(store, neighbourhood.names, listed.__contains__):
        copies.setdefault(pair.a, set()).add(pair.b)
        copies.setdefault(pair.b, set()).add(pair.a)
    rows = [neighbourhood.place(clip.id) for clip in chosen]
    _, nearest = nearest_rows(neighbourhood.vectors[rows], neighbourhood.vectors, len(neighbourhood))
    found: list[tuple[str, str, bool]] = []
    for clip, row in zip(chosen, nearest.tolist(), strict=True):
        others = [listed[neighbourhood.ids[place]] for place in row if neighbourhood.ids[place] in listed]
        others = [other for other in others if other.id != clip.id and other.id not in copies.get(clip.id, ())]
        same_text = [other for other in others if _same_text(clip, other) and _other_speaker(clip, other)]
        known = [other for other in others[:NUM_NEAREST] if _other_speaker(clip, other) and not _same_text(clip, other)]
        found += [(clip.id, other.id, True) for other in same_text[:NUM_LOOKALIKES]]
        found += [(clip.id, other.id, False) for other in known[:NUM_LOOKALIKES]]
        if not same_text and not known:
            found += [(clip.id, other.id, False) for other in others[:NUM_LOOKALIKES] if not _same_text(clip, other)]
    return found


def _same_text(a: Clip, b: Clip) -> bool:
    return a.text is not None and b.text is not None and a.text.split() == b.text.split()


def _other_speaker(a: Clip, b: Clip) -> bool:
    return a.speaker is not None and b.speaker is not None and a.speaker != b.speaker


def find_duplicates(
    store: LocalStore,
    neighbourhood: Neighbourhood,
    clips: ClipList,
    calibration: Calibration,
    *,
    advance: Advance = lambda done, total: None,
) -> Doubles:
    """Pairs among the clips of the list; `neighbourhood` compares as copies are found."""
    here = [clip.id for clip in clips if clip.id in neighbourhood]
    listed = set(here)
    specs = {name: store.spec(name) for name in neighbourhood.names}
    exact = list(exact_pairs(store, neighbourhood.names, listed.__contains__))
    near = near_pairs(
        neighbourhood, specs, calibration, TimeAgreement(clips.by_id), here, known=_known(exact), advance=advance
    )
    pairs = [*exact, *near.pairs]
    order = {clip_id: n for n, clip_id in enumerate(clips.ids)}
    sure = groups(pairs if calibration.calibrated else exact)
    left_out = [clip_id for group in sure for clip_id in sorted(group, key=order.__getitem__)[1:]]
    return Doubles(_sorted(pairs), groups(pairs), sorted(left_out, key=order.__getitem__), near.undecided)


def find_leaks(
    store: LocalStore,
    neighbourhood: Neighbourhood,
    clips: ClipList,
    train: Sequence[str],
    test: Sequence[str],
    calibration: Calibration,
    *,
    advance: Advance = lambda done, total: None,
) -> Doubles:
    """Pairs of a training clip with a test clip of the list; the exclusion is the training side."""
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
        known=_known(across),
        advance=advance,
    )
    pairs = [pair if pair.a in in_train else Pair(pair.b, pair.a, *_rest(pair)) for pair in [*across, *near.pairs]]
    leaked = {pair.a for pair in pairs if calibration.calibrated or pair.kind != "near"}
    left_out = [clip_id for clip_id in train if clip_id in leaked]
    return Doubles(_sorted(pairs), groups(pairs), left_out, near.undecided)


def _across(pairs: Iterable[Pair], train: set[str], test: set[str]) -> list[Pair]:
    """Every train-test pair of each group of exact copies."""
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


def _rest(pair: Pair) -> tuple[str, float, float, float]:
    return pair.kind, pair.similarity, pair.agreement, pair.confidence


def _known(pairs: Iterable[Pair]) -> set[frozenset[str]]:
    return {frozenset((pair.a, pair.b)) for pair in pairs}


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


def _fingerprints(store: LocalStore, neighbourhood: Neighbourhood) -> dict[str, str]:
    return {name: store[name].fingerprint for name in neighbourhood.names}
