"""Limit the tokens of a prompt, and cut the clip's words if the configuration allows it.

A prompt and its answer take one position per token, counted from 0 in every sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fusion_train.errors import DataError
from fusion_train.prompts.prompt import MAX_PROMPT_TOKENS

TooLong = Literal["refuse", "leave_out", "cut"]
MAX_NEW_TOKENS = 200
"""Tokens of a generated answer."""


@dataclass(frozen=True)
class PromptLimits:
    """The limits of one language model."""

    tokens: int = MAX_PROMPT_TOKENS
    """Tokens of a prompt, soft tokens included."""
    positions: int | None = None
    """Tokens of prompt and answer together, for a model with learned position embeddings; None for no such limit."""
    too_long: TooLong = "refuse"
    """cut: cut the clip's words to the longest beginning that fits. The other values raise."""

    @property
    def answering(self) -> int:
        """Tokens of a prompt whose answer is generated."""
        return self.beside(MAX_NEW_TOKENS if self.positions is None else min(MAX_NEW_TOKENS, self.positions // 4))

    def beside(self, answer_tokens: int) -> int:
        """Return the tokens of a prompt whose answer has `answer_tokens`."""
        return self.tokens if self.positions is None else min(self.tokens, self.positions - answer_tokens)

    def fit(self, encode: Callable[[str], list[int]], text: str, limit: int, subject: str) -> list[int]:
        """Return the token ids of a prompt of at most `limit` tokens.

        Args:
            encode: the clip's words -> token ids of the prompt.
            text: the clip's words.
            subject: the clip id, for error messages.

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
    """Return the largest number up to `count` for which `fits` is true, by bisection; 0 if there is none.

    If a number fits, all smaller ones must fit too.
    """
    low, high = 0, count
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
