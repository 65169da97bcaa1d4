"""Train groups in worker processes on this machine, one a device.

A worker sees its own device alone (CUDA_VISIBLE_DEVICES). It has a session of its own, so that Ctrl-C reaches the
driver, which has all workers save and stop. A worker that dies (out of memory, a segmentation fault) is said to be
gone, and a fresh process takes its place.
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
from fusion_train.errors import ConfigError
from fusion_train.sweeps.engines import POLL_S, child
from fusion_train.sweeps.engines.messages import STOP, CheckResult, LogLine, WorkerStart
from fusion_train.sweeps.job import Cost, DeviceCapacity, GroupResult, SweepSettings, TrialGroup
from fusion_train.sweeps.sweep_file import Sweep

END_S = 10.0
"""How long a worker may take to end before it is killed."""


class ProcessExecutor:
    """A crew of worker processes."""

    def __init__(
        self, work: SweepSettings, devices: Sequence[str], say: Callable[[str], None], request: StopRequest
    ) -> None:
        self.count = len(devices)
        self._devices, self._say, self._request = list(devices), say, request
        self._told = False
        self._workers = [WorkerProcess(work, device, environment(device, devices)) for device in devices]

    @property
    def stopping(self) -> bool:
        return self._request.requested

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        return dict(self._workers[0].check(sweep, self._say).costs)

    def room(self) -> DeviceCapacity:
        """Workers on one device, or in this machine's memory, share what there is.

        Raises:
            ConfigError: a worker cannot use its device.
        """
        rooms = [(worker.room(self._say), self._devices.count(worker.device)) for worker in self._workers]
        return DeviceCapacity(
            min(room.free_bytes // sharing for room, sharing in rooms), min(room.peak_flops for room, _ in rooms)
        )

    def begin(self, worker: int, group: TrialGroup) -> None:
        self._workers[worker].begin(group)

    def answers(self) -> list[tuple[int, GroupResult]]:
        if self.stopping and not self._told:
            self._told = True
            self._say("stopping: every worker saves after the step it is at; interrupt again to end without")
            for worker in self._workers:
                worker.send(STOP)
        found = []
        readable = wait([worker.stream for worker in self._workers if worker.busy], timeout=POLL_S)
        for number, worker in enumerate(self._workers):
            if worker.stream in readable and (answer := worker.receive(self._say)) is not None:
                found.append((number, answer))
        return found

    def close(self) -> None:
        """End all, at once if they are at work."""
        for worker in self._workers:
            worker.end()


class WorkerProcess:
    """One worker: started at once, started anew for the next group once it is gone or damaged."""

    def __init__(self, work: SweepSettings, device: str, variables: Mapping[str, str]) -> None:
        self.device, self.busy = device, False
        self._start_message, self._variables = WorkerStart(work, device), variables
        self._fitting_size: DeviceCapacity | None = None
        self._checked: CheckResult | None = None
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", child.__name__, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=self._variables,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.stream = Connection(ours.detach())
        self._fit = True
        self.send(pickle.dumps(self._start_message))

    def send(self, message: bytes) -> None:
        """Nothing is said of a worker that is gone: its stream ends when it is read."""
        try:
            self.stream.send_bytes(message)
        except OSError:
            self._fit = False

    def room(self, say: Callable[[str], None]) -> DeviceCapacity:
        """What it found when it was first started, before it had loaded anything; waits until it is."""
        while self._fitting_size is None:
            self._await(say)
        return self._fitting_size

    def check(self, sweep: Sweep, say: Callable[[str], None]) -> CheckResult:
        """Have it look at a sweep.

        Raises:
            FeatureCacheError: what it found wrong, or it cannot use its device.
        """
        self.send(pickle.dumps(sweep))
        while self._checked is None:
            self._await(say)
        return self._checked

    def _await(self, say: Callable[[str], None]) -> None:
        if (gone := self.receive(say)) is not None:
            if gone.stopped:
                raise Interrupted("stopped. Go on with the same command.")
            raise ConfigError(f"device {self.device}", expected="a worker that starts", got=gone.error)

    def begin(self, group: TrialGroup) -> None:
        if not self._fit or self._process.poll() is not None:  # it may have died while it was idle
            self._restart()
        self.busy = True
        self.send(pickle.dumps(group))

    def receive(self, say: Callable[[str], None]) -> GroupResult | None:
        """Take one message; an answer is returned, and one is made for a worker that has died.

        Raises:
            FeatureCacheError: the sweep cannot run, or the worker cannot use its device.
        """
        try:
            message = self.stream.recv()
        except (EOFError, OSError):
            self._fit = self.busy = False
            if -self._process.wait() in SIGNALS:  # somebody stopped it before it was training: no trial's fault
                say(f"a worker {_how(self._process.returncode)}")
                return GroupResult(stopped=True)
            return GroupResult(error=f"its process {_how(self._process.wait())}", damaged=True)
        if isinstance(message, DeviceCapacity):
            self._fitting_size = self._fitting_size or message
        elif isinstance(message, CheckResult):
            if message.error is not None:
                raise message.error
            self._checked = message
        elif isinstance(message, LogLine):
            say(message.line)
        else:
            self._fit, self.busy = not message.damaged, False
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
    """Workers on `devices`, one each, that end with the block.

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
    """The environment of a worker that is to see `device` alone, one of the `devices` of this machine in use.

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
