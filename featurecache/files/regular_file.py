"""Open regular files only. A pipe or a device could deliver bytes forever.

This module imports only the standard library and no Unix-only module: exported models carry it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotAFileError(OSError):
    """A path names a folder, a pipe or a device; the message says which."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        NotAFileError: the path names a folder, a pipe or a device.
        OSError: the file cannot be opened.
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
