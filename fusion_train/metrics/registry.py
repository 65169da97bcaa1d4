"""Metrics by name, for benchmarks and sweeps: one function per metric and one line of `METRICS`.

A function takes references and predictions and returns a `MetricResult`. Its `resample` computes the main figure again
with a weight per clip, w (clips,): intervals leave clusters of clips out by weights of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurecache.errors import suggest
from fusion_train.errors import ConfigError, DataError, refuse_unknown
from fusion_train.metrics.classification import ClassificationScores, classification_scores, multi_label_scores
from fusion_train.metrics.labels import find_sentiment, one_label, read_sentiment
from fusion_train.metrics.metric_result import MetricResult, MetricSettings, mean_of
from fusion_train.metrics.overlap import overlap_scores
from fusion_train.metrics.regression import concordance, correlation, regression_scores, root_mean_square
from fusion_train.metrics.sentiment import (
    Reader,
    SentimentScores,
    sentiment_scores,
    three_way_sentiment_scores,
    whole_answer,
)
from fusion_train.metrics.wheel_metrics import HitRate, OpenVocabularyScores, harmonic, hit_rate, open_vocabulary_scores
from fusion_train.metrics.wheels import EmotionWheels

References = Mapping[str, Any]
Predictions = Mapping[str, str]


@dataclass(frozen=True)
class Metric:
    """Function of a metric, and the names of its figures; the first is the main figure by default."""

    compute: Callable[[References, Predictions, MetricSettings, str], MetricResult]
    figures: tuple[str, ...]
    errors: frozenset[str] = frozenset()
    """Figures of which less is better; no variant or candidate is chosen by them."""


def hit(references: References, predictions: Predictions, settings: MetricSettings, main: str) -> MetricResult:
    """HIT: share of clips whose reference group is among the predicted groups, averaged over wheels."""
    scores = hit_rate(references, predictions, settings.wheels)
    return MetricResult(
        main,
        {"HIT": scores.mean},
        scores.clip_ids,
        lambda weights: _mean_over_wheels(scores.hits, weights),
        counts=_wheel_counts(scores) | {"HIT by wheel": _percent(scores.per_wheel)},
        **_wheel_note(settings.wheels),
    )


def open_vocabulary(
    references: References, predictions: Predictions, settings: MetricSettings, main: str
) -> MetricResult:
    """Precision, recall and F of open-vocabulary labels, averaged over wheels."""
    scores = open_vocabulary_scores(references, predictions, settings.wheels)

    def resample(weights: np.ndarray) -> float:
        if main != "F":
            return _mean_over_wheels(scores.parts[:, :, ("precision", "recall").index(main)], weights)
        means = [_weighted_means(scores.parts[:, wheel], weights) for wheel in range(scores.parts.shape[1])]
        return float(np.mean([harmonic(*pair) for pair in means if pair is not None] or [0.0]))

    return MetricResult(
        main,
        {"F": scores.mean, "precision": scores.precision, "recall": scores.recall},
        scores.clip_ids,
        resample,
        counts=_wheel_counts(scores)
        | {"F by wheel": _percent([None if wheel is None else wheel.f for wheel in scores.per_wheel])},
        **_wheel_note(settings.wheels),
    )


def waf(references: References, predictions: Predictions, settings: MetricSettings, main: str) -> MetricResult:
    """WAF of sentiment; negated words are recognised."""
    return _waf(references, predictions, main, read_sentiment)


def waf_released(references: References, predictions: Predictions, settings: MetricSettings, main: str) -> MetricResult:
    """WAF of sentiment; answers are read as in the released code, without negation."""
    return _waf(references, predictions, main, find_sentiment)


def three_way(references: References, predictions: Predictions, settings: MetricSettings, main: str) -> MetricResult:
    """Three-way sentiment; negated words are recognised."""
    return _three_way(references, predictions, main, read_sentiment)


def three_way_released(
    references: References, predictions: Predictions, settings: MetricSettings, main: str
) -> MetricResult:
    """Three-way sentiment; the whole answer must be the word, as in the released code."""
    return _three_way(references, predictions, main, whole_answer)


def classification(
    references: References, predictions: Predictions, settings: MetricSettings, main: str
) -> MetricResult:
    """Figures of one label per clip.

    Raises:
        DataError: a reference is no single label; or see `classification_scores`.
    """
    not_single = [f"{clip}: {value!r}" for clip, value in references.items() if not isinstance(value, str)]
    if not_single:
        raise DataError(
            "references",
            expected="one label per clip",
            got=f"another value for {len(not_single)}",
            next_step="Lists are scored by the metrics multi-label and open-vocabulary.",
            problems=not_single,
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


def multi_label(references: References, predictions: Predictions, settings: MetricSettings, main: str) -> MetricResult:
    """Figures of several labels per clip."""
    scores = multi_label_scores(references, predictions, settings.vocabulary)
    true, predicted = scores.truth.astype(float), scores.predicted.astype(float)  # (clips, classes)
    common, union = (true * predicted).sum(axis=1), np.maximum(true, predicted).sum(axis=1)  # (clips,)
    sizes = true.sum(axis=1) + predicted.sum(axis=1)

    def resample(weights: np.ndarray) -> float:
        if main == "F1 micro":
            return float(2 * weights @ common / max(weights @ sizes, 1e-12))
        num_true, num_predicted, num_right = weights @ true, weights @ predicted, weights @ (true * predicted)
        seen = num_true > 0
        recall = num_right[seen] / num_true[seen]
        precision = num_right[seen] / np.maximum(num_predicted[seen], 1e-12)
        # Average precision of scores that are 0 or 1: its curve has two points.
        return float(np.mean(precision * recall + num_true[seen] / weights.sum() * (1 - recall)))

    per_clip = {"F1 samples": 2 * common / np.maximum(sizes, 1), "Jaccard": common / np.maximum(union, 1)}
    figures = {
        "mAP": scores.map_macro,
        "F1 micro": scores.f1_micro,
        "F1 samples": scores.f1_samples,
        "Jaccard": scores.jaccard,
    }
    return MetricResult(
        main,
        figures,
        tuple(sorted(references)),
        **(mean_of(per_clip[main]) if main in per_clip else {"resample": resample}),
        counts={
            "clips": scores.num_clips,
            "labels predicted a clip": round(scores.mean_num_labels, 3),
            "predicted labels outside the classes": scores.num_outside,
        },
        per_class={
            label.label: {"AP": label.average_precision, "F1": label.f1, "clips": label.num_clips}
            for label in scores.classes
        },
    )


def overlap(references: References, predictions: Predictions, settings: MetricSettings, main: str) -> MetricResult:
    """Agreement of descriptions, rated by the judge of the settings."""
    scores = overlap_scores({clip: str(text) for clip, text in references.items()}, predictions, settings.judge)
    column = ("clue", "label").index(main)
    return MetricResult(
        main,
        {"clue": scores.clue, "label": scores.label},
        scores.clip_ids,
        **mean_of(scores.ratings[:, column]),
        counts={"clips": scores.num_clips, "without a rating": scores.num_unrated},
        notes=(f"judge: {scores.judge}; comparable only with scores of the same judge",),
        comparable=False,
        highest=scores.highest,
    )


def regression(references: References, predictions: Predictions, settings: MetricSettings, main: str) -> MetricResult:
    """CCC, r, RMSE and MAE of one number per clip."""
    scores = regression_scores(references, predictions)
    x, y = scores.references, scores.predictions
    resample: dict[str, Any] = {
        "CCC": {"resample": lambda weights: concordance(x, y, weights), "lowest": -1.0},
        "r": {"resample": lambda weights: correlation(x, y, weights), "lowest": -1.0},
        "RMSE": {"resample": lambda weights: root_mean_square(x - y, weights), "highest": math.inf},
        "MAE": {**mean_of(np.abs(x - y)), "highest": math.inf},
    }
    return MetricResult(
        main,
        {"CCC": scores.ccc, "r": scores.pearson, "RMSE": scores.rmse, "MAE": scores.mae},
        scores.clip_ids,
        **resample[main],
        counts={
            "clips": len(scores.clip_ids),
            "references from": f"{x.min():g} to {x.max():g}",
            "predictions from": f"{y.min():g} to {y.max():g}",
        },
    )


def _sentiment_numbers(references: References) -> dict[str, float]:
    """Return sentiment scores as numbers, and words as -1, 0 and 1: the metrics use only the sign.

    Raises:
        DataError: a reference is neither.
    """
    words = {"negative": -1.0, "neutral": 0.0, "positive": 1.0}
    numbers, problems = {}, []
    for clip, value in references.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
            numbers[clip] = float(value)
        elif str(value).strip().lower() in words:
            numbers[clip] = words[str(value).strip().lower()]
        else:
            problems.append(f"{clip}: {value!r}")
    if problems:
        raise DataError("references", expected="sentiment scores", got=f"{len(problems)} others", problems=problems)
    return numbers


def _waf(references: References, predictions: Predictions, main: str, read: Reader) -> MetricResult:
    return _sentiment(sentiment_scores(_sentiment_numbers(references), predictions, read), main)


def _three_way(references: References, predictions: Predictions, main: str, read: Reader) -> MetricResult:
    signs = {-1: "negative", 0: "neutral", 1: "positive"}
    words = {clip: signs[int(np.sign(number))] for clip, number in _sentiment_numbers(references).items()}
    return _sentiment(three_way_sentiment_scores(words, predictions, read), main)


def _sentiment(scores: SentimentScores, main: str) -> MetricResult:
    counts = {
        "clips": scores.num_scored + scores.num_neutral,
        "neutral, not scored": scores.num_neutral,
        "unreadable answers": scores.num_unreadable,
    }
    return _classes(scores.classes, {"weighted F1": scores.mean, "accuracy": scores.accuracy}, counts, main)


def _classes(
    scores: ClassificationScores, figures: dict[str, float], counts: dict[str, Any], main: str
) -> MetricResult:
    """Return the result of a classification; `main` is computed again from a weighted confusion matrix."""
    size = len(scores.labels) + 1
    cells = scores.outcomes[:, 0] * size + scores.outcomes[:, 1]  # index of each clip in the flat confusion matrix

    def resample(weights: np.ndarray) -> float:
        confusion = np.bincount(cells, weights=weights, minlength=size * size).reshape(size, size)
        support, predicted, right = confusion.sum(axis=1)[:-1], confusion.sum(axis=0)[:-1], np.diag(confusion)[:-1]
        if main == "UAR":
            return float(np.mean(right[support > 0] / support[support > 0]))
        f1 = 2 * right / np.maximum(support + predicted, 1e-12)
        return float(np.average(f1, weights=support > 0 if main == "macro F1" else support))

    hits = (scores.outcomes[:, 0] == scores.outcomes[:, 1]).astype(float)
    return MetricResult(
        main,
        figures,
        scores.clip_ids,
        **(mean_of(hits) if main in ("accuracy", "WAR") else {"resample": resample}),
        counts=counts,
        confusion=scores.confusion,
        outcomes=scores.outcomes,
        labels=scores.labels,
        per_class={
            label.label: {
                "precision": label.precision,
                "recall": label.recall,
                "F1": label.f1,
                "clips": label.num_clips,
            }
            for label in scores.classes
        },
    )


def _mean_over_wheels(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean over wheels of (clips, wheels) values, NaN where a wheel does not score a clip.

    A wheel that scores no clip of positive weight does not enter the mean.
    """
    means = [_weighted_means(values[:, [wheel]], weights) for wheel in range(values.shape[1])]
    return float(np.mean([mean[0] for mean in means if mean is not None] or [0.0]))


def _weighted_means(values: np.ndarray, weights: np.ndarray) -> tuple[float, ...] | None:
    """Return n weighted means of (clips, n) values over the scored clips; None if their weights are all 0."""
    weights = weights * np.isfinite(values[:, 0])
    return tuple((weights @ np.nan_to_num(values)) / weights.sum()) if weights.any() else None


def _wheel_counts(scores: HitRate | OpenVocabularyScores) -> dict[str, Any]:
    return {
        "clips": scores.num_clips,
        "scored by wheel": list(scores.num_scored),
        "labels predicted a clip": round(scores.mean_num_labels, 3),
    }


def _wheel_note(wheels: EmotionWheels) -> dict[str, Any]:
    return {"notes": (wheels.note,), "comparable": wheels.comparable}


def _percent(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(100 * value, 2) for value in values]


METRICS: dict[str, Metric] = {
    "hit": Metric(hit, ("HIT",)),
    "open-vocabulary": Metric(open_vocabulary, ("F", "precision", "recall")),
    "waf": Metric(waf, ("weighted F1", "accuracy")),
    "waf-released": Metric(waf_released, ("weighted F1", "accuracy")),
    "sentiment-three-way": Metric(three_way, ("weighted F1", "accuracy")),
    "sentiment-three-way-released": Metric(three_way_released, ("weighted F1", "accuracy")),
    "classification": Metric(classification, ("accuracy", "weighted F1", "UAR", "WAR", "macro F1")),
    "multi-label": Metric(multi_label, ("mAP", "F1 micro", "F1 samples", "Jaccard")),
    "overlap": Metric(overlap, ("clue", "label")),
    "regression": Metric(regression, ("CCC", "r", "RMSE", "MAE"), frozenset({"RMSE", "MAE"})),
}


def find_metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        ConfigError: no metric has this name; the message suggests the nearest one.
    """
    refuse_unknown("metric", name, METRICS)
    return METRICS[name]


def main_figure(name: str, main: str | None = None) -> str:
    """Return the main figure: `main` if the metric has it, or its default if `main` is None.

    Raises:
        ConfigError: no metric has this name, or the metric lacks the figure; the message suggests the nearest one.
    """
    figures = find_metric(name).figures
    if main is not None and main not in figures:
        raise ConfigError(
            f'main figure of metric "{name}"',
            expected="one of " + ", ".join(figures),
            got=repr(main),
            next_step=suggest(main, figures).strip() or None,
        )
    return main or figures[0]


def choosing_figure(name: str, main: str | None = None) -> str:
    """Return the main figure, as `main_figure` does, by which a variant or a candidate may be chosen.

    Raises:
        ConfigError: as `main_figure`, or less of the figure is better.
    """
    figure = main_figure(name, main)
    if figure in METRICS[name].errors:
        more = [other for other in METRICS[name].figures if other not in METRICS[name].errors]
        raise ConfigError(
            f'main figure of metric "{name}"',
            expected=f"a figure of which more is better: {', '.join(more)}",
            got=f'"{figure}"',
            next_step=f"Choose by {more[0]}; {figure} is shown beside it.",
        )
    return figure


def score(
    name: str,
    references: Mapping[str, Any],
    predictions: Mapping[str, str],
    settings: MetricSettings | None = None,
    main: str | None = None,
) -> MetricResult:
    """Score predictions by the metric `name`.

    Args:
        references, predictions: clip id -> value; predictions are the texts of the model.
        main: the main figure; None for the default of the metric.

    Raises:
        ConfigError: no metric has this name, or the metric lacks the figure.
        DataError: see the metric.
    """
    figure = main_figure(name, main)
    return METRICS[name].compute(references, predictions, settings or MetricSettings(), figure)
