"""One function a metric: references and predictions in, a `Scored` out. `registry` names them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fusion_train.errors import DataError
from fusion_train.metrics.classification import ClassificationScores, classification_scores
from fusion_train.metrics.labels import find_sentiment, one_label, read_sentiment
from fusion_train.metrics.multi_label import multi_label_scores
from fusion_train.metrics.overlap import overlap_scores
from fusion_train.metrics.scored import Scored, Settings, mean_of
from fusion_train.metrics.sentiment import (
    Read,
    SentimentScores,
    sentiment_scores,
    three_way_sentiment_scores,
    whole_answer,
)
from fusion_train.metrics.wheel_metrics import harmonic, hit_rate, open_vocabulary_scores
from fusion_train.metrics.wheels import EmotionWheels

References = Mapping[str, Any]
Predictions = Mapping[str, str]


def hit(references: References, predictions: Predictions, settings: Settings, main: str) -> Scored:
    scores = hit_rate(references, predictions, settings.wheels)
    return Scored(
        main,
        {"HIT": scores.mean},
        scores.clip_ids,
        lambda counts: _mean_over_wheels(scores.hits, counts),
        counts=_wheel_counts(scores) | {"HIT by wheel": _percent(scores.per_wheel)},
        **_of_wheels(settings.wheels),
    )


def open_vocabulary(references: References, predictions: Predictions, settings: Settings, main: str) -> Scored:
    scores = open_vocabulary_scores(references, predictions, settings.wheels)

    def resample(counts: np.ndarray) -> float:
        if main != "F":
            return _mean_over_wheels(scores.parts[:, :, ("precision", "recall").index(main)], counts)
        means = [_weighted_means(scores.parts[:, wheel], counts) for wheel in range(scores.parts.shape[1])]
        return float(np.mean([harmonic(*pair) for pair in means if pair is not None] or [0.0]))

    return Scored(
        main,
        {"F": scores.mean, "precision": scores.precision, "recall": scores.recall},
        scores.clip_ids,
        resample,
        counts=_wheel_counts(scores) | {"F by wheel": _percent([part and part.f for part in scores.per_wheel])},
        **_of_wheels(settings.wheels),
    )


def waf(references: References, predictions: Predictions, settings: Settings, main: str) -> Scored:
    return _waf(references, predictions, main, read_sentiment)


def waf_released(references: References, predictions: Predictions, settings: Settings, main: str) -> Scored:
    return _waf(references, predictions, main, find_sentiment)


def three_way(references: References, predictions: Predictions, settings: Settings, main: str) -> Scored:
    return _three_way(references, predictions, main, read_sentiment)


def three_way_released(references: References, predictions: Predictions, settings: Settings, main: str) -> Scored:
    return _three_way(references, predictions, main, whole_answer)


def classification(references: References, predictions: Predictions, settings: Settings, main: str) -> Scored:
    several = [f"{clip}: {value!r}" for clip, value in references.items() if not isinstance(value, str)]
    if several:
        raise DataError(
            "references",
            expected="one label a clip",
            got=f"another value for {len(several)}",
            next_step="Lists are scored by the metrics multi-label and open-vocabulary.",
            problems=several,
        )
    truth = {clip: one_label(value) for clip, value in references.items()}
    answers = {clip: one_label(text) for clip, text in predictions.items()}
    vocabulary = None if settings.vocabulary is None else [one_label(label) for label in settings.vocabulary]
    scores = classification_scores(truth, answers, vocabulary)
    figures = {
        "accuracy": scores.accuracy,
        "weighted F1": scores.weighted_f1,
        "UAR": scores.uar,
        "WAR": scores.war,
        "macro F1": scores.macro_f1,
    }
    counts = {"clips": scores.num_clips, "answers that are no label": scores.num_outside}
    return _classes(scores, figures, counts, main)


def multi_label(references: References, predictions: Predictions, settings: Settings, main: str) -> Scored:
    scores = multi_label_scores(references, predictions, settings.vocabulary)
    wanted, given = scores.truth.astype(float), scores.predicted.astype(float)
    common, either = (wanted * given).sum(axis=1), np.maximum(wanted, given).sum(axis=1)
    sizes = wanted.sum(axis=1) + given.sum(axis=1)

    def resample(counts: np.ndarray) -> float:
        if main == "F1 micro":
            return float(2 * counts @ common / max(counts @ sizes, 1e-12))
        positive, chosen, both = counts @ wanted, counts @ given, counts @ (wanted * given)
        seen = positive > 0
        recall = both[seen] / positive[seen]
        precision = both[seen] / np.maximum(chosen[seen], 1e-12)
        return float(np.mean(precision * recall + positive[seen] / counts.sum() * (1 - recall)))

    by_clip = {"F1 samples": 2 * common / np.maximum(sizes, 1), "Jaccard": common / np.maximum(either, 1)}
    figures = {
        "mAP": scores.map_macro,
        "F1 micro": scores.f1_micro,
        "F1 samples": scores.f1_samples,
        "Jaccard": scores.jaccard,
    }
    return Scored(
        main,
        figures,
        tuple(sorted(references)),
        **(mean_of(by_clip[main]) if main in by_clip else {"resample": resample}),
        counts={
            "clips": scores.num_clips,
            "labels predicted a clip": round(scores.mean_num_labels, 3),
            "predicted labels outside the classes": scores.num_outside,
        },
        per_class={
            each.label: {"AP": each.average_precision, "F1": each.f1, "clips": each.num_clips}
            for each in scores.classes
        },
    )


def overlap(references: References, predictions: Predictions, settings: Settings, main: str) -> Scored:
    scores = overlap_scores({clip: str(text) for clip, text in references.items()}, predictions, settings.judge)
    column = ("clue", "label").index(main)
    return Scored(
        main,
        {"clue": scores.clue, "label": scores.label},
        scores.clip_ids,
        **mean_of(scores.ratings[:, column]),
        counts={"clips": scores.num_clips, "without a rating": scores.num_unrated},
        notes=(f"judge: {scores.judge}; comparable only with scores of the same judge",),
        comparable=False,
        highest=scores.highest,
    )


def _sentiment_numbers(references: References) -> dict[str, float]:
    """Scores as they are; words as -1, 0 and 1, since a score enters by its sign alone."""
    words = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}
    numbers, strange = {}, []
    for clip, value in references.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
            numbers[clip] = float(value)
        elif str(value).strip().lower() in words:
            numbers[clip] = words[str(value).strip().lower()]
        else:
            strange.append(f"{clip}: {value!r}")
    if strange:
        raise DataError("references", expected="sentiment scores", got=f"{len(strange)} others", problems=strange)
    return numbers


def _waf(references: References, predictions: Predictions, main: str, read: Read) -> Scored:
    return _sentiment(sentiment_scores(_sentiment_numbers(references), predictions, read), main)


def _three_way(references: References, predictions: Predictions, main: str, read: Read) -> Scored:
    signs = {-1: "negative", 0: "neutral", 1: "positive"}
    words = {clip: signs[int(np.sign(number))] for clip, number in _sentiment_numbers(references).items()}
    return _sentiment(three_way_sentiment_scores(words, predictions, read), main)


def _sentiment(scores: SentimentScores, main: str) -> Scored:
    counts = {
        "clips": scores.num_scored + scores.num_neutral,
        "neutral, not scored": scores.num_neutral,
        "unreadable answers": scores.num_unreadable,
    }
    return _classes(scores.classes, {"weighted F1": scores.mean, "accuracy": scores.accuracy}, counts, main)


def _classes(scores: ClassificationScores, figures: dict[str, float], counts: dict[str, Any], main: str) -> Scored:
    size = len(scores.labels) + 1
    cells = scores.outcomes[:, 0] * size + scores.outcomes[:, 1]

    def resample(counts: np.ndarray) -> float:
        confusion = np.bincount(cells, weights=counts, minlength=size * size).reshape(size, size)
        support, chosen, right = confusion.sum(axis=1)[:-1], confusion.sum(axis=0)[:-1], np.diag(confusion)[:-1]
        if main == "UAR":
            return float(np.mean(right[support > 0] / support[support > 0]))
        f1 = 2 * right / np.maximum(support + chosen, 1e-12)
        return float(np.average(f1, weights=support > 0 if main == "macro F1" else support))

    hits = (scores.outcomes[:, 0] == scores.outcomes[:, 1]).astype(float)
    return Scored(
        main,
        figures,
        scores.clip_ids,
        **(mean_of(hits) if main in ("accuracy", "WAR") else {"resample": resample}),
        counts=counts,
        confusion=scores.confusion,
        labels=scores.labels,
        per_class={
            each.label: {"precision": each.precision, "recall": each.recall, "F1": each.f1, "clips": each.num_clips}
            for each in scores.classes
        },
    )


def _mean_over_wheels(values: np.ndarray, counts: np.ndarray) -> float:
    """(clips, wheels) with NaN where not scored -> mean over the wheels that score some of the clips counted."""
    means = [_weighted_means(values[:, [wheel]], counts) for wheel in range(values.shape[1])]
    return float(np.mean([mean[0] for mean in means if mean is not None] or [0.0]))


def _weighted_means(values: np.ndarray, counts: np.ndarray) -> tuple[float, ...] | None:
    """(clips, n) -> n means over the clips that are scored; None where none of them is counted."""
    weights = counts * np.isfinite(values[:, 0])
    return tuple((weights @ np.nan_to_num(values)) / weights.sum()) if weights.any() else None


def _wheel_counts(scores: Any) -> dict[str, Any]:
    return {
        "clips": scores.num_clips,
        "scored by wheel": list(scores.num_scored),
        "labels predicted a clip": round(scores.mean_num_labels, 3),
    }


def _of_wheels(wheels: EmotionWheels) -> dict[str, Any]:
    return {"notes": (wheels.note,), "comparable": wheels.comparable}


def _percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(100 * value, 2) for value in values]
