"""Which labels are doubtful: every clip is judged by models that never saw it, and a person decides on one HTML sheet.

Out-of-fold probabilities of two judges are averaged: the nearest clips' labels, weighted by similarity, and a linear
probe on the vectors. Folds keep clips of one dialogue (or speaker) together. Confident learning (Northcutt et al. 2021,
by cleanlab) turns them into ranked doubts and an estimate of how much of each class is mislabelled. Each dataset is
judged separately, since datasets have different label spaces. Shapes: N clips, R axes, C classes.

The sheet shows the clips where they lie (paths relative to the sheet), what the judges hold against each label, and one
button per label. Decisions are kept by the browser and saved as `decisions.json`, which `fcache audit --decisions`
reads back.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.responses import named_texts
from featurecache.errors import ClipListError
from featurecache.explore.label_projection import PROBE_C, grouped_folds, judgeable
from featurecache.explore.search import Neighbour, Neighbourhood, nearest_rows
from featurecache.extras import require
from featurecache.outside_text import script_json

NUM_NEIGHBOURS = 15
NUM_EVIDENCE = 5
_CONCLUSION = re.compile(r"<answer>\s*(.*?)\s*(?:</answer>|$)", re.DOTALL)


@dataclass(frozen=True)
class Doubt:
    """One clip whose label the judges do not believe, and why."""

    id: str
    dataset: str
    given: str
    suggested: str
    quality: float
    """Probability of the given label; the ranking, lowest first."""
    probability: float
    """Of the suggested one."""
    evidence: tuple[tuple[str, str, float], ...]
    """Nearest clips: id, label, similarity."""


@dataclass(frozen=True)
class ClassNoise:
    """How many labels of a class are estimated to be wrong."""

    dataset: str
    label: str
    num_clips: int
    noise: float
    """Share of the clips with this label that are estimated to be of another class."""


@dataclass(frozen=True)
class Agreement:
    """How often what a clip's response concludes is its label."""

    dataset: str
    response: str
    same: int
    other: int
    silent: int
    """Responses that name no label, or several."""


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    task: str
    num_clips: int
    doubts: tuple[Doubt, ...]
    """Flagged clips, the most doubtful first."""
    noise: tuple[ClassNoise, ...]
    accuracy: float
    """Share of clips whose given label the judges agree with; a ceiling on how much this audit can see."""
    agreement: tuple[Agreement, ...]


def audit(neighbourhood: Neighbourhood, clips: ClipList, task: str, *, seed: int = 0) -> Audit:
    """Judge `labels.<task>` of every clip that has one and tokens.

    Raises:
        ClipListError: no such label, one class alone, or too few clips of every class; what there is, is named.
        MissingExtraError: scikit-learn or cleanlab is not installed.
    """
    require("explore", "sklearn", "cleanlab", subject="fcache audit")
    by_dataset: dict[str, list[Clip]] = {}
    for clip in clips:
        if isinstance(clip.labels.get(task), str) and clip.id in neighbourhood:
            by_dataset.setdefault(clip.dataset or "", []).append(clip)
    if not by_dataset:
        known = sorted({name for clip in clips for name, value in clip.labels.items() if isinstance(value, str)})
        raise ClipListError(
            f"--label {task}",
            expected="a label of clips that have tokens: " + (", ".join(known) or "there is none"),
            got="none",
        )
    doubts: list[Doubt] = []
    noise: list[ClassNoise] = []
    agreed = judged = 0
    for dataset, chosen in sorted(by_dataset.items()):
        some = judgeable(chosen, task)
        probabilities, classes = _judge(neighbourhood, some, task, seed)
        given = np.array([classes.index(clip.labels[task]) for clip in some])
        agreed += int((probabilities.argmax(1) == given).sum())
        judged += len(some)
        issues, wrong = _confident_learning(given, probabilities)
        doubts += [_doubt(neighbourhood, some, task, n, probabilities[n], classes, dataset) for n in issues]
        noise += [
            ClassNoise(dataset, label, int((given == n).sum()), float(wrong[n])) for n, label in enumerate(classes)
        ]
    doubts.sort(key=lambda doubt: doubt.quality)
    return Audit(task, judged, tuple(doubts), tuple(noise), agreed / judged, tuple(agreements(clips, task)))


def _judge(neighbourhood: Neighbourhood, clips: Sequence[Clip], task: str, seed: int) -> tuple[np.ndarray, list[str]]:
    """(N, C) out-of-fold probabilities, and the classes."""
    from sklearn.linear_model import LogisticRegression

    classes = sorted({clip.labels[task] for clip in clips})
    labels = np.array([classes.index(clip.labels[task]) for clip in clips])
    vectors = neighbourhood.vectors[[neighbourhood.place(clip.id) for clip in clips]]
    probabilities = np.zeros((len(clips), len(classes)))
    for train, test in grouped_folds(clips, labels, seed):
        similarity, nearest = nearest_rows(vectors[test], vectors[train], NUM_NEIGHBOURS)
        votes = np.full((len(test), len(classes)), 1e-3)
        for c in range(len(classes)):
            votes[:, c] += (np.maximum(similarity, 0) * (labels[train][nearest] == c)).sum(1)
        near = votes / votes.sum(1, keepdims=True)
        probe = LogisticRegression(C=PROBE_C, max_iter=1000).fit(vectors[train], labels[train])
        linear = np.zeros_like(near)
        linear[:, probe.classes_] = probe.predict_proba(vectors[test])
        probabilities[test] = (near + linear) / 2
    return probabilities, classes


def _confident_learning(given: np.ndarray, probabilities: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Flagged clips, most doubtful first, and (C,) the share of each class estimated to be wrong."""
    from cleanlab.count import compute_confident_joint
    from cleanlab.filter import find_label_issues

    issues = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    joint = compute_confident_joint(given, probabilities, calibrate=True)
    return [int(n) for n in issues], 1 - joint.diagonal() / np.maximum(joint.sum(1), 1)


def _doubt(
    neighbourhood: Neighbourhood,
    clips: Sequence[Clip],
    task: str,
    n: int,
    row: np.ndarray,
    classes: list[str],
    dataset: str,
) -> Doubt:
    clip = clips[n]
    known = {other.id: other.labels[task] for other in clips}
    near = nearest_of(neighbourhood, clip.id, NUM_EVIDENCE, known)
    suggested = int(row.argmax())
    return Doubt(
        clip.id,
        dataset,
        clip.labels[task],
        classes[suggested],
        float(row[classes.index(clip.labels[task])]),
        float(row[suggested]),
        tuple((other.id, known[other.id], other.similarity) for other in near),
    )


def nearest_of(neighbourhood: Neighbourhood, clip_id: str, k: int, among: dict[str, str]) -> list[Neighbour]:
    """The `k` nearest clips of `among`, the clip itself left out."""
    similarities = neighbourhood.vectors @ neighbourhood.vectors[neighbourhood.place(clip_id)]
    found: list[Neighbour] = []
    for place in np.argsort(-similarities, kind="stable").tolist():
        other = neighbourhood.ids[place]
        if other != clip_id and other in among:
            found.append(Neighbour(other, float(similarities[place])))
            if len(found) == k:
                break
    return found


def agreements(clips: ClipList, task: str) -> list[Agreement]:
    """Compare `labels.<task>` with what each kind of response concludes, by dataset.

    A text that argues for another label task is not compared.
    """
    labels: dict[str, set[str]] = {}
    for clip in clips:
        if isinstance(clip.labels.get(task), str):
            labels.setdefault(clip.dataset or "", set()).add(clip.labels[task])
    counts: dict[tuple[str, str], Counter[str]] = {}
    for clip in clips:
        given, dataset = clip.labels.get(task), clip.dataset or ""
        if not isinstance(given, str):
            continue
        for kind, about, text in named_texts(clip.responses):
            if about not in (None, task):
                continue
            said = concluded(text, labels[dataset])
            verdict = "silent" if said is None else "same" if said == given else "other"
            counts.setdefault((dataset, kind), Counter())[verdict] += 1
    return [
        Agreement(dataset, kind, count["same"], count["other"], count["silent"])
        for (dataset, kind), count in sorted(counts.items())
    ]


def concluded(text: str, labels: set[str]) -> str | None:
    """The label that a response ends in: in its <answer>, else the only one in its last sentence that has one."""
    found = _CONCLUSION.search(text)
    parts = [found.group(1)] if found else re.split(r"(?<=[.!?])\s+", text.strip())
    for part in reversed(parts):
        named = {label for label in labels if re.search(rf"\b{re.escape(label)}\b", part, re.IGNORECASE)}
        if named:
            return named.pop() if len(named) == 1 else None
    return None


TEMPLATE = Path(__file__).with_name("review_sheet.html")
PLACEHOLDER = "/*SHEET*/null"


def review_sheet(audit: Audit, clips: ClipList, path: Path) -> str:
    """The sheet's HTML, to be written to `path`."""
    labels: dict[str, list[str]] = {}
    for noise in audit.noise:
        labels.setdefault(noise.dataset, []).append(noise.label)
    rows = [_row(doubt, clips, labels[doubt.dataset], path.parent) for doubt in audit.doubts]
    sheet = {"task": audit.task, "clips": rows}
    sheet["key"] = hashlib.sha256(json.dumps(sheet, sort_keys=True).encode()).hexdigest()[:16]
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACEHOLDER, script_json(sheet))


def _row(doubt: Doubt, clips: ClipList, labels: Sequence[str], folder: Path) -> dict[str, Any]:
    clip = clips.by_id(doubt.id)
    return {
        "id": doubt.id,
        "dataset": doubt.dataset,
        "text": clip.text,
        "labels": list(labels),
        "given": doubt.given,
        "suggested": doubt.suggested,
        "quality": round(doubt.quality, 3),
        "probability": round(doubt.probability, 3),
        "media": _media(clip, folder),
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "responses": _responses(clip),
        "evidence": [
            {
                "id": other,
                "label": label,
                "similarity": round(similarity, 2),
                "media": _media(clips.by_id(other), folder),
            }
            for other, label, similarity in doubt.evidence
        ],
    }


def _responses(clip: Clip) -> dict[str, str]:
    """Title -> text: `think`, `think (intent)`; several texts of one title stand below each other."""
    found: dict[str, list[str]] = {}
    for task, label, text in named_texts(clip.responses):
        found.setdefault(f"{task} ({label})" if label else task, []).append(text)
    return {title: "\n\n".join(texts) for title, texts in found.items()}


def _media(clip: Clip, folder: Path) -> dict[str, str]:
    return {
        kind: Path(os.path.relpath(path, folder)).as_posix()
        for kind in ("video", "audio", "image")
        if (path := getattr(clip, kind)) is not None
    }
