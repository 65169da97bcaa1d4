"""Run cases one after another, each in a process of its own, and write what they tell as lines of JSON.

    process of case n + 1: import, make material ── waits ──▶ measure ──▶ figures ──▶ gpu.jsonl, conclusions
    process of case n:     measure ──▶ figures ─────────────┘

The process of the next case starts while a case is measured, so that importing costs no time of the device; it touches
no device before it is its turn. A case that fails, ends by a signal or takes longer than its limit leaves a line that
says so. Standard error of all processes goes to gpu.log, case by case. Imports no torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.gpu.cases import CASES, Case
from benchmarks.gpu.conclusions import conclusions, figures_of
from featurecache.console import note
from featurecache.files.jsonl import dump_lines
from featurecache.interrupt import ending_on_signals

LINES, LOG = "gpu.jsonl", "gpu.log"
TOOLS = Path(__file__).parents[2]
TINY_PATIENCE = 4
"""How many times as long a case may take on a CPU, where importing alone can take a minute beside other work."""
END_S = 20.0
"""How long a process may take to end after its last figure."""
Message = dict[str, Any]
Command = Callable[[str, Path, bool], list[str]]
"""(case, folder for material, tiny) -> the command of the process."""


def run_cases(
    chosen: Sequence[str],
    out: Path,
    seconds: float,
    *,
    tiny: bool,
    cases: Mapping[str, Case] = CASES,
    command: Command | None = None,
) -> dict[str, Any]:
    """Run cases within `seconds` in all; returns the conclusions from all figures of this device in the file.

    Raises:
        click.ClickException: there is no CUDA device, and `tiny` was not asked for.
    """
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        stack.enter_context(ending_on_signals())
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-gpu-", ignore_cleanup_errors=True)))
        written = Results(out / LINES)

        def start(name: str) -> CaseProcess:
            process = CaseProcess((command or case_command)(name, root, tiny), root / f"{name}.log", tiny=tiny)
            stack.callback(process.end)
            return process

        upcoming: CaseProcess | None = None
        for name, following in zip(chosen, [*chosen[1:], None], strict=True):
            process, upcoming = upcoming, None
            left_s = deadline - time.monotonic()
            if left_s < cases[name].least_s:
                written.add(name, {"state": "skipped", "reason": f"{max(0.0, left_s):.0f} s left of --minutes"})
                continue
            process = process or start(name)
            process.go(min(cases[name].limit_s * (TINY_PATIENCE if tiny else 1), left_s))
            for message in process.messages():
                if message["state"] != "begun":
                    written.add(name, message)
                    continue
                written.device = message["device"]
                if written.device == "cpu" and not tiny:
                    raise click.ClickException(
                        "gpu: expected a CUDA device, got none. Use --tiny to run the cases on a CPU with small sizes."
                    )
                upcoming = start(following) if following is not None else None
            process.end(END_S)
            with (out / LOG).open("a", encoding="utf-8") as log:
                log.write(f"== {name}\n{process.said}\n")
            written.conclude()
        return written.conclude()


def case_command(name: str, root: Path, tiny: bool) -> list[str]:
    """The process that measures one case."""
    return [sys.executable, "-m", "benchmarks.gpu.case_process", name, str(root), *(["--tiny"] if tiny else [])]


class Results:
    """The lines of OUT/gpu.jsonl, those of earlier runs included."""

    def __init__(self, path: Path) -> None:
        self._path, self._began = path, time.monotonic()
        self._lines = read_lines(path)
        self._torn = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._concluded: dict[str, Any] = {}
        self.device: str | None = None
        """Name of the device that the next lines come from; None: not known."""

    def add(self, case: str, message: Mapping[str, Any]) -> None:
        """Write one line, and show it."""
        line = {"case": case, "at_s": round(time.monotonic() - self._began, 1), "device": self.device, **message}
        self._lines.append(line)
        self._append(line)
        part = f" {line['part']}" if line.get("part") else ""
        note(f"{line['at_s']:5.0f} s  {case}{part}: {line['state']}{_reason(line)}")
        for key, value in line.get("figures", {}).items():
            note(f"           {key} {value}")

    def conclude(self) -> dict[str, Any]:
        """Write the conclusions that are new or have changed; returns all."""
        found = conclusions(figures_of(self._lines, self.device))
        for name, conclusion in found.items():
            if self._concluded.get(name) != conclusion:
                self._append({"conclusion": name, "device": self.device, **conclusion})
        self._concluded = found
        if self.device == "cpu":  # tiny sizes have no goals
            return {name: conclusion["value"] for name, conclusion in found.items()}
        return {name: _with_goal(conclusion) for name, conclusion in found.items()}

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write((b"\n" if self._torn else b"") + dump_lines([line]))
            file.flush()
            os.fsync(file.fileno())
        self._torn = False


def read_lines(path: Path) -> list[Message]:
    """The lines of earlier runs; a line torn by a cut is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        with contextlib.suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def _reason(line: Mapping[str, Any]) -> str:
    return f" ({line['reason']})" if "reason" in line else ""


def _with_goal(conclusion: Mapping[str, Any]) -> str:
    if "goal" not in conclusion:
        return str(conclusion["value"])
    return f"{conclusion['value']} (goal: {conclusion['goal']}, {'met' if conclusion['met'] else 'missed'})"


class CaseProcess:
    """A process that gets ready, waits for its turn, and tells its figures line by line."""

    def __init__(self, command: Sequence[str], log: Path, *, tiny: bool) -> None:
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env=environment(tiny=tiny),
                start_new_session=True,  # so that its own processes end with it
            )
        self._messages: queue.Queue[Message | None] = queue.Queue()
        self._deadline = self._limit_s = float("inf")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def go(self, limit_s: float) -> None:
        """Let the process measure once it is ready; its limit begins here."""
        self._deadline, self._limit_s = time.monotonic() + limit_s, limit_s
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{limit_s}\n")
            self._process.stdin.flush()

    def messages(self) -> Iterator[Message]:
        """What the process tells, first that it begins; at last why it tells no more, unless it has said all."""
        while True:
            try:
                message = self._messages.get(timeout=max(0.0, self._deadline - time.monotonic()))
            except queue.Empty:
                self.end()
                yield {"state": "timed out", "reason": f"took longer than {self._limit_s:.0f} s"}
                return
            if message is None:
                yield {"state": "failed", "reason": self._why()}
                return
            if message["state"] == "done":
                return
            yield message

    def _why(self) -> str:
        code, said = self._process.wait(), self.said.splitlines()
        ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{ended}: {said[-1]}" if said else ended

    @property
    def said(self) -> str:
        """Its standard error so far."""
        return self._log.read_text(encoding="utf-8", errors="replace").strip()

    def end(self, patience_s: float = 0.0) -> None:
        """Wait so long for the process to end, then end it and all that it started."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(END_S)
        for pipe in (self._process.stdin, None if self._reader.is_alive() else self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()


def environment(*, tiny: bool) -> dict[str, str]:
    """Variables of a case's process: it finds the tools and both packages, and reaches no hub."""
    places = [str(TOOLS), str(TOOLS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    changed = {
        "PYTHONPATH": os.pathsep.join(places),
        "HF_HUB_OFFLINE": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # whether there is a GPU is asked without a context on it
        "PYTORCH_CUDA_ALLOC_CONF": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
    }
    return os.environ | changed | ({"CUDA_VISIBLE_DEVICES": ""} if tiny else {})
