"""A worker process: `python -m fusion_train.sweeps.engines.child FD`, FD being its end of a socket to the driver.

The process ends when the stream from the driver does, at once and wherever it is, so that a driver that is killed
leaves none behind; what a run has published stays, and its checkpoint is where it goes on.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from featurecache.errors import FeatureCacheError
from featurecache.terminal import OUTPUT
from fusion_train.errors import ConfigError
from fusion_train.sweeps.engines.messages import STOP, CheckResult, LogLine, WorkerStart
from fusion_train.sweeps.sweep_file import Sweep

ORPHANED = 3
"""Exit code of a worker whose driver is gone."""


class Inbox:
    """Receives the driver's messages on a thread."""

    def __init__(self, stream: Connection) -> None:
        self.stop_requested = False
        self._messages: queue.Queue[bytes] = queue.Queue()
        threading.Thread(target=self._read, args=(stream,), name="driver", daemon=True).start()

    def next(self) -> Any:
        return pickle.loads(self._messages.get())  # sent by the driver, over a socket that no other process has

    def _read(self, stream: Connection) -> None:
        while True:
            try:
                message = stream.recv_bytes()
            except (EOFError, OSError):
                os._exit(ORPHANED)
            if message == STOP:
                self.stop_requested = True
            else:
                self._messages.put(message)


def main(descriptor: int) -> None:
    """Serve the driver until it closes the stream."""
    stream = Connection(descriptor)
    inbox = Inbox(stream)
    start: WorkerStart = inbox.next()
    OUTPUT.quiet = start.quiet

    import torch

    from fusion_train.sweeps.worker import Worker

    worker = Worker(start.work, lambda line: stream.send(LogLine(line)), lambda: inbox.stop_requested)
    if start.device.startswith("cuda") and not torch.cuda.is_available():
        refusal = ConfigError(
            f"device {start.device}",
            expected="a device of this machine",
            got="no GPU that torch can use",
            next_step="Name others with --devices.",
        )
        stream.send(CheckResult({}, refusal))
        return
    stream.send(worker.capacity())
    while True:
        message = inbox.next()
        stream.send(_checked(worker, message) if isinstance(message, Sweep) else worker.answer(message))


def _checked(worker: Any, sweep: Sweep) -> CheckResult:
    try:
        return CheckResult(worker.check(sweep))
    except FeatureCacheError as error:
        return CheckResult({}, error)


if __name__ == "__main__":
    main(int(sys.argv[1]))
