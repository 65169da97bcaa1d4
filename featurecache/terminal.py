"""What long work shows on a terminal: text from outside as it is, and progress as a bar or as plain lines.

`Screen` prints `[laughs]` as text, not as markup of rich, and no control code acts on it. Progress goes to standard
error, with the rate and the time left: a bar on a terminal; elsewhere a plain line at most every `LINE_EVERY_S`
seconds, and one at the end. This module knows nothing of the work.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from featurecache.interrupt import terminal_is_gone
from featurecache.outside_text import one_line, printable


class Screen(Console):
    """Every string that is printed, a table's cells and titles among them; what is coloured comes as a `Text`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **(settings | {"markup": False, "emoji": False}))


LINE_EVERY_S = 15.0
SHORTEST_S = 1e-3  # a rate over less time than this says nothing


class Progress(Protocol):
    """What long work reports to."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` are done; `note` is shown beside it (a loss, a failure count)."""
        ...


@contextmanager
def show_progress(title: str, unit: str = "clips", already: int = 0, *, shown: bool = True) -> Iterator[Progress]:
    """Show progress under a title while the block runs; `already` units were done before and count for no rate.

    The clock runs from the first report, which may be of nothing done yet. False for `shown`: another process does.
    """
    if not shown:
        yield lambda done, total, note="": None
        return
    console = Screen(stderr=True)
    if not console.is_terminal:
        lines = _Lines(title, unit, already)
        try:
            yield lines
        finally:
            lines.close()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit + "  {task.fields[rate]}", markup=False),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with _Bars(*columns, console=console) as bars:
        task = bars.add_task(one_line(title), total=None, rate="", note="")
        began: list[float] = []

        def update(done: int, total: int, note: str = "") -> None:
            began[:] = began or [time.monotonic()]
            rate = _rate(done - already, time.monotonic() - began[0], unit)
            bars.update(task, completed=done, total=total, rate=rate, note=one_line(note))

        yield update


class _Bars(RichProgress):
    """Bars that end quietly where the terminal closed."""

    def stop(self) -> None:
        try:
            super().stop()
        except OSError as error:
            if not terminal_is_gone(error):
                raise


class _Lines:
    """Plain lines, for logs."""

    def __init__(self, title: str, unit: str, already: int) -> None:
        self._title, self._unit, self._already = title, unit, already
        self._began: float | None = None
        self._last_s = 0.0
        self._unsaid = ""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if total == 0:  # nothing to do is no progress
            return
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        elapsed_s = now - self._began
        fresh = done - self._already
        parts = [f"{self._title}: {done}/{total} {self._unit}", _rate(fresh, elapsed_s, self._unit)]
        if fresh > 0:
            parts.append(f"{duration(elapsed_s / fresh * (total - done))} left")
        self._unsaid = ", ".join(part for part in (*parts, note) if part)
        if elapsed_s - self._last_s >= LINE_EVERY_S:
            self._last_s = elapsed_s
            self.close()

    def close(self) -> None:
        if self._unsaid:
            line, self._unsaid = one_line(self._unsaid), ""
            try:
                print(line, file=sys.stderr, flush=True)
            except OSError as error:
                if not terminal_is_gone(error):
                    raise


def _rate(done: int, elapsed_s: float, unit: str) -> str:
    """Return `3.1 clips/s` or `2.0 s a clip`; nothing where no time has passed or nothing was done."""
    if done <= 0 or elapsed_s < SHORTEST_S:
        return ""
    per_s = done / elapsed_s
    return f"{per_s:.1f} {unit}/s" if per_s >= 1 else f"{1 / per_s:.1f} s a {unit.removesuffix('s')}"


def duration(seconds: float) -> str:
    """Return `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
