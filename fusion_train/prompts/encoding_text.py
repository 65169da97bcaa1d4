"""Turn text into token ids so that only the prompt's format can write control tokens.

External text (subtitles, labels, questions, answers) is encoded as its characters: `</s>` or `<|im_end|>` in a subtitle
stays text, as with a tokenizer's `split_special_tokens`. In the format's own text such names become the tokens that
they name. Control tokens are a tokenizer's special tokens, and the tokens that its chat template writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fusion_train.errors import DataError

THINKING_TAGS = frozenset({"<think>", "</think>"})
"""Tags that the answers of this package contain; a tokenizer's tokens for them do not count as control tokens."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token of byte fallback, which encodes characters outside the vocabulary, even if it is marked as special."""


@dataclass(frozen=True)
class PromptText:
    """A text in parts; each part is either the prompt format's own or external."""

    parts: tuple[tuple[str, bool], ...]
    """(text, whether the text is the format's own)."""

    @classmethod
    def template(cls, text: str) -> PromptText:
        """Return a text of the prompt format, in which control tokens count."""
        return cls(((text, True),))

    @classmethod
    def external(cls, text: str) -> PromptText:
        """Return a text from outside, in which control tokens are characters."""
        return cls(((text, False),))

    @classmethod
    def joined(cls, texts: Iterable[PromptText]) -> PromptText:
        """Concatenate texts, without empty parts."""
        return cls(tuple(part for text in texts for part in text.parts if part[0]))

    def __add__(self, other: PromptText) -> PromptText:
        return PromptText(self.parts + other.parts)

    def __str__(self) -> str:
        return "".join(text for text, _ in self.parts)


def encode_text(tokenizer: Any, text: PromptText | str, subject: str = "prompt") -> list[int]:
    """Return the token ids of a text; a plain string counts as external.

    Args:
        subject: what the text belongs to, for error messages.

    Raises:
        DataError: the text holds half a character (a lone surrogate).
    """
    ids: list[int] = []
    characters = ""  # collected across parts, since a tokenizer may join the characters of neighbouring parts
    for part, is_template in text.parts if isinstance(text, PromptText) else ((text, False),):
        pieces = _control_tokens(tokenizer).pattern.split(part) if is_template else (part,)
        for number, piece in enumerate(pieces):
            if number % 2:  # `split` with a group returns text and control tokens in turn
                ids += _encode_characters(tokenizer, characters, subject)
                ids.append(tokenizer.convert_tokens_to_ids(piece.strip() or piece))
                characters = ""
            else:
                characters += piece
    return ids + _encode_characters(tokenizer, characters, subject)


@dataclass(frozen=True)
class _ControlTokens:
    pattern: re.Pattern[str]
    """Finds the control tokens in a text; one group."""
    ids: frozenset[int]


@lru_cache(maxsize=8)
def _control_tokens(tokenizer: Any) -> _ControlTokens:
    """Return the control tokens of a tokenizer."""
    template = getattr(tokenizer, "chat_template", None)
    template = template if isinstance(template, str) else str(template or "")
    tokens = {}
    for token_id, token in tokenizer.added_tokens_decoder.items():
        in_template = token.content in template and token.content not in THINKING_TAGS and not token.content.isspace()
        if (token.special or in_template) and not _BYTE.fullmatch(token.content):
            tokens[token_id] = token
    alternatives = []
    for token in sorted(tokens.values(), key=lambda token: -len(token.content)):  # the longest name wins
        before, after = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
        alternatives.append(before + re.escape(token.content) + after)
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    ids = {*tokens, *tokenizer.all_special_ids} - ({tokenizer.unk_token_id} - ends)
    return _ControlTokens(re.compile(f"({'|'.join(alternatives) or '(?!)'})"), frozenset(ids))


def _encode_characters(tokenizer: Any, text: str, subject: str) -> list[int]:
    """Encode a text without control tokens, even if it contains their names."""
    if not text:
        return []
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                subject,
                expected="text",
                got=f"half a character (a lone surrogate) at character {error.start + 1}",
                next_step="Save the text as UTF-8.",
            ) from error
    control = _control_tokens(tokenizer)
    has_name = control.pattern.search(text) is not None
    # A slow tokenizer that splits control tokens also splits added tokens that are plain words: split only if needed.
    ids = _encode(tokenizer, text, split=has_name or getattr(tokenizer, "is_fast", False))
    if not has_name or control.ids.isdisjoint(ids):
        return ids
    # The vocabulary, or a token that counts as a word, has the whole name: cut each name after its first character.
    ids = []
    for number, part in enumerate(control.pattern.split(text)):
        for piece in (part[:1], part[1:]) if number % 2 else (part,):
            ids += _encode(tokenizer, piece, split=True) if piece else []
    unknown = [] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id]
    return [safe for token in ids for safe in (unknown if token in control.ids else [token])]


def _encode(tokenizer: Any, text: str, *, split: bool) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split))
