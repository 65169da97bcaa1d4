"""From text to token ids, so that only a prompt's format can write control tokens.

What comes from outside (subtitles, labels, questions, answers) is encoded as the characters that it has: `</s>` or
`<|im_end|>` in a subtitle are text, as a tokenizer encodes it with `split_special_tokens`. In the format's own parts
they are the tokens that they name. Control tokens are those that a tokenizer has as special, and those that its chat
template writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fusion_train.errors import DataError

THINKING_TAGS = frozenset({"<think>", "</think>"})
"""Written by answers of ours; where a tokenizer has tokens for them, these are no control tokens."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token of byte fallback: what characters outside the vocabulary are made of, even where it counts as special."""


@dataclass(frozen=True)
class Words:
    """A text in parts, each either of the prompt's format or from outside."""

    parts: tuple[tuple[str, bool], ...]
    """(text, whether it is the format's own)."""

    @classmethod
    def own(cls, text: str) -> Words:
        return cls(((text, True),))

    @classmethod
    def outside(cls, text: str) -> Words:
        return cls(((text, False),))

    @classmethod
    def joined(cls, several: Iterable[Words]) -> Words:
        return cls(tuple(part for words in several for part in words.parts if part[0]))

    def __add__(self, other: Words) -> Words:
        return Words(self.parts + other.parts)

    def __str__(self) -> str:
        return "".join(text for text, _ in self.parts)


def encode_text(tokenizer: Any, words: Words | str, subject: str = "prompt") -> list[int]:
    """Token ids of a text; a plain string is from outside.

    Raises:
        DataError: it holds half a character (a lone surrogate).
    """
    ids: list[int] = []
    run = ""
    for text, own in words.parts if isinstance(words, Words) else ((words, False),):
        for number, part in enumerate(_controls(tokenizer).pattern.split(text) if own else (text,)):
            if number % 2:
                ids += [*_as_characters(tokenizer, run, subject), tokenizer.convert_tokens_to_ids(part.strip() or part)]
                run = ""
            else:
                run += part
    return ids + _as_characters(tokenizer, run, subject)


@dataclass(frozen=True)
class _Controls:
    pattern: re.Pattern[str]
    ids: frozenset[int]


@lru_cache(maxsize=8)
def _controls(tokenizer: Any) -> _Controls:
    """The control tokens of a tokenizer: what finds them in a text, and their ids."""
    template = getattr(tokenizer, "chat_template", None)
    template = template if isinstance(template, str) else str(template or "")
    found = {}
    for token_id, token in tokenizer.added_tokens_decoder.items():
        written = token.content in template and token.content not in THINKING_TAGS and not token.content.isspace()
        if (token.special or written) and not _BYTE.fullmatch(token.content):
            found[token_id] = token
    spelt = []
    for token in sorted(found.values(), key=lambda token: -len(token.content)):
        before, after = r"\s*" if token.lstrip else "", r"\s*" if token.rstrip else ""
        spelt.append(before + re.escape(token.content) + after)
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    ids = {*found, *tokenizer.all_special_ids} - ({tokenizer.unk_token_id} - ends)
    return _Controls(re.compile(f"({'|'.join(spelt) or '(?!)'})"), frozenset(ids))


def _as_characters(tokenizer: Any, text: str, subject: str) -> list[int]:
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
    controls = _controls(tokenizer)
    named = controls.pattern.search(text) is not None
    # Without its tokens split, a slow tokenizer would lose added tokens that are mere words.
    ids = _encode(tokenizer, text, split=named or getattr(tokenizer, "is_fast", False))
    if not named or controls.ids.isdisjoint(ids):
        return ids
    ids = []  # its vocabulary, or tokens that count as words, have the whole name: it is broken in two
    for number, part in enumerate(controls.pattern.split(text)):
        for piece in (part[:1], part[1:]) if number % 2 else (part,):
            ids += _encode(tokenizer, piece, split=True) if piece else []
    unknown = [] if tokenizer.unk_token_id is None else [tokenizer.unk_token_id]
    return [kept for token in ids for kept in (unknown if token in controls.ids else [token])]


def _encode(tokenizer: Any, text: str, *, split: bool) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=split))
