"""Calibrate the rule for near duplicates on a clip list: alter clips, encode the copies, compare, fit, store the rule.

The false pairs are hard negatives: different clips that the rule could take for copies. See `calibration` for the fit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from av.error import FFmpegError

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.errors import ClipListError
from featurecache.explore.agreement import UNDECIDED, TimeAgreement
from featurecache.explore.augment import AUGMENTATIONS, augment
from featurecache.explore.calibration import (
    FAR_DEVIATIONS,
    MAX_FALSE_POSITIVE_RATE,
    SCREEN_DEVIATIONS,
    Calibration,
    CalibrationPairs,
    fit_calibration,
    load_calibration,
    uncalibrated,
)
from featurecache.explore.duplicates import Advance, PairScorer, exact_pairs
from featurecache.explore.index_files import CALIBRATION, IndexFiles, index_files
from featurecache.explore.media_vectors import media_vectors
from featurecache.explore.search import Neighbourhood, nearest_rows
from featurecache.extract.job import OpenEncoder
from featurecache.extras import require
from featurecache.store.local import LocalStore

NUM_CALIBRATED = 40
NUM_RANDOM_PAIRS = 200_000
NUM_NEGATIVES = 8
"""Hard negatives per clip with the same text and another speaker; and as many among the nearest clips."""
NUM_NEAREST = 256
"""Nearest clips per clip that hard negatives are chosen from."""


def known_calibration(store: LocalStore, neighbourhood: Neighbourhood, files: IndexFiles | None = None) -> Calibration:
    """Return the stored calibration of these features and weights, or a cautious rule if there is none.

    `neighbourhood` has the comparison `copies`.
    """
    stored = load_calibration(
        files or index_files(store.location), _fingerprints(store, neighbourhood), neighbourhood.weights
    )
    return stored or cautious_rule(store, neighbourhood, SCREEN_DEVIATIONS)


def cautious_rule(store: LocalStore, neighbourhood: Neighbourhood, deviations: float = FAR_DEVIATIONS) -> Calibration:
    """Return a rule from random pairs: similarities `deviations` deviations above their median."""
    rng = np.random.default_rng(0)
    left, right = rng.integers(len(neighbourhood), size=(2, NUM_RANDOM_PAIRS))
    left, right = left[left != right], right[left != right]
    scorer = PairScorer(neighbourhood, {name: store.spec(name) for name in neighbourhood.names})
    batches = np.array_split(np.arange(len(left)), max(1, len(left) // 10_000))
    scores = [scorer(neighbourhood.by_feature(left[rows]), neighbourhood.by_feature(right[rows])) for rows in batches]
    similarity, floor = (np.concatenate([score[side] for score in scores]) for side in (0, 1))
    common = similarity > -1  # pairs with a common modality
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
    """Alter some clips of the list, fit the rule on their copies, and store it among the index files.

    Raises:
        ClipListError: fewer than four clips with moving pictures or sound.
        StoreError: none of their media can be compared in time.
        FingerprintError: an opened encoder is not the one that its feature was made with.
    """
    require("explore", "sklearn", subject="--calibrate")
    usable = [clip for clip in clips if clip.id in neighbourhood and (clip.video or clip.audio)]
    if len(usable) < 4:
        raise ClipListError("--calibrate", expected="at least 4 clips with video or audio", got=str(len(usable)))
    # Opened first, so that wrong or missing weights are an error before any clip is altered.
    encoders = {name: open_for(store.spec(name)) for name in neighbourhood.names}
    numbers = np.random.default_rng(seed).choice(len(usable), min(num_clips, len(usable)), replace=False)
    chosen = [usable[number] for number in sorted(numbers)]
    specs = {name: store.spec(name) for name in neighbourhood.names}
    scorer = PairScorer(neighbourhood, specs)
    with tempfile.TemporaryDirectory(prefix="fcache-altered-") as folder:
        copies, augmentations, originals = _alter(chosen, Path(folder), advance)
        ids, vectors, _ = media_vectors(store, neighbourhood, copies, encoders, files)
        encoded = set(ids)
        usable_copies = [n for n, clip in enumerate(copies) if clip.id in encoded]
        by_id = {clip.id: clip for clip in [*clips, *copies]}
        agree = TimeAgreement(by_id.__getitem__)
        copy_agreement = np.array([_number(agree(originals[n], copies[n].id)) for n in usable_copies])
    copy_of = np.array([neighbourhood.row_of(originals[n]) for n in usable_copies])
    copy_similarity, copy_floor = scorer(neighbourhood.split(vectors), neighbourhood.by_feature(copy_of))
    negatives = _hard_negatives(store, neighbourhood, clips, chosen)
    left = np.array([neighbourhood.row_of(a) for a, _, _ in negatives])
    right = np.array([neighbourhood.row_of(b) for _, b, _ in negatives])
    false_similarity, false_floor = scorer(neighbourhood.by_feature(left), neighbourhood.by_feature(right))
    rule = fit_calibration(
        CalibrationPairs(
            copy_similarity=copy_similarity,
            copy_floor=copy_floor,
            copy_agreement=copy_agreement,
            copy_of=copy_of,
            augmentations=[augmentations[n] for n in usable_copies],
            false_similarity=false_similarity,
            false_floor=false_floor,
            false_agreement=np.array([_number(agree(a, b)) for a, b, _ in negatives]),
            false_of=left,
            same_text=np.array([same_text for _, _, same_text in negatives]),
        ),
        _fingerprints(store, neighbourhood),
        neighbourhood.weights,
        max_false_positive_rate,
    )
    (files or index_files(store.location)).write(CALIBRATION, rule.to_bytes())
    return rule


def _number(agreement: float | None) -> float:
    """Return −1 for a pair whose media cannot be compared."""
    return UNDECIDED if agreement is None else agreement


def _hard_negatives(
    store: LocalStore, neighbourhood: Neighbourhood, clips: ClipList, chosen: Sequence[Clip]
) -> list[tuple[str, str, bool]]:
    """Return pairs of different clips that a rule could take for copies: both ids, and whether they have the same text.

    Clips with the same text by another speaker are chosen, and near clips by another speaker with another text; if
    text or speaker is unknown, the nearest clips. Exact copies are left out. Clips of the same speaker with the same
    text are left out too, because they may be near copies.
    """
    listed = {clip.id: clip for clip in clips if clip.id in neighbourhood}
    copies: dict[str, set[str]] = {}
    for pair in exact_pairs(store, neighbourhood.names, listed.__contains__):
        copies.setdefault(pair.a, set()).add(pair.b)
        copies.setdefault(pair.b, set()).add(pair.a)
    rows = [neighbourhood.row_of(clip.id) for clip in chosen]
    _, nearest = nearest_rows(neighbourhood.vectors[rows], neighbourhood.vectors, len(neighbourhood))
    pairs: list[tuple[str, str, bool]] = []
    for clip, row in zip(chosen, nearest.tolist(), strict=True):
        others = [listed[neighbourhood.ids[other_row]] for other_row in row if neighbourhood.ids[other_row] in listed]
        others = [other for other in others if other.id != clip.id and other.id not in copies.get(clip.id, ())]
        same_text = [other for other in others if _same_text(clip, other) and _other_speaker(clip, other)]
        other_text = [
            other for other in others[:NUM_NEAREST] if _other_speaker(clip, other) and not _same_text(clip, other)
        ]
        pairs += [(clip.id, other.id, True) for other in same_text[:NUM_NEGATIVES]]
        pairs += [(clip.id, other.id, False) for other in other_text[:NUM_NEGATIVES]]
        if not same_text and not other_text:
            pairs += [(clip.id, other.id, False) for other in others[:NUM_NEGATIVES] if not _same_text(clip, other)]
    return pairs


def _same_text(a: Clip, b: Clip) -> bool:
    return a.text is not None and b.text is not None and a.text.split() == b.text.split()


def _other_speaker(a: Clip, b: Clip) -> bool:
    return a.speaker is not None and b.speaker is not None and a.speaker != b.speaker


def _alter(clips: Sequence[Clip], folder: Path, advance: Advance) -> tuple[list[Clip], list[str], list[str]]:
    """Write a copy of every clip per augmentation that applies; return copies, augmentations and originals."""
    copies, names, originals = [], [], []
    total = len(clips) * len(AUGMENTATIONS)
    advance(0, total)
    for number, (clip, change) in enumerate((clip, change) for clip in clips for change in AUGMENTATIONS):
        path = folder / f"{number}.mp4"
        applies = (
            (change.video and clip.video)
            or (change.audio and (clip.audio or clip.video))
            or not (change.video or change.audio)
        )
        if applies:
            try:
                augment(clip, change, path)
            except (FFmpegError, OSError, ValueError):  # for example, the clip is too short for the cut
                continue
            copies.append(
                Clip(f"copy-{number}", video=path if clip.video else None, audio=None if clip.video else path)
            )
            names.append(change.name)
            originals.append(clip.id)
        advance(number + 1, total)
    return copies, names, originals


def _fingerprints(store: LocalStore, neighbourhood: Neighbourhood) -> dict[str, str]:
    return {name: store[name].fingerprint for name in neighbourhood.names}
