"""What the stored tokens say about a label: clips projected on its directions, and an audit of doubtful labels.

Both train a linear probe on the vectors of all features and score labelled clips out-of-fold: by a probe that was not
trained on the clip, nor on other clips of its dialogue, or else of its speaker.

Projection (`label_neighbourhood`): the probe gives every clip one score per class. A clip's vector is its scores,
standardised over the clips and normalised to length 1. Because labelled clips are scored out-of-fold, similar clips are
similar to the probe and do not only have the same label. Clips without the label are scored by a probe that was trained
on all labelled clips.

Audit (`audit`): the probabilities of the probe are averaged with those of the labels of the nearest clips, weighted by
similarity. Confident learning (Northcutt et al. 2021, by cleanlab) turns them into ranked label issues and an estimate
of the mislabelled share of each class. Each dataset is audited separately, because label sets differ. `review_sheet` is
an HTML page on which a person decides: it plays the clips by paths relative to the page, shows the evidence against
each label, and has one button per label. The browser saves the decisions as `decisions.json`, which
`fcache audit --decisions` reads.

Shapes: N clips, R axes of all features, C classes; (N, R) in, (N, C) out.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.responses import named_texts
from featurecache.errors import ClipListError
from featurecache.explore.search import Neighbour, Neighbourhood, nearest_rows
from featurecache.extras import require
from featurecache.outside_text import script_json

NUM_FOLDS = 5
PROBE_C = 10.0
MIN_CLIPS_PER_CLASS = NUM_FOLDS
"""Fewer clips of a class cannot be in every fold."""

Project = Callable[[np.ndarray], np.ndarray]
"""(Q, R) vectors of the source neighbourhood -> (Q, C) vectors of the label's."""


def label_neighbourhood(
    source: Neighbourhood, clips: ClipList, task: str, *, seed: int = 0
) -> tuple[Neighbourhood, Project]:
    """Project all clips of `source` on the directions of `labels.<task>`; return them, and the projection for queries.

    Raises:
        ClipListError: fewer than two classes have enough clips with tokens; the message names the classes.
        MissingExtraError: scikit-learn is not installed.
    """
    require("explore", "sklearn", subject=f"--compare label:{task}")
    labelled = [clip for clip in clips if isinstance(clip.labels.get(task), str) and clip.id in source]
    labelled = of_frequent_classes(labelled, task)
    rows = np.array([source.row_of(clip.id) for clip in labelled])
    labels = np.array([clip.labels[task] for clip in labelled])
    classes = sorted(set(labels.tolist()))
    out_of_fold = np.zeros((len(labelled), len(classes)))
    for train, test in grouped_folds(labelled, labels, seed):
        out_of_fold[test] = _scores(source.vectors[rows[train]], labels[train], source.vectors[rows[test]], classes)
    scores = _scores(source.vectors[rows], labels, source.vectors, classes)
    scores[rows] = out_of_fold
    mean, deviation = out_of_fold.mean(0), np.maximum(out_of_fold.std(0), 1e-9)

    def unit(class_scores: np.ndarray) -> np.ndarray:
        standard = ((class_scores - mean) / deviation).astype(np.float32)
        return standard / np.maximum(np.linalg.norm(standard, axis=1, keepdims=True), 1e-12)

    name = f"label:{task}"
    neighbourhood = Neighbourhood({name: (source.ids, unit(scores))}, {name: 1.0}, name)
    train_vectors = source.vectors[rows]
    return neighbourhood, lambda vectors: unit(_scores(train_vectors, labels, vectors, classes))


def of_frequent_classes(clips: Sequence[Clip], task: str) -> list[Clip]:
    """Return the clips of classes with at least `MIN_CLIPS_PER_CLASS` clips.

    Raises:
        ClipListError: fewer than two such classes.
    """
    counts = Counter(clip.labels[task] for clip in clips)
    frequent = {label for label, count in counts.items() if count >= MIN_CLIPS_PER_CLASS}
    if len(frequent) < 2:
        raise ClipListError(
            f"--label {task}" + (f", dataset {clips[0].dataset}" if clips and clips[0].dataset else ""),
            expected=f"two classes of at least {MIN_CLIPS_PER_CLASS} clips with tokens",
            got=", ".join(f"{label} {count}" for label, count in counts.most_common()) or "none",
            next_step="Extract more clips, or choose another label.",
        )
    return [clip for clip in clips if clip.labels[task] in frequent]


def grouped_folds(clips: Sequence[Clip], labels: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return train and test rows of every fold; clips of one dialogue, or else of one speaker, are in the same fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    groups = [clip.dialogue or clip.speaker or clip.id for clip in clips]
    if len(set(groups)) < 2:
        groups = [clip.id for clip in clips]
    most_of_a_class = int(np.unique(labels, return_counts=True)[1].max())
    count = min(NUM_FOLDS, len(set(groups)), most_of_a_class)
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Grouping may leave a fold without a rare class.
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(folds.split(np.zeros(len(clips)), labels, groups))


def _scores(vectors: np.ndarray, labels: np.ndarray, others: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Train a probe on (n, R) and labels; score (N, R) as (N, C) log probabilities, the lowest for missing classes."""
    from sklearn.linear_model import LogisticRegression

    present = set(labels.tolist())
    if len(present) < 2:
        return np.zeros((len(others), len(classes)))
    probe = LogisticRegression(C=PROBE_C, max_iter=1000).fit(vectors, labels)
    log_odds = np.log(np.maximum(probe.predict_proba(others), 1e-6))
    scores = np.full((len(others), len(classes)), log_odds.min())
    scores[:, [classes.index(label) for label in probe.classes_]] = log_odds
    return scores


NUM_NEIGHBOURS = 15
NUM_EVIDENCE = 5
_CONCLUSION = re.compile(r"<answer>\s*(.*?)\s*(?:</answer>|$)", re.DOTALL)


@dataclass(frozen=True)
class LabelIssue:
    """One clip whose label is doubtful, with the evidence. The fields are the keys of doubts.jsonl."""

    id: str
    dataset: str
    given: str
    """The label in the clip list."""
    suggested: str
    quality: float
    """Probability of the given label; issues are ranked by it, lowest first."""
    probability: float
    """Probability of the suggested label."""
    evidence: tuple[tuple[str, str, float], ...]
    """Nearest clips: id, label, similarity."""


@dataclass(frozen=True)
class ClassNoise:
    """Estimated share of wrong labels of one class."""

    dataset: str
    label: str
    num_clips: int
    noise: float
    """Estimated share of the clips with this label that belong to another class."""


@dataclass(frozen=True)
class ResponseAgreement:
    """Number of clips whose response ends in the clip's label, for one kind of response."""

    dataset: str
    response: str
    same: int
    other: int
    silent: int
    """Responses that end in no label, or in several."""


@dataclass(frozen=True)
class LabelAudit:
    """Result of an audit."""

    task: str
    num_clips: int
    issues: tuple[LabelIssue, ...]
    """Clips with doubtful labels, the most doubtful first."""
    noise: tuple[ClassNoise, ...]
    accuracy: float
    """Share of clips whose label is predicted: an audit cannot be better than its classifiers."""
    agreement: tuple[ResponseAgreement, ...]


def audit(neighbourhood: Neighbourhood, clips: ClipList, task: str, *, seed: int = 0) -> LabelAudit:
    """Audit `labels.<task>` of every clip that has this label and tokens.

    Raises:
        ClipListError: no such label, only one class, or too few clips per class; the message names what exists.
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
    issues: list[LabelIssue] = []
    noise: list[ClassNoise] = []
    num_predicted = num_clips = 0
    for dataset, labelled in sorted(by_dataset.items()):
        audited = of_frequent_classes(labelled, task)
        probabilities, classes = _out_of_fold_probabilities(neighbourhood, audited, task, seed)
        labels = np.array([classes.index(clip.labels[task]) for clip in audited])
        num_predicted += int((probabilities.argmax(1) == labels).sum())
        num_clips += len(audited)
        rows, wrong_shares = _confident_learning(labels, probabilities)
        issues += [_issue(neighbourhood, audited, task, row, probabilities[row], classes, dataset) for row in rows]
        noise += [
            ClassNoise(dataset, label, int((labels == number).sum()), float(wrong_shares[number]))
            for number, label in enumerate(classes)
        ]
    issues.sort(key=lambda issue: issue.quality)
    agreements = tuple(response_agreements(clips, task))
    return LabelAudit(task, num_clips, tuple(issues), tuple(noise), num_predicted / num_clips, agreements)


def _out_of_fold_probabilities(
    neighbourhood: Neighbourhood, clips: Sequence[Clip], task: str, seed: int
) -> tuple[np.ndarray, list[str]]:
    """Return the (N, C) out-of-fold probabilities, and the classes."""
    from sklearn.linear_model import LogisticRegression

    classes = sorted({clip.labels[task] for clip in clips})
    labels = np.array([classes.index(clip.labels[task]) for clip in clips])
    vectors = neighbourhood.vectors[[neighbourhood.row_of(clip.id) for clip in clips]]
    probabilities = np.zeros((len(clips), len(classes)))
    for train, test in grouped_folds(clips, labels, seed):
        similarity, nearest = nearest_rows(vectors[test], vectors[train], NUM_NEIGHBOURS)
        votes = np.full((len(test), len(classes)), 1e-3)
        for c in range(len(classes)):
            votes[:, c] += (np.maximum(similarity, 0) * (labels[train][nearest] == c)).sum(1)
        by_neighbours = votes / votes.sum(1, keepdims=True)
        probe = LogisticRegression(C=PROBE_C, max_iter=1000).fit(vectors[train], labels[train])
        by_probe = np.zeros_like(by_neighbours)
        by_probe[:, probe.classes_] = probe.predict_proba(vectors[test])
        probabilities[test] = (by_neighbours + by_probe) / 2
    return probabilities, classes


def _confident_learning(labels: np.ndarray, probabilities: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Return rows with label issues, most doubtful first, and the estimated wrong share (C,) of each class."""
    from cleanlab.count import compute_confident_joint
    from cleanlab.filter import find_label_issues

    rows = find_label_issues(labels, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    joint = compute_confident_joint(labels, probabilities, calibrate=True)
    return [int(row) for row in rows], 1 - joint.diagonal() / np.maximum(joint.sum(1), 1)


def _issue(
    neighbourhood: Neighbourhood,
    clips: Sequence[Clip],
    task: str,
    row: int,
    probabilities: np.ndarray,
    classes: list[str],
    dataset: str,
) -> LabelIssue:
    clip = clips[row]
    label_by_id = {other.id: other.labels[task] for other in clips}
    nearest = nearest_of(neighbourhood, clip.id, NUM_EVIDENCE, label_by_id)
    suggested = int(probabilities.argmax())
    return LabelIssue(
        clip.id,
        dataset,
        clip.labels[task],
        classes[suggested],
        float(probabilities[classes.index(clip.labels[task])]),
        float(probabilities[suggested]),
        tuple((other.id, label_by_id[other.id], other.similarity) for other in nearest),
    )


def nearest_of(neighbourhood: Neighbourhood, clip_id: str, k: int, among: Container[str]) -> list[Neighbour]:
    """Return the `k` nearest clips among some ids, without the clip itself."""
    similarities = neighbourhood.vectors @ neighbourhood.vectors[neighbourhood.row_of(clip_id)]
    nearest: list[Neighbour] = []
    for row in np.argsort(-similarities, kind="stable").tolist():
        other = neighbourhood.ids[row]
        if other != clip_id and other in among:
            nearest.append(Neighbour(other, float(similarities[row])))
            if len(nearest) == k:
                break
    return nearest


def response_agreements(clips: ClipList, task: str) -> list[ResponseAgreement]:
    """Compare `labels.<task>` with the conclusion of each kind of response, per dataset.

    A text about another label task is not compared.
    """
    labels: dict[str, set[str]] = {}
    for clip in clips:
        if isinstance(clip.labels.get(task), str):
            labels.setdefault(clip.dataset or "", set()).add(clip.labels[task])
    counts: dict[tuple[str, str], Counter[str]] = {}
    for clip in clips:
        label, dataset = clip.labels.get(task), clip.dataset or ""
        if not isinstance(label, str):
            continue
        for kind, about, text in named_texts(clip.responses):
            if about not in (None, task):
                continue
            conclusion = concluded_label(text, labels[dataset])
            verdict = "silent" if conclusion is None else "same" if conclusion == label else "other"
            counts.setdefault((dataset, kind), Counter())[verdict] += 1
    return [
        ResponseAgreement(dataset, kind, count["same"], count["other"], count["silent"])
        for (dataset, kind), count in sorted(counts.items())
    ]


def concluded_label(text: str, labels: set[str]) -> str | None:
    """Return the label that a response concludes; None if it names none or several.

    The label is searched in the <answer>, or else in the last sentence that names a label.
    """
    answer = _CONCLUSION.search(text)
    parts = [answer.group(1)] if answer else re.split(r"(?<=[.!?])\s+", text.strip())
    for part in reversed(parts):
        named = {label for label in labels if re.search(rf"\b{re.escape(label)}\b", part, re.IGNORECASE)}
        if named:
            return named.pop() if len(named) == 1 else None
    return None


TEMPLATE = Path(__file__).with_name("review_sheet.html")
PLACEHOLDER = "/*SHEET*/null"


def review_sheet(audit: LabelAudit, clips: ClipList, path: Path) -> str:
    """Return the HTML of the review sheet; media paths in it are relative to the folder of `path`."""
    labels: dict[str, list[str]] = {}
    for noise in audit.noise:
        labels.setdefault(noise.dataset, []).append(noise.label)
    rows = [_row(issue, clips, labels[issue.dataset], path.parent) for issue in audit.issues]
    sheet = {"task": audit.task, "clips": rows}
    sheet["key"] = hashlib.sha256(json.dumps(sheet, sort_keys=True).encode()).hexdigest()[:16]
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACEHOLDER, script_json(sheet))


def _row(issue: LabelIssue, clips: ClipList, labels: Sequence[str], folder: Path) -> dict[str, Any]:
    clip = clips.by_id(issue.id)
    return {
        "id": issue.id,
        "dataset": issue.dataset,
        "text": clip.text,
        "labels": list(labels),
        "given": issue.given,
        "suggested": issue.suggested,
        "quality": round(issue.quality, 3),
        "probability": round(issue.probability, 3),
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
            for other, label, similarity in issue.evidence
        ],
    }


def _responses(clip: Clip) -> dict[str, str]:
    """Return the responses by title: `think`, `think (intent)`; texts with the same title are joined."""
    texts_by_title: dict[str, list[str]] = {}
    for task, label, text in named_texts(clip.responses):
        texts_by_title.setdefault(f"{task} ({label})" if label else task, []).append(text)
    return {title: "\n\n".join(texts) for title, texts in texts_by_title.items()}


def _media(clip: Clip, folder: Path) -> dict[str, str]:
    """Return the media paths of a clip by kind, relative to a folder."""
    return {
        kind: Path(os.path.relpath(path, folder)).as_posix()
        for kind in ("video", "audio", "image")
        if (path := getattr(clip, kind)) is not None
    }
