"""Ctrl-C and SIGTERM as a request to stop at the next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):  # noqa: N818 -- not an error: what was asked for can be resumed
    """Stopped on request at a safe point; the message says how to go on."""


class StopRequest:
    """While entered, the first signal sets `requested`; a second one acts as it did before."""

    def __init__(self, also: Callable[[], bool] = lambda: False) -> None:
        """Take a request from `also` too: what another thread or process was told."""
        self._signalled, self._also = False, also
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self._signalled or self._also()

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
