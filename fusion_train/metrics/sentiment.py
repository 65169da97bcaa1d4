"""Sentiment metrics: WAF over scores, and the three-way variant of the released code, which gives other numbers.

WAF (as in AffectGPT): clips with score 0 are left out; the reference is positive or not positive by the sign of its
score, and so is the answer: neutral and unreadable answers count as not positive. WAF is the weighted F1 of the two
classes. Three-way (as in the released v2): clips with a neutral reference are left out; the figure is the weighted F1
of the words, so an answer "neutral" is wrong for both classes. The argument `read` interprets an answer:
`read_sentiment` recognises negation, `find_sentiment` takes the sentiment word ("not positive" is positive),
`whole_answer` takes the whole text, as the released scoring of v2 does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fusion_train.errors import DataError
from fusion_train.metrics.classification import ClassificationScores, classification_scores, refuse_unknown_labels
from fusion_train.metrics.labels import paired_ids, read_sentiment

SENTIMENTS = ("negative", "neutral", "positive")
UNREADABLE = "(unreadable)"
Reader = Callable[[str], str | None]
"""Answer -> sentiment, None if the answer states none."""


@dataclass(frozen=True)
class SentimentScores:
    """Scores over `num_scored` clips; `num_neutral` further clips were left out."""

    mean: float
    """Weighted F1."""
    accuracy: float
    num_scored: int
    num_neutral: int
    num_unreadable: int
    """Scored answers that state no sentiment, or several."""
    classes: ClassificationScores


def whole_answer(text: str) -> str | None:
    """Return the text, in lower case, if it is a sentiment and nothing else; otherwise None."""
    word = text.strip().lower()
    return word if word in SENTIMENTS else None


def sentiment_scores(
    scores: Mapping[str, float], predictions: Mapping[str, str], read: Reader = read_sentiment
) -> SentimentScores:
    """Return the WAF of answers against sentiment scores (negative below 0, positive above 0).

    Raises:
        DataError: only one side has some clip, a score is not finite, or all scores are 0.
    """
    ids = paired_ids(scores, predictions)
    not_finite = [f"{clip}: {scores[clip]!r}" for clip in ids if not math.isfinite(scores[clip])]
    if not_finite:
        raise DataError("references", expected="finite scores", got=f"{len(not_finite)} others", problems=not_finite)
    truth = {clip: "positive" if scores[clip] > 0 else "not positive" for clip in ids if scores[clip] != 0}
    answers = {clip: read(predictions[clip]) for clip in truth}
    two_way = {clip: "positive" if answer == "positive" else "not positive" for clip, answer in answers.items()}
    return _scores(truth, two_way, answers, len(ids))


def three_way_sentiment_scores(
    references: Mapping[str, str], predictions: Mapping[str, str], read: Reader = read_sentiment
) -> SentimentScores:
    """Return the weighted F1 of sentiment words over the clips whose reference is not neutral.

    Raises:
        DataError: only one side has some clip, a reference is no sentiment, or all references are neutral.
    """
    ids = paired_ids(references, predictions)
    labels = {clip: references[clip].strip().lower() for clip in ids}
    refuse_unknown_labels({clip: [label] for clip, label in labels.items()}, SENTIMENTS)
    truth = {clip: label for clip, label in labels.items() if label != "neutral"}
    answers = {clip: read(predictions[clip]) for clip in truth}
    return _scores(truth, {clip: answer or UNREADABLE for clip, answer in answers.items()}, answers, len(ids))


def _scores(
    truth: Mapping[str, str], predicted: Mapping[str, str], answers: Mapping[str, str | None], num_clips: int
) -> SentimentScores:
    if not truth:
        raise DataError("references", expected="clips that are not neutral", got=f"{num_clips} neutral clips only")
    classes = classification_scores(truth, predicted)
    return SentimentScores(
        mean=classes.weighted_f1,
        accuracy=classes.accuracy,
        num_scored=len(truth),
        num_neutral=num_clips - len(truth),
        num_unreadable=sum(answer is None for answer in answers.values()),
        classes=classes,
    )
