"""HIT and open-vocabulary scores: predictions and references compared as groups on emotion wheels.

HIT: over the clips whose reference a wheel knows, the share whose group is among those predicted. There is no penalty
for naming many labels, so the mean number of labels predicted stands beside it. Neutral maps nowhere: such clips drop
out, and each wheel has a denominator of its own.
F_s: a clip with reference groups Y and predicted groups P has precision |Y∩P|/|P| and recall |Y∩P|/|Y|, both 0 for an
empty P; both are averaged over clips, F is the harmonic mean of the two means, and F is averaged over wheels.
A wheel that knows no reference has no score and does not enter the mean; `num_scored` shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fusion_train.errors import DataError
from fusion_train.metrics.labels import label_list
from fusion_train.metrics.pairing import paired_ids
from fusion_train.metrics.wheels import EmotionWheels, Level

Labels = str | Iterable[str]
"""One label, a list of them, or a text that the list parser reads."""


@dataclass(frozen=True)
class HitRate:
    """HIT over wheels."""

    mean: float
    per_wheel: tuple[float | None, ...]
    num_scored: tuple[int, ...]
    """Clips that entered each wheel's score."""
    mean_num_labels: float
    """Labels predicted a clip; a high hit rate from many labels says little."""
    num_clips: int
    comparable: bool
    clip_ids: tuple[str, ...]
    hits: np.ndarray
    """(clips, wheels) 1 hit, 0 miss, NaN where the wheel does not know the reference."""


@dataclass(frozen=True)
class WheelParts:
    """Open-vocabulary scores of one wheel."""

    precision: float
    recall: float
    f: float


@dataclass(frozen=True)
class OpenVocabularyScores:
    """Precision, recall and F over wheels; `mean` is the mean F."""

    mean: float
    precision: float
    recall: float
    per_wheel: tuple[WheelParts | None, ...]
    num_scored: tuple[int, ...]
    mean_num_labels: float
    num_clips: int
    comparable: bool
    clip_ids: tuple[str, ...]
    parts: np.ndarray
    """(clips, wheels, 2) precision and recall, NaN where the wheel knows no reference."""


def hit_rate(
    references: Mapping[str, Labels], predictions: Mapping[str, Labels], wheels: EmotionWheels, *, level: Level = 1
) -> HitRate:
    """Score predicted labels against one reference label a clip.

    Raises:
        DataError: clips that only one side has, a reference of several labels, or none that any wheel knows.
    """
    ids = paired_ids(references, predictions)
    truth = {clip: label_list(references[clip]) for clip in ids}
    several = [clip for clip in ids if len(truth[clip]) != 1]
    if several:
        raise DataError(
            "references",
            expected="one label a clip for HIT",
            got=f"another number for {len(several)} clips",
            next_step="Lists of labels are scored by the open-vocabulary metric.",
            problems=several,
        )
    answers = {clip: label_list(predictions[clip]) for clip in ids}
    hits = np.full((len(ids), len(wheels)), np.nan)
    for row, clip in enumerate(ids):
        for wheel in range(len(wheels)):
            group = wheels.group(truth[clip][0], wheel, level)
            if group is not None:
                hits[row, wheel] = group in wheels.groups(answers[clip], wheel, level)
    num_scored = _scored(hits)
    per_wheel = tuple(float(np.nanmean(hits[:, w])) if n else None for w, n in enumerate(num_scored))
    return HitRate(
        mean=_mean(per_wheel),
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
    """Score predicted labels against any number of reference labels a clip.

    Raises:
        DataError: clips that only one side has, or no reference that any wheel knows.
    """
    ids = paired_ids(references, predictions)
    parts = np.full((len(ids), len(wheels), 2), np.nan)
    for row, clip in enumerate(ids):
        for wheel in range(len(wheels)):
            wanted = wheels.groups(references[clip], wheel, level)
            given = wheels.groups(predictions[clip], wheel, level)
            if wanted:
                common = len(wanted & given)
                parts[row, wheel] = (common / len(given) if given else 0, common / len(wanted))
    num_scored = _scored(parts[:, :, 0])
    per_wheel = tuple(
        _parts(float(np.nanmean(parts[:, w, 0])), float(np.nanmean(parts[:, w, 1]))) if n else None
        for w, n in enumerate(num_scored)
    )
    return OpenVocabularyScores(
        mean=_mean(tuple(part and part.f for part in per_wheel)),
        precision=_mean(tuple(part and part.precision for part in per_wheel)),
        recall=_mean(tuple(part and part.recall for part in per_wheel)),
        per_wheel=per_wheel,
        num_scored=num_scored,
        mean_num_labels=float(np.mean([len(label_list(predictions[clip])) for clip in ids])),
        num_clips=len(ids),
        comparable=wheels.comparable,
        clip_ids=tuple(ids),
        parts=parts,
    )


def harmonic(precision: float, recall: float) -> float:
    """F1 of two means; 0 when both are 0."""
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _parts(precision: float, recall: float) -> WheelParts:
    return WheelParts(precision, recall, harmonic(precision, recall))


def _scored(values: np.ndarray) -> tuple[int, ...]:
    counts = tuple(int(count) for count in np.isfinite(values).sum(axis=0))
    if not any(counts):
        raise DataError(
            "references",
            expected="labels that some emotion wheel knows",
            got=f"none among {len(values)} clips",
            next_step="Neutral stands on no wheel; compare the labels with those of the wheels.",
        )
    return counts


def _mean(values: tuple[float | None, ...]) -> float:
    return float(np.mean([value for value in values if value is not None]))
