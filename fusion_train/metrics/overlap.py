"""Agreement of a free description with its reference: clues and labels, rated by a judge (as in EMER).

A judge rates one pair of texts. Language models rate from 1 to 10 (`evaluation.text_models`). The lexical judge of this
module needs no model; it gives the F1 of the common content words, from 0 to 1. Each judge has a name, because scores
of different judges cannot be compared: rate all baselines with the same judge.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from fusion_train.errors import DataError
from fusion_train.metrics.labels import paired_ids
from fusion_train.metrics.wheel_metrics import harmonic

Kind = Literal["clue", "label"]
KINDS: tuple[Kind, ...] = ("clue", "label")
_WORD = re.compile(r"[^\W\d_]+")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by can could did do does for from had has have he her his i in is it its may"
        " might not of on or our she should so some than that the their them there these they this those to was we were"
        " which while who will with would you your person",
    )
)


class Judge(Protocol):
    """Rates the agreement of a prediction with a reference."""

    name: str
    """Name of the judge, including its model; scores of judges with different names are not comparable."""
    highest: float
    """The best possible rating."""

    def rate(self, kind: Kind, clip_id: str, reference: str, prediction: str) -> float | None:
        """Return a rating, None if the reply of the judge holds none."""
        ...


@dataclass(frozen=True)
class OverlapScores:
    """Mean ratings over the rated clips."""

    clue: float
    label: float
    judge: str
    highest: float
    num_clips: int
    num_unrated: int
    """Clips with a reply without a rating; they enter no mean."""
    clip_ids: tuple[str, ...]
    """The rated clips."""
    ratings: np.ndarray
    """(rated clips, 2): clue, label."""


class LexicalJudge:
    """F1 of the common content words; clues count repeated words, labels count distinct words."""

    name = "lexical overlap"
    highest = 1.0

    def rate(self, kind: Kind, clip_id: str, reference: str, prediction: str) -> float:
        true, predicted = (_content_words(text, repeated=kind == "clue") for text in (reference, prediction))
        common = (true & predicted).total()
        return harmonic(common / max(predicted.total(), 1), common / max(true.total(), 1))


def overlap_scores(references: Mapping[str, str], predictions: Mapping[str, str], judge: Judge) -> OverlapScores:
    """Rate the text of every clip against its reference, once for clues and once for labels.

    Raises:
        DataError: only one side has some clip, or no clip has a rating.
    """
    rated, rows, num_unrated = [], [], 0
    for clip in paired_ids(references, predictions):
        ratings = [judge.rate(kind, clip, references[clip], predictions[clip]) for kind in KINDS]
        if None in ratings:
            num_unrated += 1
            continue
        rated.append(clip)
        rows.append(ratings)
    if not rows:
        raise DataError(
            judge.name,
            expected="a rating in its replies",
            got=f"none for {num_unrated} clips",
            next_step="Its raw replies are kept; choose another judge.",
        )
    table = np.array(rows, dtype=float)
    clue, label = table.mean(axis=0).tolist()
    return OverlapScores(
        clue, label, judge.name, judge.highest, len(rated) + num_unrated, num_unrated, tuple(rated), table
    )


def _content_words(text: str, *, repeated: bool) -> Counter[str]:
    words = [word for word in _WORD.findall(text.lower()) if word not in _FUNCTION_WORDS]
    return Counter(words if repeated else set(words))
