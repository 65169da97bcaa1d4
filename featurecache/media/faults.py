"""Who is at fault where decoding raises: the file, the machine, or the program.

Only what a file is to blame for becomes the record of a clip. A machine that has run out of file descriptors, or lost
its file server, would fail every clip that follows; so would a wrong call. This module knows no decoder.
"""

from __future__ import annotations

import errno

MACHINE = frozenset(
    {
        errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT,
        errno.ESTALE, errno.ENOTCONN, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH,
    }
)  # fmt: skip
"""Errors of the system that say nothing about the file that was being read."""


def machine_at_fault(error: OSError) -> bool:
    """Whether an error of the system would have met any other file too."""
    return error.errno in MACHINE


def raised_here(error: BaseException) -> bool:
    """Whether this package raised the error, or called a library wrongly; False where a library itself raised it."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    innermost = str(trace.tb_frame.f_globals.get("__name__", ""))
    return innermost.partition(".")[0] == __name__.partition(".")[0]
