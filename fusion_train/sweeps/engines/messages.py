"""What a worker process and its driver say to each other over a socket, pickled; both are of this installation.

driver -> worker    Start, then Groups one at a time, STOP at any time; the end of the stream ends the worker
worker -> driver    the Room there is, or Refused in its place; Said at any time; one Answer a group
"""

from __future__ import annotations

from dataclasses import dataclass

from fusion_train.sweeps.work import Work

STOP = "stop"


@dataclass(frozen=True)
class Start:
    work: Work
    device: str


@dataclass(frozen=True)
class Refused:
    """The worker cannot use its device."""

    reason: str


@dataclass(frozen=True)
class Said:
    """A line for the user."""

    line: str
