"""Ctrl-C, SIGTERM and SIGHUP as a request to stop at the next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks for a stop: Ctrl-C, a scheduler, a terminal that is closed."""


class Interrupted(Exception):  # noqa: N818 -- not an error: what was asked for can be resumed
    """Stopped on request at a safe point; the message says how to go on."""

    kept = 0
    """Clips that an extraction had finished and has kept."""


class StopRequest:
    """While entered, the first signal sets `requested`; a second SIGINT or SIGTERM acts as it did before.

    A second SIGHUP does nothing: shell and kernel both send one when a terminal is closed.
    """

    def __init__(self, also: Callable[[], bool] = lambda: False) -> None:
        """Take a request from `also` too: what another thread or process was told."""
        self._signalled, self._also = False, also
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self._signalled or self._also()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            # One that is ignored stays so: `nohup` and jobs in the background ask for that.
            chosen = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._request) for number in chosen}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        if number != signal.SIGHUP:
            self._restore(but=signal.SIGHUP)

    def _restore(self, but: int | None = None) -> None:
        for number in [number for number in self._before if number != but]:
            signal.signal(number, self._before.pop(number))
