"""Ctrl-C, SIGTERM and SIGHUP (a closed terminal): a request to stop at the next safe point, or the end of a command.

A long loop takes the first signal as a request (`StopRequest`). Everything else of a command ends by `Ended`, which
runs every clean-up on its way (`ending_on_signals`). A second SIGTERM or Ctrl-C acts at once. SIGHUP never does so: a
shell, the kernel and a session manager all send it when a terminal closes, and SIGTERM beside it. A signal that
is ignored, as SIGHUP is under nohup, stays ignored.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([SIGHUP] if SIGHUP is not None else []))

_hang_ups: list[int] = []
"""SIGHUPs that this command has taken; a list, since a handler may not wait for a lock."""


class Interrupted(Exception):  # noqa: N818 -- not an error: what was asked for can be resumed
    """Stopped on request at a safe point; the message says how to go on."""

    kept = 0
    """Clips that an extraction had finished and has kept."""


class Ended(KeyboardInterrupt):
    """A signal ended a command outside a loop that stops at a safe point; its name is the message."""


def terminal_is_gone(error: OSError) -> bool:
    """Whether a line could not be shown because the terminal, or what read from this process, closed with SIGHUP."""
    return error.errno == errno.EIO or bool(_hang_ups)


class StopRequest:
    """While entered, the first signal sets `requested`; a second Ctrl-C or SIGTERM acts as it did before."""

    def __init__(self, also: Callable[[], bool] = lambda: False) -> None:
        """Take a request from `also` too: what another thread or process was told."""
        self._signalled, self._also = False, also
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self._signalled or self._also()

    def __enter__(self) -> StopRequest:
        self._before = _handle(SIGNALS, self._request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore(*self._before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        if number == SIGHUP:
            _hang_ups.append(number)
        else:
            self._restore(*(other for other in self._before if other != SIGHUP))

    def _restore(self, *numbers: int) -> None:
        for number in numbers:
            signal.signal(number, self._before.pop(number))


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """While entered, SIGTERM and SIGHUP raise `Ended` in the main thread; a second SIGTERM ends the process at once."""
    received: set[int] = set()

    def end(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and number in received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        first = not received and not (number == SIGHUP and _hang_ups)
        received.add(number)
        if number == SIGHUP:
            _hang_ups.append(number)
        if first:
            raise Ended(signal.Signals(number).name)

    _hang_ups.clear()
    before = _handle(SIGNALS[1:], end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _handle(numbers: tuple[int, ...], handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Set a handler of signals, which only the main thread may; returns those before. What is ignored stays so."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    # `nohup` and jobs in the background ask for that.
    taken = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in taken}
