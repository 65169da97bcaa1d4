"""JSON documents of runs and exports: strict JSON with a checksum of its own content.

    {"checksum": "9f86d081…", "step": 4, …}     sha256 of the canonical JSON of all other keys

A document with a flipped bit, an edit by hand or a missing end is refused when it is read. A document without a
checksum
is accepted: earlier releases wrote none, and a user who edits a document on purpose deletes that line. NaN and infinity
are not JSON; they are written as null.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from featurecache.errors import FeatureCacheError
from featurecache.files.jsonl import parse_object
from featurecache.files.publish import replace_bytes
from featurecache.outside_text import json_text
from featurecache.spec import canonical_json

CHECKSUM = "checksum"
Schema = TypeVar("Schema")
MAX_QUOTED = 200
"""Characters of a parser's message in an error."""


def document_bytes(values: Mapping[str, Any]) -> bytes:
    """Return the file content of a document, with its checksum."""
    plain = json.loads(json_text(values))  # tuples, numeric keys and NaN in the form in which they will be read
    plain.pop(CHECKSUM, None)
    return (json_text({CHECKSUM: checksum(plain), **plain}, indent=2) + "\n").encode()


def write_document(path: Path, values: Mapping[str, Any]) -> None:
    """Publish a document, replacing the file.

    Raises:
        WriteError: the disk is full or refuses.
    """
    replace_bytes(path, document_bytes(values))


def read_document(
    path: Path, error: type[FeatureCacheError], expected: str, next_step: str | None = None
) -> dict[str, Any]:
    """Read a document, verify its checksum, and return its other keys.

    Args:
        error: class of the exception; `expected` and `next_step` become part of its message.

    Raises:
        FeatureCacheError: of class `error`: a missing file, no JSON object, or changed content.
    """
    try:
        values = parse_object(path.read_bytes())
    except FileNotFoundError:
        raise error(str(path), expected=expected, got="no such file", next_step=next_step) from None
    except (OSError, ValueError) as problem:
        got = "damaged: " + " ".join(str(problem).split())[:MAX_QUOTED]
        raise error(str(path), expected=expected, got=got, next_step=next_step) from problem
    written = values.pop(CHECKSUM, None)
    if written is not None and not _agrees(values, written):
        advice = f'If the edit was intended, delete its line "{CHECKSUM}".'
        raise error(
            str(path),
            expected=f"{expected}, as it was written",
            got="other content: edited or damaged",
            next_step=f"{next_step or 'Take the file from a copy.'} {advice}",
        )
    return values


def validate_document(
    values: Mapping[str, Any],
    schema: type[Schema],
    path: Path,
    error: type[FeatureCacheError],
    expected: str,
    next_step: str | None = None,
) -> Schema:
    """Return the values of a document as its typed schema, a dataclass or TypedDict; arguments as in `read_document`.

    Raises:
        FeatureCacheError: of class `error`: missing or unknown keys, or values of another type; all are listed.
    """
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as problem:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in problem.errors()]
        raise error(
            str(path), expected=expected, got="other keys or values", next_step=next_step, problems=problems
        ) from problem


def _agrees(values: Any, written: Any) -> bool:
    try:
        return bool(checksum(values) == written)
    except ValueError:  # NaN, which `write_document` never writes
        return False


def checksum(values: Any) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(values).encode("utf-8", "surrogatepass")).hexdigest()
