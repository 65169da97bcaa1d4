"""Decide whether a word of a free text is negated by "not", "no", "never", "并非" or the like before it in its clause.

A clause ends at punctuation and at words that begin another clause ("but", "and", "thus", 但, 而, 也). An even number
of negations in a clause cancels out ("never not positive"). Phrases that only look like negations do not count ("not
only", "no wonder", 非常, 不仅). A negation after the word ("positive is wrong") is not recognised.
"""

from __future__ import annotations

import re

_OPEN, _CLOSE = "(?<![a-z])", "(?![a-z])"
"""Boundaries of an English word; a Chinese character beside it is also a boundary."""


def _words(*alternatives: str) -> str:
    """Return a pattern of whole English words."""
    return f"{_OPEN}(?:{'|'.join(alternatives)}){_CLOSE}"


_LOOKALIKES = re.compile(
    "|".join(
        (
            _words(
                r"not\s+(?:only|just|merely|simply|solely|exclusively|alone|surprisingly|to\s+mention)",
                r"or\s+not",
                r"no\s+(?:wonder|surprise|question|less)",
                r"without\s+(?:question|exception)",
                r"never-\w+",
                r"no-\w+",
                r"(?:nothing|none)\s+but",
                r"not\s+least",
                r"if\s+nothing\s+else",
            ),
            "非常|不[仅僅但只光单單止错錯断斷管论論禁同少愧失已]|不由得|不可否[认認]|了不起|忍不住|[没沒](?:[错錯]|想到)",
            "未[来來]|[无無][论論疑比限]|毫[无無]疑[问問]|除非|莫非|是非",
        )
    )
)
_EXCLUDING = re.compile(_words(r"anything\s+but"))
_CLAUSE_ENDS = re.compile(
    "|".join(
        (
            r"[.!?;:,()\[\]\n。！？；：，、（）]|\s[-–—]+\s|[–—]+",
            _words(
                "but",
                "and",
                "thus",
                "hence",
                "therefore",
                "however",
                "although",
                "though",
                "while",
                "whereas",
                "because",
            ),
            "(?=" + _words("nor", r"rather\s+than", r"instead\s+of", r"(?:as\s+)?opposed\s+to") + ")",
            "不[过過]|但是?|然而|反而|而是?|却|卻|也|亦|又|且|因此|所以",
        )
    )
)
_NEGATIONS = re.compile(
    "|".join(
        (
            _words(
                "not?",
                "never",
                "neither",
                "nor",
                "none",
                "nothing",
                "nobody",
                "cannot",
                "without",
                "hardly",
                "barely",
                "scarcely",
                "rarely",
                "seldom",
                "unlikely",
                "doubt(?:s|ed|ful)?",
                "lack(?:s|ed|ing)?",
                "absence",
                r"far\s+from",
                r"fail(?:s|ed)?\s+to",
                r"rather\s+than",
                r"instead\s+of",
                r"opposed\s+to",
                r"free\s+(?:of|from)",
                "(?:is|are|was|were|do|does|did|has|have|had|wo|would|ca|could|should|must|need|ai)\\s?n['’`´]?t",
            ),
            _OPEN + "non[- ]?$",
            "[并並][不非未无無没沒]是?有?|不再?是?|[没沒]有?|[绝絕]?非|[从從]?未必?|毫?[无無]|缺乏|[难難]以",
        )
    )
)
_SENTENCE_ENDS = re.compile(r"[.!?;\n。！？；]")


def is_negated(text: str, start: int) -> bool:
    """Return whether the text before `start` negates the word that begins there."""
    before = _EXCLUDING.sub(" not ", _LOOKALIKES.sub(" ", text[:start].lower()))
    clause = before[_clause_start(before, text[start:].lower()) :]
    return len(_NEGATIONS.findall(clause)) % 2 == 1


def _clause_start(before: str, after: str) -> int:
    """Return the start of the last clause of `before`; "neither a, b nor c" is one clause in spite of its commas."""
    start = max((match.end() for match in _CLAUSE_ENDS.finditer(before)), default=0)
    neither = before.rfind("neither")
    if neither < 0 or _SENTENCE_ENDS.search(before, neither) or re.search(_words("nor"), before[neither:]):
        return start
    ahead = _SENTENCE_ENDS.split(after, maxsplit=1)[0]
    return min(start, neither) if re.search(_words("nor"), ahead) else start
