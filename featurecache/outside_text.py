"""Escape text from outside before it is shown: ids, labels, subtitles, answers, file names, messages of libraries.

    printable     terminals and plain text: no control code, no direction override, no lone surrogate
    one_line      like printable, in one line, for messages
    first_ids     the first of many ids, in one line
    html_text     HTML: element content and quoted attributes
    script_json   a JSON document inside a <script> element
    markdown_text Markdown, in one line, with its marks escaped
    figure_text   figures of matplotlib, without formulas
    json_text     JSON, in one line
    file_name     a valid file name

All output of the two packages goes through one of these functions (`console` for terminals). This module imports only
the standard library: exported models carry it.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Collection
from reprlib import Repr
from typing import Any
from urllib.parse import quote

_LINE_BREAKS = re.compile("[\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029]+")
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control codes except tab and line feed, other line breaks, direction overrides, lone surrogates."""
_JSON_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MARKDOWN_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+\-!|~$&])")

MAX_FILE_NAME = 200
"""In bytes. File systems allow 255, and the names of temporary files and lock files are longer."""

_REPR = Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 80


def printable(text: object) -> str:
    """Return `str(text)` with escapes such as \\x1b for codes that a terminal would execute or could not encode."""
    return _UNSAFE.sub(_escape, str(text))


def one_line(text: object) -> str:
    """Return `printable(text)` with a space for every run of tabs and line breaks."""
    return printable(_LINE_BREAKS.sub(" ", str(text)))


def shown(value: Any) -> str:
    """Return the shortened repr of a value, for messages."""
    return _REPR.repr(value)


def first_ids(ids: Collection[str], count: int = 3) -> str:
    """Return the first ids on one line, and "…" where there are more; for summaries of many clips."""
    return ", ".join(map(one_line, list(ids)[:count])) + (", …" if len(ids) > count else "")


def html_text(text: object) -> str:
    """Return text escaped for HTML, also for quoted attributes."""
    return html.escape(printable(text), quote=True)


def script_json(document: Any) -> str:
    """Return JSON that cannot close or open an HTML element around it."""
    text = json_text(document)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def file_name(text: str, ending: str) -> str:
    """Return a file name made of a text and an ending; different texts get different names.

    Separators and control codes become %XX. A long name is cut and ends in a hash of the text.
    """
    quoted = quote(text, safe=" ")
    if len(quoted) + len(ending) > MAX_FILE_NAME:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        quoted = f"{quoted[: MAX_FILE_NAME - len(ending) - 17]}-{digest}"
    return quoted + ending


def markdown_text(text: object) -> str:
    """Return text in one line that Markdown shows unchanged."""
    return _MARKDOWN_MARKS.sub(r"\\\1", one_line(text))


def figure_text(text: object) -> str:
    """Return text in one line for a figure of matplotlib, where a plain `$` would begin a formula."""
    return one_line(text).replace("$", r"\$")


def json_text(value: Any, **layout: Any) -> str:
    """Return a value as JSON that is one line, encodable as UTF-8 and readable by every JSON parser.

    Unicode line breaks and lone surrogates (from file names that are not UTF-8) are escaped. NaN and infinity, which
    JSON does not have, become null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, **layout)
    return _JSON_UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _finite(value: Any) -> Any:
    """Return a value with None in place of every NaN and infinity."""
    if isinstance(value, float):
        return value if value - value == 0 else None  # inf - inf and nan - nan are NaN
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
