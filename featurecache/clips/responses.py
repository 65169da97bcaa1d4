"""Texts of a clip's `responses`: one text per task, a list from which one is drawn, or one text per label task.

    "responses": {"reason": "…",                                   argues for the emotion
                  "think": {"intent": "…", "emotion": "…"},        each text argues for the label of its label task
                  "audio": ["…", "…"]}                             one text is drawn

An empty text means that none was written: if it is drawn, the prompt asks for the clip's label instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featurecache.outside_text import shown

Texts = str | Sequence[str]
Response = Texts | Mapping[str, Texts]


def response_texts(response: Response | None) -> list[tuple[str | None, str]]:
    """Return pairs of label task and text of a response, in order; the label task is None if the text names none."""
    if response is None:
        return []
    if isinstance(response, Mapping):
        return [(label, text) for label, texts in response.items() for text in _as_list(texts)]
    return [(None, text) for text in _as_list(response)]


def named_texts(responses: Mapping[str, Response]) -> Iterator[tuple[str, str | None, str]]:
    """Yield task, label task or None, and text of every text that is not empty."""
    for task, response in responses.items():
        for label, text in response_texts(response):
            if text.strip():
                yield task, label, text


def response_problem(value: Any) -> str:
    """Return the problem of a response; an empty string if there is none."""
    if isinstance(value, Mapping):
        invalid = next((texts for texts in value.values() if not _is_texts(texts)), None)
        where = " for every label task"
    else:
        invalid, where = (None if _is_texts(value) else value), ""
    if invalid is None:
        return ""
    if isinstance(invalid, list | tuple):
        invalid = next((text for text in invalid if not isinstance(text, str)), invalid)
    return f"expected a text or a list of texts{where}, got {shown(invalid)}"


def without_nulls(value: Any) -> Any:
    """Return a response without its missing label tasks, for which tables hold null or NaN; None if none remains."""
    if not isinstance(value, Mapping):
        return value
    return {label: text for label, text in value.items() if not is_missing(text)} or None


def is_missing(value: Any) -> bool:
    """Whether a value is null, or NaN, which tables hold in place of null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _as_list(texts: Texts) -> Sequence[str]:
    return (texts,) if isinstance(texts, str) else texts


def _is_texts(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(text, str) for text in value)
    return isinstance(value, str)
