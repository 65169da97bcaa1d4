"""From what a model wrote to labels: lists, conclusions, sentiment words, spellings of one label.

The list parser is that of the released evaluation: drop one leading `[` and one trailing `]`, split at `'`, `"` and
`,`, strip, drop what is empty. Labels are compared in lower case. No model is asked here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from featurecache.outside_text import shown
from fusion_train.errors import DataError

_SEPARATORS = re.compile("['\",]")
_CONCLUSION = re.compile(r"<answer>\s*(.*?)\s*(?:</answer>|$)", re.DOTALL)
_SENTIMENT = re.compile(r"\b(positive|negative|neutral)\b")

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

    Raises:
        DataError: a value that is neither, or a list of something else.
    """
    if isinstance(value, str):
        items = parse_list(conclusion(value).strip())
    else:
        items = list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(item, str) for item in items):
        raise DataError("labels", expected="a text or a list of texts", got=shown(value))
    return list(dict.fromkeys(item.strip().lower() for item in items if item.strip()))


def one_label(value: str) -> str:
    """A single label as compared: its conclusion, in lower case, without the full stop of a sentence."""
    return conclusion(value).strip().rstrip(".").strip().lower()


def read_sentiment(text: str) -> str | None:
    """`positive`, `negative` or `neutral`, where the text names just one of them; None where it cannot be read."""
    named = set(_SENTIMENT.findall(conclusion(text).lower()))
    return named.pop() if len(named) == 1 else None


def spelt_as(label: str, vocabulary: Sequence[str]) -> str:
    """The label as `vocabulary` spells it; unchanged where no word, or more than one, is another spelling of it."""
    if label in vocabulary:
        return label
    alike = [word for word in vocabulary for names in ALIASES if label in names and word.lower() in names]
    return alike[0] if len(alike) == 1 else label
