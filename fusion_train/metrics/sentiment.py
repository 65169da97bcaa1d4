"""Sentiment: WAF over scores, and the released three-way variant, which is another number on the same predictions.

WAF (as AffectGPT): clips with score 0 drop out; a clip is positive or not by the sign of its score, and predicted
positive or not: neutral and unreadable answers count as not positive. Weighted F1 of the two classes.
Three-way (as the released v2): clips whose reference is neutral drop out; weighted F1 of the words, so that an answer
"neutral" is wrong for either class.
How an answer is read is an argument: `read_sentiment` reads negation, `find_sentiment` takes the word alone ("not
positive" is positive), `whole_answer` takes the text as it stands, as the released scoring of v2 does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fusion_train.errors import DataError
from fusion_train.metrics.classification import ClassificationScores, classification_scores, refuse_outside
from fusion_train.metrics.labels import read_sentiment
from fusion_train.metrics.pairing import paired_ids

SENTIMENTS = ("negative", "neutral", "positive")
UNREADABLE = "(unreadable)"
Read = Callable[[str], str | None]
"""An answer -> a sentiment, or None where it says none."""


@dataclass(frozen=True)
class SentimentScores:
    """Weighted F1 as `mean`, over `num_scored` clips; `num_neutral` more dropped out."""

    mean: float
    accuracy: float
    num_scored: int
    num_neutral: int
    num_unreadable: int
    """Answers, among those scored, that name no sentiment, or several."""
    classes: ClassificationScores


def whole_answer(text: str) -> str | None:
    """The text where it is a sentiment and nothing else, whatever its case."""
    said = text.strip().lower()
    return said if said in SENTIMENTS else None


def sentiment_scores(
    scores: Mapping[str, float], predictions: Mapping[str, str], read: Read = read_sentiment
) -> SentimentScores:
    """WAF of answers against sentiment scores (negative below 0, positive above).

    Raises:
        DataError: clips that only one side has, a score that is no number, or no clip with a score other than 0.
    """
    ids = paired_ids(scores, predictions)
    strange = [f"{clip}: {scores[clip]!r}" for clip in ids if not math.isfinite(scores[clip])]
    if strange:
        raise DataError("references", expected="finite scores", got=f"{len(strange)} others", problems=strange)
    kept = [clip for clip in ids if scores[clip] != 0]
    answers = {clip: read(predictions[clip]) for clip in kept}
    truth = {clip: "positive" if scores[clip] > 0 else "not positive" for clip in kept}
    two_way = {clip: "positive" if answer == "positive" else "not positive" for clip, answer in answers.items()}
    return _scores(truth, two_way, answers, len(ids))


def three_way_sentiment_scores(
    references: Mapping[str, str], predictions: Mapping[str, str], read: Read = read_sentiment
) -> SentimentScores:
    """Weighted F1 of sentiment words on the clips whose reference is not neutral.

    Raises:
        DataError: clips that only one side has, a reference that is no sentiment, or none but neutral ones.
    """
    ids = paired_ids(references, predictions)
    labels = {clip: references[clip].strip().lower() for clip in ids}
    refuse_outside({clip: [label] for clip, label in labels.items()}, SENTIMENTS)
    truth = {clip: label for clip, label in labels.items() if label != "neutral"}
    answers = {clip: read(predictions[clip]) for clip in truth}
    return _scores(truth, {clip: answer or UNREADABLE for clip, answer in answers.items()}, answers, len(ids))


def _scores(
    truth: Mapping[str, str], predicted: Mapping[str, str], answers: Mapping[str, str | None], num_clips: int
) -> SentimentScores:
    if not truth:
        raise DataError("references", expected="clips that are not neutral", got=f"{num_clips} neutral clips alone")
    classes = classification_scores(truth, predicted)
    return SentimentScores(
        mean=classes.weighted_f1,
        accuracy=classes.accuracy,
        num_scored=len(truth),
        num_neutral=num_clips - len(truth),
        num_unreadable=sum(answer is None for answer in answers.values()),
        classes=classes,
    )
