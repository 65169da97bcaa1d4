"""Whether an exported folder is the one that its certificate is about, file by file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from featurecache.files.hashing import file_sha256
from fusion_train.documents import read_document
from fusion_train.errors import ExportError
from fusion_train.remote.configuration_emotion_llama import CERTIFICATE

PAGE_NAME = "CERTIFICATE.md"
WRITE_ONE = "Write one with python tools/export_e2e.py --run RUN --out DIR."


class _CertifiedRun(TypedDict):
    name: str
    step: int


class _Certificate(TypedDict):
    """What is read of a certificate; it holds more."""

    passed: bool
    files: dict[str, str]
    run: _CertifiedRun
    where: dict[str, Any]
    split: str
    asked: int
    dtype: Literal["float32", "float16", "bfloat16"]
    figures: list[dict[str, Any]]


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 by name of every file but the certificate, and what a hub adds (`.gitattributes`)."""
    return {
        path.name: file_sha256(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (CERTIFICATE, PAGE_NAME) and path.name[0] != "."
    }


def read_certificate(out: Path) -> dict[str, Any]:
    """Read an exported folder's certificate.

    Raises:
        ExportError: there is none, it is damaged, or it lacks what a certificate says.
    """
    if not (out / CERTIFICATE).is_file():
        raise ExportError(str(out), expected=f"an exported folder with {CERTIFICATE}", got="none", next_step=WRITE_ONE)
    document = read_document(out / CERTIFICATE, ExportError, "the certificate of an exported folder", WRITE_ONE)
    try:
        TypeAdapter(_Certificate).validate_python(document)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ExportError(
            str(out / CERTIFICATE),
            expected="the certificate of an exported folder",
            got="other keys or values",
            next_step=WRITE_ONE,
            problems=problems,
        ) from error
    return document


def refuse_changed_files(out: Path, certificate: Mapping[str, Any]) -> None:
    """Raise ExportError where files are not those that the certificate is about."""
    now, then = file_hashes(out), certificate["files"]
    problems = [f"missing: {name}" for name in then if name not in now]
    problems += [f"changed: {name}" for name in then if name in now and now[name] != then[name]]
    problems += [f"new: {name}" for name in now if name not in then]
    if problems:
        raise ExportError(
            str(out),
            expected="the files that its certificate is about",
            got=f"{len(problems)} that differ",
            next_step="Export the run again.",
            problems=problems,
        )
