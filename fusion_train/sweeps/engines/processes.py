"""Train groups in worker processes on this machine, one per device.

A worker sees only its own device (CUDA_VISIBLE_DEVICES). It runs in its own session, so that Ctrl-C reaches only the
driver, which tells all workers to save and stop. When a worker dies (out of memory, a segmentation fault), its group
fails with that reason and a new process replaces it.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

from featurecache.interrupt import SIGNALS, Interrupted, StopRequest
from featurecache.machine import usable_cores
from featurecache.terminal import OUTPUT
from fusion_train.errors import ConfigError
from fusion_train.sweeps.engines import POLL_S, child
from fusion_train.sweeps.engines.messages import STOP, CheckResult, LogLine, WorkerStart
from fusion_train.sweeps.job import Cost, DeviceCapacity, GroupResult, SweepSettings, TrialGroup
from fusion_train.sweeps.sweep_file import Sweep

END_S = 10.0
"""Seconds that a worker has to end before it is killed."""


class ProcessExecutor:
    """Worker processes, one per device."""

    def __init__(
        self, work: SweepSettings, devices: Sequence[str], say: Callable[[str], None], request: StopRequest
    ) -> None:
        self.count = len(devices)
        self._devices, self._say, self._request = list(devices), say, request
        self._stop_sent = False
        self._workers = [WorkerProcess(work, device, environment(device, devices)) for device in devices]

    @property
    def stopping(self) -> bool:
        return self._request.requested

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        return dict(self._workers[0].check(sweep, self._say).costs)

    def capacity(self) -> DeviceCapacity:
        """Workers on one device, or in this machine's memory, share what there is.

        Raises:
            ConfigError: a worker cannot use its device.
        """
        capacities = [(worker.capacity(self._say), self._devices.count(worker.device)) for worker in self._workers]
        return DeviceCapacity(
            min(capacity.free_bytes // sharing for capacity, sharing in capacities),
            min(capacity.peak_flops for capacity, _ in capacities),
        )

    def begin(self, worker: int, group: TrialGroup) -> None:
        self._workers[worker].begin(group)

    def answers(self) -> list[tuple[int, GroupResult]]:
        if self.stopping and not self._stop_sent:
            self._stop_sent = True
            self._say("stopping: every worker saves after the step it is at; interrupt again to end without")
            for worker in self._workers:
                worker.send(STOP)
        results = []
        readable = wait([worker.stream for worker in self._workers if worker.busy], timeout=POLL_S)
        for number, worker in enumerate(self._workers):
            if worker.stream in readable and (result := worker.receive(self._say)) is not None:
                results.append((number, result))
        return results

    def close(self) -> None:
        """End all worker processes, those at work too."""
        for worker in self._workers:
            worker.end()


class WorkerProcess:
    """One worker process; a new one starts for the next group when the process ended or is damaged."""

    def __init__(self, work: SweepSettings, device: str, variables: Mapping[str, str]) -> None:
        self.device, self.busy = device, False
        self._start_message, self._variables = WorkerStart(work, device, OUTPUT.quiet), variables
        self._capacity: DeviceCapacity | None = None
        self._checked: CheckResult | None = None
        self._start()

    def _start(self) -> None:
        driver_end, worker_end = socket.socketpair()
        with worker_end:
            self._process = subprocess.Popen(
                [sys.executable, "-m", child.__name__, str(worker_end.fileno())],
                pass_fds=(worker_end.fileno(),),
                env=self._variables,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.stream = Connection(driver_end.detach())
        self._usable = True
        self.send(pickle.dumps(self._start_message))

    def send(self, message: bytes) -> None:
        """Send a message. Ignores a dead worker: the next read from its stream reports it."""
        try:
            self.stream.send_bytes(message)
        except OSError:
            self._usable = False

    def capacity(self, say: Callable[[str], None]) -> DeviceCapacity:
        """Wait until the worker has started; returns what its device offered before anything was loaded."""
        while self._capacity is None:
            self._await(say)
        return self._capacity

    def check(self, sweep: Sweep, say: Callable[[str], None]) -> CheckResult:
        """Check a sweep in the worker.

        Raises:
            FeatureCacheError: the sweep cannot run, or the worker cannot use its device.
        """
        self.send(pickle.dumps(sweep))
        while self._checked is None:
            self._await(say)
        return self._checked

    def _await(self, say: Callable[[str], None]) -> None:
        if (result := self.receive(say)) is not None:
            if result.stopped:
                raise Interrupted("stopped. Go on with the same command.")
            raise ConfigError(f"device {self.device}", expected="a worker that starts", got=result.error)

    def begin(self, group: TrialGroup) -> None:
        if not self._usable or self._process.poll() is not None:  # the process may have died while it was idle
            self._restart()
        self.busy = True
        self.send(pickle.dumps(group))

    def receive(self, say: Callable[[str], None]) -> GroupResult | None:
        """Read one message; returns the result of a group, or one that reports the death of the worker.

        Raises:
            FeatureCacheError: the sweep cannot run, or the worker cannot use its device.
        """
        try:
            message = self.stream.recv()
        except (EOFError, OSError):
            self._usable = self.busy = False
            if -self._process.wait() in SIGNALS:  # stopped by a signal before it trained: no trial is at fault
                say(f"a worker {_how(self._process.returncode)}")
                return GroupResult(stopped=True)
            return GroupResult(error=f"its process {_how(self._process.wait())}", damaged=True)
        if isinstance(message, DeviceCapacity):
            self._capacity = self._capacity or message
        elif isinstance(message, CheckResult):
            if message.error is not None:
                raise message.error
            self._checked = message
        elif isinstance(message, LogLine):
            say(message.line)
        else:
            self._usable, self.busy = not message.damaged, False
            return message
        return None

    def end(self) -> None:
        self.stream.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _restart(self) -> None:
        self.end()
        self._start()


@contextmanager
def executor(
    work: SweepSettings, say: Callable[[str], None], devices: Sequence[str] = ("auto",)
) -> Iterator[ProcessExecutor]:
    """Open one worker per device; the workers end with the block.

    Raises:
        ConfigError: a device that this machine does not have, when it is first used.
    """
    with StopRequest() as request:
        workers = ProcessExecutor(work, devices, say, request)
        try:
            yield workers
        finally:
            workers.close()


def environment(device: str, devices: Sequence[str]) -> dict[str, str]:
    """Return the environment of a worker that sees only `device`, one of the `devices` in use.

    Raises:
        ConfigError: another form than auto, cpu, cuda or cuda:N, or a number that CUDA_VISIBLE_DEVICES does not have.
    """
    variables = dict(os.environ)
    kind, colon, number = device.partition(":")
    if len(devices) > 1:
        variables["TTY_COMPATIBLE"] = "0"  # several bars on one terminal would overwrite each other
    if device == "auto":
        return variables
    if device == "cpu":
        variables["CUDA_VISIBLE_DEVICES"] = ""
        threads = max(1, usable_cores() // devices.count("cpu"))
        return {"OMP_NUM_THREADS": str(threads), **variables}
    visible = [name for name in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if kind != "cuda" or (colon and not number.isdigit()):
        raise ConfigError("--devices", expected="auto, cpu, cuda or cuda:N", got=device)
    place = int(number or 0)
    if visible and place >= len(visible):
        raise ConfigError(f"device {device}", expected=f"below the {len(visible)} of CUDA_VISIBLE_DEVICES", got=number)
    variables["CUDA_VISIBLE_DEVICES"] = visible[place] if visible else str(place)
    return variables


def _how(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with exit code {code}; its last words are above"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")
