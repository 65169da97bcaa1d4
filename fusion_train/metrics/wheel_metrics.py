"""Emotion-wheel metrics: HIT and open-vocabulary scores, which compare labels as groups on emotion wheels.

HIT: among the clips whose reference is on a wheel, the share whose reference group is among the predicted groups. Many
predicted labels are not penalised, so reports also show the mean number of predicted labels. Neutral is on no wheel:
neutral clips are left out, and each wheel has its own denominator.
F_s: a clip with reference groups Y and predicted groups P has precision |Y∩P|/|P| and recall |Y∩P|/|Y|, both 0 for an
empty P. Both are averaged over clips, F is the harmonic mean of the two means, and F is averaged over wheels.
A wheel without any of the references has no score and does not enter the mean; `num_scored` shows this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusion_train.errors import DataError
from fusion_train.metrics.labels import label_list, paired_ids
from fusion_train.metrics.wheels import EmotionWheels, Level

Labels = str | Iterable[str]
"""One label, a list of labels, or a text that `label_list` parses."""


@dataclass(frozen=True)
class HitRate:
    """HIT over several wheels."""

    mean: float
    per_wheel: tuple[float | None, ...]
    num_scored: tuple[int, ...]
    """Clips in the score of each wheel."""
    mean_num_labels: float
    """Predicted labels per clip; a high hit rate from many labels means little."""
    num_clips: int
    comparable: bool
    clip_ids: tuple[str, ...]
    hits: np.ndarray
    """(clips, wheels): 1 hit, 0 miss, NaN if the wheel lacks the reference."""


@dataclass(frozen=True)
class WheelScores:
    """Open-vocabulary scores of one wheel."""

    precision: float
    recall: float
    f: float


@dataclass(frozen=True)
class OpenVocabularyScores:
    """Precision, recall and F over several wheels; `mean` is the mean F."""

    mean: float
    precision: float
    recall: float
    per_wheel: tuple[WheelScores | None, ...]
    num_scored: tuple[int, ...]
    mean_num_labels: float
    num_clips: int
    comparable: bool
    clip_ids: tuple[str, ...]
    parts: np.ndarray
    """(clips, wheels, 2): precision and recall, NaN if the wheel lacks all references of the clip."""


def hit_rate(
    references: Mapping[str, Labels], predictions: Mapping[str, Labels], wheels: EmotionWheels, *, level: Level = 1
) -> HitRate:
    """Score predicted labels against one reference label per clip.

    Raises:
        DataError: only one side has some clip, a reference has several labels, or no reference is on any wheel.
    """
    ids = paired_ids(references, predictions)
    truth = {clip: label_list(references[clip]) for clip in ids}
    not_single = [clip for clip in ids if len(truth[clip]) != 1]
    if not_single:
        raise DataError(
            "references",
            expected="one label per clip for HIT",
            got=f"another number for {len(not_single)} clips",
            next_step="Lists of labels are scored by the open-vocabulary metric.",
            problems=not_single,
        )
    answers = {clip: label_list(predictions[clip]) for clip in ids}
    hits = np.full((len(ids), len(wheels)), np.nan)
    for row, clip in enumerate(ids):
        for wheel in range(len(wheels)):
            group = wheels.group(truth[clip][0], wheel, level)
            if group is not None:
                hits[row, wheel] = group in wheels.groups(answers[clip], wheel, level)
    num_scored = _num_scored(hits)
    per_wheel = tuple(float(np.nanmean(hits[:, w])) if n else None for w, n in enumerate(num_scored))
    return HitRate(
        mean=_mean([hit for hit in per_wheel if hit is not None]),
        per_wheel=per_wheel,
        num_scored=num_scored,
        mean_num_labels=float(np.mean([len(labels) for labels in answers.values()])),
        num_clips=len(ids),
        comparable=wheels.comparable,
        clip_ids=tuple(ids),
        hits=hits,
    )


def open_vocabulary_scores(
    references: Mapping[str, Labels], predictions: Mapping[str, Labels], wheels: EmotionWheels, *, level: Level = 1
) -> OpenVocabularyScores:
    """Score predicted labels against any number of reference labels per clip.

    Raises:
        DataError: only one side has some clip, or no reference is on any wheel.
    """
    ids = paired_ids(references, predictions)
    parts = np.full((len(ids), len(wheels), 2), np.nan)
    for row, clip in enumerate(ids):
        for wheel in range(len(wheels)):
            true = wheels.groups(references[clip], wheel, level)
            predicted = wheels.groups(predictions[clip], wheel, level)
            if true:
                common = len(true & predicted)
                parts[row, wheel] = (common / len(predicted) if predicted else 0, common / len(true))
    num_scored = _num_scored(parts[:, :, 0])
    per_wheel = tuple(
        _wheel_scores(float(np.nanmean(parts[:, w, 0])), float(np.nanmean(parts[:, w, 1]))) if n else None
        for w, n in enumerate(num_scored)
    )
    return OpenVocabularyScores(
        mean=_mean([scores.f for scores in per_wheel if scores is not None]),
        precision=_mean([scores.precision for scores in per_wheel if scores is not None]),
        recall=_mean([scores.recall for scores in per_wheel if scores is not None]),
        per_wheel=per_wheel,
        num_scored=num_scored,
        mean_num_labels=float(np.mean([len(label_list(predictions[clip])) for clip in ids])),
        num_clips=len(ids),
        comparable=wheels.comparable,
        clip_ids=tuple(ids),
        parts=parts,
    )


def harmonic(precision: float, recall: float) -> float:
    """Return the harmonic mean of precision and recall; 0 if both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _wheel_scores(precision: float, recall: float) -> WheelScores:
    return WheelScores(precision, recall, harmonic(precision, recall))


def _num_scored(values: np.ndarray) -> tuple[int, ...]:
    """Return the number of scored clips per wheel of (clips, wheels) values, NaN where not scored.

    Raises:
        DataError: no wheel scores any clip.
    """
    counts = tuple(int(count) for count in np.isfinite(values).sum(axis=0))
    if not any(counts):
        raise DataError(
            "references",
            expected="labels that are on some emotion wheel",
            got=f"none among {len(values)} clips",
            next_step="Neutral is on no wheel; compare the labels with those of the wheels.",
        )
    return counts


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
