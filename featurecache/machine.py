"""Cores, memory and system calls of this machine, on Linux and macOS.

A call that only improves speed does nothing on a system that lacks it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
from collections.abc import Sequence

import numpy as np

DEFAULT_MAX_BUFFERS = 16  # the minimum that POSIX guarantees


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the size of this machine's memory."""
    return mmap.PAGESIZE * os.sysconf("SC_PHYS_PAGES")


def free_memory_bytes() -> int:
    """Return the size of unused memory. Systems without SC_AVPHYS_PAGES need psutil (extra `train`)."""
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return mmap.PAGESIZE * os.sysconf("SC_AVPHYS_PAGES")
    import psutil

    return int(psutil.virtual_memory().available)


def max_buffers() -> int:
    """Return how many buffers one call of `read_into` may fill."""
    limit = os.sysconf("SC_IOV_MAX") if "SC_IOV_MAX" in os.sysconf_names else -1
    return limit if limit > 0 else DEFAULT_MAX_BUFFERS


def advise_in_order(fd: int) -> None:
    """Tell the kernel that a file is read from beginning to end."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)


def sync(fd: int) -> None:
    """Put the written bytes of a file on the disk. On macOS, fsync leaves them in the cache of the drive."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # a file system without this call
            fcntl.fcntl(fd, full)
            return
    os.fsync(fd)


def read_into(fd: int, targets: Sequence[np.ndarray], offset: int, flags: int) -> int:
    """Fill consecutive `targets`, each (n,) uint8, from `offset` of a file; return the number of bytes read.

    Fewer bytes than requested may be read. `flags` are those of preadv; pass 0 on systems without preadv.
    """
    if hasattr(os, "preadv"):
        return os.preadv(fd, [target.data for target in targets], offset, flags)
    num_bytes = 0
    for target in targets:
        data = os.pread(fd, target.size, offset + num_bytes)
        target[: len(data)] = np.frombuffer(data, np.uint8)
        num_bytes += len(data)
        if len(data) < target.size:
            break
    return num_bytes


def anonymous_file() -> int:
    """Return the descriptor of a file without a name, in memory where the system can; its last closing removes it."""
    if hasattr(os, "memfd_create"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            return os.memfd_create("featurecache")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def command_line_of_parent() -> list[str]:
    """Return the command line of the parent process, empty if the system does not reveal it; needs psutil."""
    import psutil

    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent else []
    except psutil.Error:
        return []
