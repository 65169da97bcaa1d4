"""Cores, memory and system calls of this machine, portably: Linux has some that macOS lacks.

Where a system lacks a call that only makes things faster, nothing happens instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Sequence

import numpy as np

DEFAULT_MAX_BUFFERS = 16  # what POSIX promises at least


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory that this machine has."""
    return mmap.PAGESIZE * os.sysconf("SC_PHYS_PAGES")


def free_memory_bytes() -> int:
    """Memory that nothing uses now; needs psutil, from the extra `train`, where the system does not tell it."""
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return mmap.PAGESIZE * os.sysconf("SC_AVPHYS_PAGES")
    import psutil

    return int(psutil.virtual_memory().available)


def max_buffers() -> int:
    """How many buffers one `read_into` may fill."""
    limit = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else -1
    return limit if limit > 0 else DEFAULT_MAX_BUFFERS


def advise_in_order(fd: int) -> None:
    """Say that a file is read from its beginning to its end."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def sync(fd: int) -> None:
    """Put what was written on the disk; on macOS, fsync alone leaves it in the disk's own memory."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # a file system that cannot
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def read_into(fd: int, targets: Sequence[np.ndarray], offset: int, flags: int) -> int:
    """Fill `targets`, each (n,) uint8, from one place of a file; returns how many bytes were read, which may be fewer.

    `flags` of preadv, 0 where the system has none.
    """
    if hasattr(os, "preadv"):
        return os.preadv(fd, targets, offset, flags)
    num_bytes = 0
    for target in targets:
        data = os.pread(fd, target.size, offset + num_bytes)
        target[: len(data)] = np.frombuffer(data, np.uint8)
        num_bytes += len(data)
        if len(data) < target.size:
            break
    return num_bytes


def command_line_of_parent() -> list[str]:
    """Words of the command that started this process, where the system tells them; needs psutil."""
    import psutil

    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent else []
    except psutil.Error:
        return []
