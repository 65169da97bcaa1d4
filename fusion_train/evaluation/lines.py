"""JSON lines that are only ever appended: each batch is on the disk before the next one is asked for.

A process that is killed leaves whole lines and at most one torn one at the end, which the next one cuts off. A lock
(flock) keeps two processes from writing one file. This module knows nothing of what the lines say.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featurecache.errors import WriteError
from featurecache.store.publish import make_folder, sync_folder, writing
from fusion_train.errors import DataError


class AppendedLines:
    """One file, held open; use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open or create it; raises WriteError where another process is writing it."""
        self.path = path
        with writing(path):
            make_folder(path.parent)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            sync_folder(path.parent)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._fd)
                raise WriteError(
                    str(path), expected="one process to write it", got="another one that is at work",
                    next_step="Wait for it, or name another file with --out.",
                ) from None  # fmt: skip
            whole = path.read_bytes().rfind(b"\n") + 1
            os.ftruncate(self._fd, whole)

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows; they are on the disk when this returns."""
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        with writing(self.path):
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
            os.fsync(self._fd)

    def __enter__(self) -> AppendedLines:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


def read_lines(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSONL file; none where there is no file.

    Args:
        torn: whether what follows the last line break was not written whole, and does not count.

    Raises:
        DataError: a line that is no JSON object; every one is named.
    """
    if not path.is_file():
        return []
    rows, problems = [], []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1] if torn else lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            problems.append(f"line {number}: expected an object, got {type(row).__name__}")
    if problems:
        raise DataError(
            str(path), expected="one JSON object a line", got=f"{len(problems)} other lines", problems=problems
        )
    return rows
