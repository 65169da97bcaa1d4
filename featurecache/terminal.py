"""Terminal output: what the running command may print, a console that prints text unchanged, progress of long work.

`Screen` prints `[laughs]` as text instead of reading it as markup of rich, and escapes control codes. Progress goes to
standard error, with rate and remaining time: as a bar on a terminal, elsewhere as a plain line at most every
`LINE_EVERY_S` seconds and one at the end. This module does not know what the work is.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from featurecache.interrupt import terminal_is_gone
from featurecache.outside_text import one_line, printable


class Screen(Console):
    """Console that prints every string unchanged, also in cells and titles of tables; coloured text is a `Text`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(printable(text), **(settings | {"markup": False, "emoji": False}))


@dataclass
class Output:
    """How the running command prints; `console` sets it from the options of the command line."""

    quiet: bool = False
    """Whether progress and notes are left out."""
    log: IO[str] | None = None
    """A file that receives every line too, with its time."""

    def open_log(self, path: Path) -> None:
        """Append to a log file from now on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.log = path.open("a", encoding="utf-8")

    def close(self, last_line: str) -> None:
        """End the log file, and return to the settings of a command without options."""
        self.write_log(last_line)
        if self.log is not None:
            self.log.close()
        self.quiet, self.log = False, None

    def write_log(self, text: str) -> None:
        """Append lines to the log file, if there is one."""
        if self.log is None:
            return
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.log.writelines(f"{now}  {line}\n" for line in printable(text).split("\n"))
        self.log.flush()


OUTPUT = Output()
"""The settings of this process."""

LINE_EVERY_S = 15.0
SHORTEST_S = 1e-3
"""A rate over less time than this is not shown."""


class Progress(Protocol):
    """Receiver of progress reports."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Report that `done` of `total` units are done; `note` is shown beside them (a loss, a failure count)."""
        ...


@contextmanager
def show_progress(title: str, unit: str = "clips", already: int = 0, *, shown: bool = True) -> Iterator[Progress]:
    """Show progress under a title while the block runs.

    Args:
        already: units done before the block; they do not count for the rate. The clock starts at the first report.
        shown: False in processes that leave the output to another process.
    """
    if not shown:
        yield lambda done, total, note="": None
        return
    console = Screen(stderr=True)
    lines = _ProgressLines(title, unit, already, _log_line if OUTPUT.quiet or console.is_terminal else _print_line)
    if OUTPUT.quiet or not console.is_terminal:
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
    with _ProgressBars(*columns, console=console) as bars:
        task = bars.add_task(one_line(title), total=None, rate="", note="")
        began: list[float] = []

        def update(done: int, total: int, note: str = "") -> None:
            began[:] = began or [time.monotonic()]
            rate = _rate(done - already, time.monotonic() - began[0], unit)
            bars.update(task, completed=done, total=total, rate=rate, note=one_line(note))
            lines(done, total, note)

        try:
            yield update
        finally:
            lines.close()


class _ProgressBars(RichProgress):
    """Progress bars that ignore a closed terminal at their end."""

    def stop(self) -> None:
        try:
            super().stop()
        except OSError as error:
            if not terminal_is_gone(error):
                raise


class _ProgressLines:
    """Progress as plain lines, for logs and pipes."""

    def __init__(self, title: str, unit: str, already: int, write: Callable[[str], None]) -> None:
        self._title, self._unit, self._already, self._write = title, unit, already, write
        self._began: float | None = None
        self._last_s = 0.0
        self._pending_line = ""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if total == 0:  # no work, no progress
            return
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        elapsed_s = now - self._began
        new_units = done - self._already
        parts = [f"{self._title}: {done}/{total} {self._unit}", _rate(new_units, elapsed_s, self._unit)]
        if new_units > 0:
            parts.append(f"{duration(elapsed_s / new_units * (total - done))} left")
        self._pending_line = ", ".join(part for part in (*parts, note) if part)
        if elapsed_s - self._last_s >= LINE_EVERY_S:
            self._last_s = elapsed_s
            self.close()

    def close(self) -> None:
        if self._pending_line:
            line, self._pending_line = one_line(self._pending_line), ""
            self._write(line)


def _log_line(line: str) -> None:
    OUTPUT.write_log(line)


def _print_line(line: str) -> None:
    OUTPUT.write_log(line)
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError as error:
        if not terminal_is_gone(error):
            raise


def _rate(done: int, elapsed_s: float, unit: str) -> str:
    """Return `3.1 clips/s` or `2.0 s per clip`; an empty string if nothing was done or no time has passed."""
    if done <= 0 or elapsed_s < SHORTEST_S:
        return ""
    per_s = done / elapsed_s
    return f"{per_s:.1f} {unit}/s" if per_s >= 1 else f"{1 / per_s:.1f} s per {unit.removesuffix('s')}"


def duration(seconds: float) -> str:
    """Return `1:02:03` or `2:03`."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds_left:02}" if hours else f"{minutes}:{seconds_left:02}"
