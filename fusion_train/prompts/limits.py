"""How long a prompt may be in tokens, and what is done about a text that makes it longer.

Shapes: a prompt and its answer have one position a token, counted from 0 in every sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fusion_train.errors import DataError
from fusion_train.prompts.prompt import MAX_PROMPT_TOKENS

TooLong = Literal["refuse", "leave_out", "cut"]
MAX_NEW_TOKENS = 200
"""Tokens of an answer that is generated."""


@dataclass(frozen=True)
class PromptLimits:
    """The limits of one language model."""

    tokens: int = MAX_PROMPT_TOKENS
    """Of a prompt, soft tokens included."""
    positions: int | None = None
    """Of prompt and answer together, where the language model has learned so many; None for no such limit."""
    too_long: TooLong = "refuse"
    """cut: the clip's words are cut to the longest beginning that fits. The others raise."""

    @property
    def answering(self) -> int:
        """Tokens of a prompt that an answer is generated to."""
        return self.beside(MAX_NEW_TOKENS if self.positions is None else min(MAX_NEW_TOKENS, self.positions // 4))

    def beside(self, answer_tokens: int) -> int:
        """Tokens of a prompt whose answer has so many."""
        return self.tokens if self.positions is None else min(self.tokens, self.positions - answer_tokens)

    def fit(self, encode: Callable[[str], list[int]], text: str, limit: int, subject: str) -> list[int]:
        """Token ids of a prompt of at most `limit` tokens; `encode` makes them of the clip's words.

        Raises:
            DataError: the prompt is longer, and must not or cannot be cut.
        """
        ids = encode(text)
        if len(ids) > limit and self.too_long == "cut":
            ids = encode(text[: longest(len(text), lambda count: len(encode(text[:count])) <= limit)])
        if len(ids) > limit:
            raise DataError(
                subject,
                expected=f"at most {limit} prompt tokens",
                got=str(len(ids)),
                next_step="Shorten its text in the clip list, or cut it by the setting data.too_long: cut.",
            )
        return ids


def longest(count: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 0 to `count` that fits, where all below one that fits do; 0 where none does."""
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
