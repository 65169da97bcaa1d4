"""Open files of bytes, and nothing that could be read for ever: no pipe, no device, no folder."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotAFileError(OSError):
    """What a path names has no bytes of its own; the text says what it is."""


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading if it is one of bytes on a disk.

    Raises:
        NotAFileError: it is a folder, a pipe or a device, which could be read for ever.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise NotAFileError(errno.EINVAL, "a folder" if stat.S_ISDIR(mode) else "a pipe or a device")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise
