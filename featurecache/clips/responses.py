"""The texts of a clip's `responses`: one per task, several of which one is drawn, or one per label task.

    "responses": {"reason": "…",                                   argues for the emotion
                  "think": {"intent": "…", "emotion": "…"},        each argues for the label task that it names
                  "audio": ["…", "…"]}                             one of them is drawn

An empty text stands for one that was not written: where it is drawn, the clip is asked for its label. Knows no clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featurecache.outside_text import shown

Texts = str | Sequence[str]
Response = Texts | Mapping[str, Texts]


def response_texts(response: Response | None) -> list[tuple[str | None, str]]:
    """(label task that the text argues for, None where it names none; text) of a response, in its order."""
    if response is None:
        return []
    if isinstance(response, Mapping):
        return [(label, text) for label, texts in response.items() for text in _each(texts)]
    return [(None, text) for text in _each(response)]


def named_texts(responses: Mapping[str, Response]) -> Iterator[tuple[str, str | None, str]]:
    """(task, label task or None, text) of every text that is not empty."""
    for task, response in responses.items():
        for label, text in response_texts(response):
            if text.strip():
                yield task, label, text


def response_problem(value: Any) -> str:
    """What is wrong with a response; an empty string where nothing is."""
    if isinstance(value, Mapping):
        strange = next((each for each in value.values() if not _is_texts(each)), None)
        where = " for every label task"
    else:
        strange, where = (None if _is_texts(value) else value), ""
    if strange is None:
        return ""
    if isinstance(strange, list | tuple):
        strange = next((text for text in strange if not isinstance(text, str)), strange)
    return f"expected a text or a list of texts{where}, got {shown(strange)}"


def without_nulls(value: Any) -> Any:
    """A response without label tasks that have none: tables hold a null, or NaN, for those."""
    if not isinstance(value, Mapping):
        return value
    return {label: text for label, text in value.items() if text is not None and not _is_nan(text)} or None


def _each(texts: Texts) -> Sequence[str]:
    return (texts,) if isinstance(texts, str) else texts


def _is_texts(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(text, str) for text in value)
    return isinstance(value, str)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
