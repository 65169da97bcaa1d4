"""The clips of a search and their features, averaged to one vector per clip and read once into memory.

What makes a search impossible is named before the first trial: clips without a feature, values that are not finite,
features that are the same for all clips, labels in the split of the submission.
Shapes: n clips, D width of a feature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import featurecache
from featurecache.clips.clip_list import Clip, load_clips
from featurecache.errors import suggest
from featurecache.spec import canonical_json
from featurecache.store.protocols import Feature, Status
from featurecache.terminal import show_progress
from fusion_train.data.answers import answer_of
from fusion_train.errors import DataError
from fusion_train.prompts.prompt import find_task
from fusion_train.search.search_file import SearchFile

READ_CLIPS = 256
"""Clips whose tokens are read at a time."""


@dataclass(frozen=True, eq=False)
class SearchData:
    """Clips with labels, the clips of the submission after them, and all vectors in memory."""

    clips: tuple[Clip, ...]
    """The n clips with a label, sorted by id."""
    candidates: tuple[Clip, ...]
    """Clips of the split of the submission, in the order of the list."""
    classes: tuple[str, ...]
    targets: Tensor
    """(n,) int64 class of each clip."""
    vectors: dict[str, Tensor]
    """Feature -> (n + candidates, D) float32."""
    identity: str
    """Hash of clip ids, labels and fingerprints: two searches of one identity read the same."""


def read_data(search: SearchFile, store: str, clips: str) -> SearchData:
    """Read all clips and features of a search.

    Raises:
        DataError: no clips, or features that cannot serve the search; all problems of one kind are listed.
    """
    task = find_task(search.task)
    listed = load_clips(clips)
    candidates = tuple(clip for clip in listed if search.submission and clip.split == search.submission)
    if search.submission and not candidates:
        raise DataError(
            f"submission: {search.submission}",
            expected="a split of the clip list",
            got="no such clips",
            next_step=suggest(search.submission, sorted({clip.split or "" for clip in listed})).strip() or None,
        )
    labelled = [clip.id for clip in candidates if answer_of(clip, task)]
    if labelled:
        raise DataError(
            f"submission: {search.submission}",
            expected=f"clips without a label for {task.name}",
            got=f"{len(labelled)} of {len(candidates)} with one",
            next_step="Take the labels out of the clip list, or name another split.",
            problems=labelled,
        )
    inside = (clip for clip in listed if search.split is None or clip.split == search.split)
    searched = tuple(sorted((clip for clip in inside if answer_of(clip, task)), key=lambda clip: clip.id))
    labels = [answer_of(clip, task) or "" for clip in searched]
    classes = tuple(sorted(set(labels)))
    if len(classes) < 2:
        raise DataError(
            clips,
            expected=f"clips of split {search.split or '(any)'} with at least two labels for {task.name}",
            got=f"{len(searched)} clips with {', '.join(classes) or 'none'}",
            next_step="Name the task and the split of the search file as the clip list has them.",
        )
    opened = featurecache.open_store(store)
    features: dict[str, Feature] = {name: opened[name] for name in search.feature_names}
    ids = [clip.id for clip in (*searched, *candidates)]
    _refuse_missing(features, ids)
    vectors = {name: _read_vectors(feature, ids) for name, feature in features.items()}
    _refuse_unusable(vectors, ids)
    fingerprints = {name: feature.fingerprint for name, feature in features.items()}
    content = canonical_json({"ids": ids, "labels": labels, "features": fingerprints})
    identity = hashlib.sha256(content.encode()).hexdigest()
    targets = torch.tensor([classes.index(label) for label in labels])
    return SearchData(searched, candidates, classes, targets, vectors, identity)


def _refuse_missing(features: dict[str, Feature], ids: Sequence[str]) -> None:
    """Name every feature that lacks clips; features of different clip lists are seen here too."""
    problems = []
    for name, feature in features.items():
        statuses = feature.statuses(ids)
        lacking = [clip for clip, status in zip(ids, statuses, strict=True) if status != Status.OK]
        if lacking:
            kinds = [
                f"{count} {word}"
                for word, count in (
                    ("not extracted", int((statuses < 0).sum())),
                    ("failed", int((statuses == Status.FAILED).sum())),
                    ("absent", int((statuses == Status.ABSENT).sum())),
                )
                if count
            ]
            problems.append(f"{name}: {', '.join(kinds)} of {len(ids)} clips, such as {lacking[0]}")
    if problems:
        raise DataError(
            "features",
            expected=f"every feature for all {len(ids)} clips",
            got=f"{len(problems)} of {len(features)} features that lack some",
            next_step="Run fcache extract with this clip list, take the feature out of the search file, or name a "
            "split whose clips have all of them.",
            problems=problems,
        )


def _read_vectors(feature: Feature, ids: Sequence[str]) -> Tensor:
    """Average the tokens of each clip: (clips, D) float32."""
    order = {clip: row for row, clip in enumerate(feature.ids)}
    rows = sorted(range(len(ids)), key=lambda row: order[ids[row]])  # the store is read in its own order
    vectors = torch.empty((len(ids), feature.shape[1]))
    with show_progress(f"reading {feature.name}", "clips") as progress:
        for start in range(0, len(rows), READ_CLIPS):
            part = rows[start : start + READ_CLIPS]
            tokens = feature.read([ids[row] for row in part]).astype("float32")  # bfloat16 too, which torch cannot wrap
            vectors[part] = torch.from_numpy(tokens).mean(dim=1)
            progress(start + len(part), len(rows), "")
    return vectors


def _refuse_unusable(vectors: dict[str, Tensor], ids: Sequence[str]) -> None:
    problems = []
    for name, matrix in vectors.items():
        wrong = (~matrix.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            problems.append(f"{name}: values that are not finite in {len(wrong)} clips, such as {ids[wrong[0]]}")
        elif len(matrix) > 1 and not (matrix != matrix[0]).any():
            problems.append(f"{name}: the same vector for all {len(ids)} clips")
    if problems:
        raise DataError(
            "features",
            expected="finite vectors that differ between clips",
            got=f"{len(problems)} of {len(vectors)} features without",
            next_step="Extract them again, or take them out of the search file.",
            problems=problems,
        )
