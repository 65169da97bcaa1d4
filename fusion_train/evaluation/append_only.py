"""JSON Lines files that are only appended to: each batch of rows is on the disk before the next batch is computed.

A killed process leaves whole lines and at most one incomplete line at the end; the next process cuts that line off
before it appends. One process writes a file at a time (`sole_writer`). Scores are computed from these files, so each
line carries a checksum (`line_checksum`) that is verified when the file is read. Lines of other systems and of earlier
releases have no checksum. This module does not know what the rows mean.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from featurecache.files.jsonl import dump_lines, parse_object, require_objects
from featurecache.files.lease import beside, sole_writer
from featurecache.files.publish import make_folder, replace_bytes, sync_folder, writing
from featurecache.machine import sync
from featurecache.outside_text import json_text
from fusion_train.errors import DataError
from fusion_train.metric_lines import CHECKSUM, line_checksum

SHOWN_CHARACTERS = 100
"""Length to which a damaged line is cut in an error message."""


class AppendedLines:
    """An open JSON Lines file that rows are appended to; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            WriteError: another process is writing the file.
        """
        self.path = path
        self._incomplete_line_removed = False
        with ExitStack() as lock:
            lock.enter_context(sole_writer(beside(path), path))
            with writing(path):
                make_folder(Path(os.path.realpath(path)).parent)
                self._open()
            self._lock = lock.pop_all()

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows; they are on the disk when this returns. If the disk is full, the file stays as it was."""
        data = sealed_lines(rows) if self._is_regular else dump_lines(rows)
        with writing(self.path):
            if self._is_regular and not self._incomplete_line_removed:
                os.ftruncate(self._fd, self.path.read_bytes().rfind(b"\n") + 1)
            self._incomplete_line_removed = True
            size_before = os.fstat(self._fd).st_size
            try:
                remaining = memoryview(data)
                while remaining:
                    remaining = remaining[os.write(self._fd, remaining) :]
                if self._is_regular:
                    sync(self._fd)
            except OSError:
                if self._is_regular:
                    os.ftruncate(self._fd, size_before)  # an incomplete line must not be read as a row
                raise

    def rewrite(self, rows: Iterable[dict[str, Any]]) -> None:
        """Replace the whole file with these rows."""
        replace_bytes(self.path, sealed_lines(rows))
        os.close(self._fd)
        with writing(self.path):
            self._open()

    def _open(self) -> None:
        # A pipe is opened for writing only: this waits for a reader, and bytes written before one exists are lost.
        access = os.O_WRONLY if self.path.is_fifo() else os.O_RDWR | os.O_CREAT
        self._fd = os.open(self.path, access | os.O_APPEND | os.O_CLOEXEC, 0o666)
        # False for a pipe or a device such as /dev/stdout, which can be neither truncated nor synced.
        self._is_regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        if self._is_regular:
            sync_folder(self.path.parent)

    def __enter__(self) -> AppendedLines:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)
        self._lock.close()


def sealed_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as the lines of a file, each with its checksum."""
    unsealed = ({key: value for key, value in row.items() if key != CHECKSUM} for row in rows)
    # The checksum is of the row as a reader sees it: numbers that are not finite are written as null.
    as_read = (parse_object(line) for line in dump_lines(unsealed).splitlines())
    return dump_lines({**row, CHECKSUM: line_checksum(row)} for row in as_read)


def read_lines(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    """Read the rows of a file without their checksums; an absent file has no rows.

    Args:
        torn: whether to ignore bytes after the last line break, which a killed process may leave.

    Raises:
        DataError: lines that are not JSON objects, or that contradict their checksum; all are listed.
    """
    rows = require_objects(path, DataError, torn=torn) if path.is_file() else []
    damaged = [row for row in rows if not take_checksum(row)]
    if damaged:
        raise DataError(
            str(path),
            expected="lines that agree with their checksum",
            got=f"{len(damaged)} of {len(rows)} that were changed since they were written",
            next_step="Take the file from a copy, or delete these lines and run the command that wrote them again. "
            f"Changed on purpose? Take {CHECKSUM} out of them.",
            problems=[json_text(row)[:SHOWN_CHARACTERS] for row in damaged],
        )
    return rows


def take_checksum(row: dict[str, Any]) -> bool:
    """Remove the checksum from a row; return False if the row contradicts it, True if it agrees or has none."""
    written = row.pop(CHECKSUM, None)
    try:
        return written is None or written == line_checksum(row)
    except ValueError:  # NaN, which `sealed_lines` never writes
        return False
