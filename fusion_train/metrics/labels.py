"""Read labels from the answers of a model: lists, conclusions, sentiment words, spellings; pair them with references.

The list parser is that of the released evaluation: remove one leading `[` and one trailing `]`, split at `'`, `"` and
`,`, strip, drop empty items. Labels are compared in lower case. `negation` decides whether a word is negated.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from featurecache.errors import suggest
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
"""Each set holds the spellings of one label in the label spaces of the datasets."""


def conclusion(text: str) -> str:
    """Return the text inside `<answer>…</answer>`; the whole text if there is no such tag."""
    match = _CONCLUSION.search(text)
    return match.group(1) if match else text


def parse_list(text: str) -> list[str]:
    """Return the labels of `['happy', 'proud']`, `[happy, proud]` or `happy, proud`, in their own spelling."""
    text = text.removeprefix("[")
    text = text.removesuffix("]")
    return [item.strip() for item in _SEPARATORS.split(text) if item.strip()]


def label_list(value: object) -> list[str]:
    """Return the distinct labels of a text or a list of texts, in lower case and in their order.

    In a text, a quoted label after a negation (`not 'happy'`) is left out; without quotes, `not happy` is a label.

    Values come from files, so any type may arrive here.

    Raises:
        DataError: the value is neither a text nor a list of texts.
    """
    if isinstance(value, str):
        items: list[Any] = _not_negated(conclusion(value).strip())
    else:
        items = list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(item, str) for item in items):
        raise DataError("labels", expected="a text or a list of texts", got=shown(value))
    return list(dict.fromkeys(item.strip().lower() for item in items if item.strip()))


def _not_negated(text: str) -> list[str]:
    """Return the items of `parse_list` without quoted items that the words before them negate."""
    items = parse_list(text)
    if not any(quote in text for quote in "'\""):
        return items
    labels, end = [], 0
    for item in items:
        start = text.index(item, end)
        end = start + len(item)
        if not (start and text[start - 1] in "'\"" and is_negated(text, start)):
            labels.append(item)
    return labels


def one_label(value: str) -> str:
    """Return a single label in the form that is compared: the conclusion, in lower case, without a full stop."""
    return conclusion(value).strip().rstrip(".").strip().lower()


def read_sentiment(text: str) -> str | None:
    """Return the one sentiment (positive, negative, neutral) that an English or Chinese text states, or None.

    Negated words are read: "not positive but negative" is negative, "not positive" is None, and a text that negates
    both positive and negative is neutral.
    """
    text = conclusion(text).lower()
    affirmed, negated = set[str](), set[str]()
    for name, words in _SENTIMENTS.items():
        for match in words.finditer(text):
            (negated if is_negated(text, match.start()) else affirmed).add(name)
    if not affirmed and negated == {"positive", "negative"}:
        return "neutral"
    return affirmed.pop() if len(affirmed) == 1 and not affirmed & negated else None


def find_sentiment(text: str) -> str | None:
    """Return the only sentiment word of a text, negated or not; None if it has none or several different ones."""
    named = set(_SENTIMENT.findall(conclusion(text).lower()))
    return named.pop() if len(named) == 1 else None


def spelt_as(label: str, vocabulary: Sequence[str]) -> str:
    """Return the label as `vocabulary` spells it; unchanged if no word, or more than one, is another spelling of it."""
    if label in vocabulary:
        return label
    spellings = [word for word in vocabulary for names in ALIASES if label in names and word.lower() in names]
    return spellings[0] if len(spellings) == 1 else label


def paired_ids(references: Mapping[str, Any], predictions: Mapping[str, Any]) -> list[str]:
    """Return the clip ids, sorted: with this order, no score depends on the order of the dicts.

    Raises:
        DataError: there are no references, or only one side has some clip.
    """
    missing, extra = sorted(references.keys() - predictions), sorted(predictions.keys() - references)
    if missing or extra or not references:
        raise DataError(
            "predictions",
            expected=f"one for each of {len(references)} clips",
            got=f"{len(missing)} missing, {len(extra)} for other clips" if references else "no references",
            next_step=suggest(extra[0], missing).strip() or None if extra else None,
            problems=[f"missing: {clip}" for clip in missing] + [f"unknown: {clip}" for clip in extra],
        )
    return sorted(references)
