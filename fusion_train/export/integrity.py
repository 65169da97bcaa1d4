"""Whether an exported folder is the one that its certificate is about, file by file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurecache.hashing import file_sha256
from fusion_train.errors import ExportError
from fusion_train.export.certificate import JSON_NAME, PAGE_NAME


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 by name of every file but the certificate, and what a hub adds (`.gitattributes`)."""
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())
            if path.is_file() and path.name not in (JSON_NAME, PAGE_NAME) and path.name[0] != "."}  # fmt: skip


def read_certificate(out: Path) -> dict[str, Any]:
    """Read an exported folder's certificate.

    Raises:
        ExportError: there is none.
    """
    try:
        certificate = json.loads((out / JSON_NAME).read_text(encoding="utf-8"))
        return {"files": certificate["files"], **certificate}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            str(out), expected=f"an exported folder with {JSON_NAME}", got=_said(error),
            next_step="Write one with python tools/export_e2e.py --run RUN --out DIR.",
        ) from error  # fmt: skip


def refuse_changed_files(out: Path, certificate: Mapping[str, Any]) -> None:
    """Raise ExportError where files are not those that the certificate is about."""
    now, then = file_hashes(out), certificate["files"]
    problems = [f"missing: {name}" for name in then if name not in now]
    problems += [f"changed: {name}" for name in then if name in now and now[name] != then[name]]
    problems += [f"new: {name}" for name in now if name not in then]
    if problems:
        raise ExportError(str(out), expected="the files that its certificate is about",
                          got=f"{len(problems)} that differ", next_step="Export the run again.",
                          problems=problems)  # fmt: skip


def _said(error: Exception) -> str:
    return "none" if isinstance(error, FileNotFoundError | NotADirectoryError) else str(error)
