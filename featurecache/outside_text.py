"""Text that came from outside, made fit to show: ids, labels, subtitles, answers, file names, messages of libraries.

    printable     terminals and plain text: no control code, no direction override, no lone surrogate
    one_line      the same in one line, for messages
    html_text     HTML: element content and quoted attributes
    script_json   a JSON document inside a <script> element
    markdown_text Markdown, in one line, without any of its marks
    figure_text   drawings of matplotlib, without formulas
    json_text     JSON, in one line
    file_name     a name that a file can have

Everything that either package shows goes through one of these (`console` for terminals). This module imports the
standard library alone: exported models carry it.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from reprlib import Repr
from typing import Any
from urllib.parse import quote

_LINE_BREAKS = re.compile("[\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029]+")
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control codes but for tab and line feed, other line breaks, direction overrides, lone surrogates."""
_JSON_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_MARKDOWN_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+\-!|~$&])")

MAX_FILE_NAME = 200
"""Bytes; disks allow 255, and temporary files and lock files get a longer name."""

_REPR = Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = 80


def printable(text: object) -> str:
    """Return `str(text)` with what a terminal would act upon, or could not encode, as escapes such as \\x1b."""
    return _UNSAFE.sub(_escape, str(text))


def one_line(text: object) -> str:
    """Return `printable(text)` with a space for every run of tabs and line breaks."""
    return printable(_LINE_BREAKS.sub(" ", str(text)))


def shown(value: Any) -> str:
    """Return a value as Python writes it, for messages: shortened, however long or deep it is."""
    return _REPR.repr(value)


def html_text(text: object) -> str:
    """Return text for HTML; quotes are escaped too, so it may stand in a quoted attribute."""
    return html.escape(printable(text), quote=True)


def script_json(document: Any) -> str:
    """Return JSON that cannot end, or open, anything in the HTML around it."""
    text = json_text(document)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def file_name(text: str, ending: str) -> str:
    """Return a file name of text and an ending: separators and control codes as %XX, and of a long one the beginning
    and a hash, so that different texts get different names.
    """
    quoted = quote(text, safe=" ")
    if len(quoted) + len(ending) > MAX_FILE_NAME:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        quoted = f"{quoted[: MAX_FILE_NAME - len(ending) - 17]}-{digest}"
    return quoted + ending


def markdown_text(text: object) -> str:
    """Return text in one line that Markdown shows as it is."""
    return _MARKDOWN_MARKS.sub(r"\\\1", one_line(text))


def figure_text(text: object) -> str:
    """Return text in one line for a drawing of matplotlib, where `$` would begin a formula."""
    return one_line(text).replace("$", r"\$")


def json_text(value: Any, **layout: Any) -> str:
    """Return a value as JSON that is always one line, UTF-8 and what every reader of JSON takes back.

    Other line breaks and lone surrogates (file names that are not UTF-8) are escaped; a number that is not finite,
    which JSON does not have, is null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, **layout)
    return _JSON_UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
