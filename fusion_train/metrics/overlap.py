"""How far a free description agrees with the reference: clues and labels, rated by a judge (as EMER).

A judge rates one pair of texts. Language models rate from 1 to 10 (`evaluation.text_models`); the lexical judge here
needs no model and gives the share of content words in common, 0 to 1, under a name of its own, so that the two are
never mistaken for each other. Scores of different judges cannot be compared: rate the rivals with the same one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from fusion_train.errors import DataError
from fusion_train.metrics.pairing import paired_ids
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
    """Rates how far a prediction agrees with a reference."""

    name: str
    """Which judge, down to the model; scores of two names are not comparable."""
    highest: float
    """The best rating."""

    def rate(self, kind: Kind, clip_id: str, reference: str, prediction: str) -> float | None:
        """A rating, or None where the judge's reply holds none."""
        ...


@dataclass(frozen=True)
class OverlapScores:
    """Mean ratings over the clips that were rated."""

    clue: float
    label: float
    judge: str
    highest: float
    num_clips: int
    num_unrated: int
    """Clips of which some reply held no rating; they enter no mean."""
    clip_ids: tuple[str, ...]
    """Those rated."""
    ratings: np.ndarray
    """(rated clips, 2): clue, label."""


class LexicalJudge:
    """F1 of content words, counted with repetition; for labels, of distinct words."""

    name = "lexical overlap"
    highest = 1.0

    def rate(self, kind: Kind, clip_id: str, reference: str, prediction: str) -> float:
        wanted, given = (_content(text, repeated=kind == "clue") for text in (reference, prediction))
        common = sum((wanted & given).values())
        return harmonic(common / max(given.total(), 1), common / max(wanted.total(), 1))


def overlap_scores(references: Mapping[str, str], predictions: Mapping[str, str], judge: Judge) -> OverlapScores:
    """Rate every clip's text against its reference, once for clues and once for labels.

    Raises:
        DataError: clips that only one side has, or not one rating.
    """
    rated, rows, unrated = [], [], 0
    for clip in paired_ids(references, predictions):
        ratings = [judge.rate(kind, clip, references[clip], predictions[clip]) for kind in KINDS]
        if None in ratings:
            unrated += 1
            continue
        rated.append(clip)
        rows.append(ratings)
    if not rows:
        raise DataError(
            judge.name,
            expected="a rating in its replies",
            got=f"none for {unrated} clips",
            next_step="Its raw replies are kept; choose another judge.",
        )
    table = np.array(rows, dtype=float)
    clue, label = table.mean(axis=0).tolist()
    return OverlapScores(clue, label, judge.name, judge.highest, len(rated) + unrated, unrated, tuple(rated), table)


def _content(text: str, *, repeated: bool) -> Counter[str]:
    words = [word for word in _WORD.findall(text.lower()) if word not in _FUNCTION_WORDS]
    return Counter(words if repeated else set(words))
