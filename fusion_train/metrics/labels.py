"""From what a model wrote to labels: lists, conclusions, sentiment words, spellings of one label.

The list parser is that of the released evaluation: drop one leading `[` and one trailing `]`, split at `'`, `"` and
`,`, strip, drop what is empty. Labels are compared in lower case. What the text negates is not read (`negation`). No
model is asked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from featurecache.outside_text import shown
from fusion_train.errors import DataError
from fusion_train.metrics.negation import is_negated

_SEPARATORS = re.compile("['\",]")
_CONCLUSION = re.compile(r"<answer>\s*(.*?)\s*(?:</answer>|$)", re.DOTALL)
_SENTIMENT = re.compile(r"\b(positive|negative|neutral)\b")
_SENTIMENTS = {
    "positive": re.compile("(?<![a-z])positive(?![a-z])|[积積]极|積極|正[面向性]"),
    "negative": re.compile("(?<![a-z])negative(?![a-z])|消[极極]|[负負][面向性]"),
    "neutral": re.compile("(?<![a-z])neutral(?![a-z])|中[性立]"),
}

ALIASES: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split())
    for names in (
        "angry anger",
        "happy happiness joy",
        "sad sadness",
        "surprise surprised",
        "fear scared fearful",
        "disgust disgusted",
        "worried worry",
    )
)
"""Spellings of one label in the datasets' own label spaces."""


def conclusion(text: str) -> str:
    """What stands in `<answer>…</answer>`; the whole text where there is no such tag."""
    found = _CONCLUSION.search(text)
    return found.group(1) if found else text


def parse_list(text: str) -> list[str]:
    """`['happy', 'proud']`, `[happy, proud]` or `happy, proud` -> the labels in it, as they are spelt."""
    text = text.removeprefix("[")
    text = text.removesuffix("]")
    return [item.strip() for item in _SEPARATORS.split(text) if item.strip()]


def label_list(value: str | Iterable[str]) -> list[str]:
    """One or more labels, as text or as a list -> distinct labels in lower case, in their order.

    In a text, a label in quotes that is negated before them (`not 'happy'`) is left out; `not happy` is another label.

    Raises:
        DataError: a value that is neither, or a list of something else.
    """
    if isinstance(value, str):
        items = _not_negated(conclusion(value).strip())
    else:
        items = list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(item, str) for item in items):
        raise DataError("labels", expected="a text or a list of texts", got=shown(value))
    return list(dict.fromkeys(item.strip().lower() for item in items if item.strip()))


def _not_negated(text: str) -> list[str]:
    """The items of `parse_list`, less those in quotes that the words before them negate."""
    items = parse_list(text)
    if not any(quote in text for quote in "'\""):
        return items
    kept, place = [], 0
    for item in items:
        start = text.index(item, place)
        place = start + len(item)
        if not (start and text[start - 1] in "'\"" and is_negated(text, start)):
            kept.append(item)
    return kept


def one_label(value: str) -> str:
    """A single label as compared: its conclusion, in lower case, without the full stop of a sentence."""
    return conclusion(value).strip().rstrip(".").strip().lower()


def read_sentiment(text: str) -> str | None:
    """`positive`, `negative` or `neutral`, where a text in English or Chinese says just one of them; None for others.

    A word that is negated does not say it: "not positive but negative" is negative, "not positive" is none of the
    three, and a text that negates both positive and negative is neutral.
    """
    said = conclusion(text).lower()
    negated = {True: set[str](), False: set[str]()}
    for name, words in _SENTIMENTS.items():
        for found in words.finditer(said):
            negated[is_negated(said, found.start())].add(name)
    if not negated[False] and negated[True] == {"positive", "negative"}:
        return "neutral"
    return negated[False].pop() if len(negated[False]) == 1 and not negated[False] & negated[True] else None


def find_sentiment(text: str) -> str | None:
    """`positive`, `negative` or `neutral`, where a text has just one of these words, negated or not; else None."""
    named = set(_SENTIMENT.findall(conclusion(text).lower()))
    return named.pop() if len(named) == 1 else None


def spelt_as(label: str, vocabulary: Sequence[str]) -> str:
    """The label as `vocabulary` spells it; unchanged where no word, or more than one, is another spelling of it."""
    if label in vocabulary:
        return label
    alike = [word for word in vocabulary for names in ALIASES if label in names and word.lower() in names]
    return alike[0] if len(alike) == 1 else label
