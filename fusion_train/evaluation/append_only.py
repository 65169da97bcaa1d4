"""JSON lines that are only ever appended: each batch is on the disk before the next one is asked for.

A process that is killed leaves whole lines and at most one torn one at the end, which the next one cuts off before it
adds to them. One process writes a file at a time (`sole_writer`). Scores are formed from these lines, so each carries a
checksum (`line_checksum`) that is compared when it is read; lines of other systems and of earlier releases have none.
This module knows nothing else of what the lines say.
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
from featurecache.files.line_checksum import CHECKSUM, line_checksum
from featurecache.files.publish import make_folder, replace_bytes, sync_folder, writing
from featurecache.machine import sync
from featurecache.outside_text import json_text
from fusion_train.errors import DataError

SHOWN = 100
"""Characters of a damaged line that are shown."""


class AppendedLines:
    """One file, held open; use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open or create it; raises WriteError where another process is writing it."""
        self.path, self._whole = path, False
        with ExitStack() as held:
            held.enter_context(sole_writer(beside(path), path))
            with writing(path):
                make_folder(Path(os.path.realpath(path)).parent)
                self._open()
            self._held = held.pop_all()

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add rows; they are on the disk when this returns. Where the disk is full, the file is left as it was."""
        data = sealed_lines(rows) if self._kept else dump_lines(rows)
        with writing(self.path):
            if self._kept and not self._whole:
                os.ftruncate(self._fd, self.path.read_bytes().rfind(b"\n") + 1)
            self._whole = True
            before = os.fstat(self._fd).st_size
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(self._fd, view) :]
                if self._kept:
                    sync(self._fd)
            except OSError:
                if self._kept:
                    os.ftruncate(self._fd, before)  # half a line is no answer
                raise

    def rewrite(self, rows: Iterable[dict[str, Any]]) -> None:
        """Publish these rows in place of all that are there."""
        replace_bytes(self.path, sealed_lines(rows))
        os.close(self._fd)
        with writing(self.path):
            self._open()

    def _open(self) -> None:
        # A pipe is opened to write only, which waits for its reader: what is written before would be lost.
        access = os.O_WRONLY if self.path.is_fifo() else os.O_RDWR | os.O_CREAT
        self._fd = os.open(self.path, access | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._kept = stat.S_ISREG(os.fstat(self._fd).st_mode)  # otherwise a pipe or device, such as /dev/stdout
        if self._kept:
            sync_folder(self.path.parent)

    def __enter__(self) -> AppendedLines:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)
        self._held.close()


def sealed_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return objects as the lines of a file, each with its checksum."""
    bare = ({key: value for key, value in row.items() if key != CHECKSUM} for row in rows)
    read_back = (parse_object(line) for line in dump_lines(bare).splitlines())  # numbers that are not finite are null
    return dump_lines({**row, CHECKSUM: line_checksum(row)} for row in read_back)


def read_lines(path: Path, *, torn: bool = False) -> list[dict[str, Any]]:
    """The objects of a JSONL file, without their checksums; none where there is no file.

    Args:
        torn: whether what follows the last line break was not written whole, and does not count.

    Raises:
        DataError: a line that is no JSON object, or that contradicts its checksum; every one is named.
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
            problems=[json_text(row)[:SHOWN] for row in damaged],
        )
    return rows


def take_checksum(row: dict[str, Any]) -> bool:
    """Take the checksum out of a row, where it has one; False where the row contradicts it."""
    written = row.pop(CHECKSUM, None)
    try:
        return written is None or written == line_checksum(row)
    except ValueError:  # NaN, which is never written
        return False
