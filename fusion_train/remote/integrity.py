"""Check that the files of an exported folder are those of its certificate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from featurecache.files.hashing import file_sha256
from fusion_train.documents import read_document, validate_document
from fusion_train.errors import ExportError
from fusion_train.remote.configuration_emotion_llama import CERTIFICATE

PAGE_NAME = "CERTIFICATE.md"
WRITE_ONE = "Write one with fusion-train export --run RUN --out DIR."


class _CertifiedRun(TypedDict):
    name: str
    step: int


class _Certificate(TypedDict):
    """The keys of a certificate that are read; it has more."""

    passed: bool
    files: dict[str, str]
    run: _CertifiedRun
    where: dict[str, Any]
    split: str
    asked: int
    dtype: Literal["float32", "float16", "bfloat16"]
    figures: list[dict[str, Any]]


def file_hashes(folder: Path) -> dict[str, str]:
    """Return name -> sha256 of every file, without the certificate and hidden files such as `.gitattributes`."""
    return {
        path.name: file_sha256(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name not in (CERTIFICATE, PAGE_NAME) and path.name[0] != "."
    }


def read_certificate(out: Path) -> dict[str, Any]:
    """Read the certificate of an exported folder.

    Raises:
        ExportError: there is no certificate, it is damaged, or keys are missing or wrong.
    """
    if not (out / CERTIFICATE).is_file():
        raise ExportError(str(out), expected=f"an exported folder with {CERTIFICATE}", got="none", next_step=WRITE_ONE)
    path, expected = out / CERTIFICATE, "the certificate of an exported folder"
    document = read_document(path, ExportError, expected, WRITE_ONE)
    validate_document(document, _Certificate, path, ExportError, expected, WRITE_ONE)
    return document


def refuse_changed_files(out: Path, certificate: Mapping[str, Any]) -> None:
    """Raise ExportError if the files differ from those of the certificate; all differences are listed."""
    current, certified = file_hashes(out), certificate["files"]
    problems = [f"missing: {name}" for name in certified if name not in current]
    problems += [f"changed: {name}" for name in certified if name in current and current[name] != certified[name]]
    problems += [f"new: {name}" for name in current if name not in certified]
    if problems:
        raise ExportError(
            str(out),
            expected="the files of its certificate",
            got=f"{len(problems)} that differ",
            next_step="Export the run again.",
            problems=problems,
        )
