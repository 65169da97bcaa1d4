"""Decode workers as processes: clips are hashed, decoded and preprocessed outside this process.

    threads of this process, one per worker --> worker processes, forked by a template (`decode_worker`)

Each thread sends one clip at a time to an idle worker and reads its inputs from a file in memory that the two share.
Threads of one process share Python's lock, processes do not. The results are those of `prepare`, byte for byte.

A decoder that crashes ends its worker only. The clip is prepared once more in new workers, each view separately, so
that an earlier clip cannot be the cause and a bad sound track leaves the frames usable. What crashes again has failed.
A decoder that does not look at its time limit is killed. Memory: one clip's inputs per worker beside those that the
run holds, and the frames of all workers together within the budget of this process (`FRAME_MEMORY`).

The workers hold no CUDA context, have one thread, ignore Ctrl-C and the like, and end with this process, however it
ends; the files in memory have no names, so nothing is left.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import featurecache.errors
from featurecache.clips.clip_list import MEDIA_KINDS, Clip
from featurecache.encoders import Encoder
from featurecache.errors import EncoderError, MediaError
from featurecache.extract.decode_worker import FORK, NUMBER, Preparation
from featurecache.extract.prepare import ClipInputs, EncoderInput, named_in_errors, reason_of, source_or_error
from featurecache.machine import anonymous_file, read_into
from featurecache.media.frames import FRAME_MEMORY, Reservation
from featurecache.media.isolated_decoding import crash_error
from featurecache.views import View

PROGRAM = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from featurecache.extract.decode_worker import serve
serve(int(sys.argv[2]))"""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
KILL_AFTER_S = 30.0
"""A decoder that is this much later than the time limit of all files of its clip is killed."""


class DecodeProcesses:
    """Prepares clips in worker processes; as many threads may call `prepare` as there are workers."""

    def __init__(
        self, encoders: Mapping[str, Encoder], count: int, sharing: Mapping[str, str], limit_s: float | None
    ) -> None:
        """Start the template; each worker starts with its first clip.

        Raises:
            EncoderError: an encoder that cannot preprocess in another process.
        """
        self._encoders, self._limit_s = encoders, limit_s
        self._template = _Template(Preparation(_without_networks(encoders), sharing, limit_s))
        self._count = count
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(count):
            self._idle.put(_Worker(self._template, limit_s))

    def prepare(self, clip: Clip, encoders: Mapping[str, Encoder]) -> ClipInputs:
        """Prepare a clip as `prepare.prepare`.

        Raises:
            Exception: an error that the clip's media did not cause; its notes name the clip and show the traceback.
        """
        worker = self._idle.get()
        try:
            with named_in_errors(clip):
                return self._prepare(worker, clip, encoders)
        finally:
            self._idle.put(worker)

    def _prepare(self, worker: _Worker, clip: Clip, encoders: Mapping[str, Encoder]) -> ClipInputs:
        inputs = worker.request(clip, list(encoders))
        if isinstance(inputs, ClipInputs):
            return inputs
        parts: list[ClipInputs] = []
        for view in dict.fromkeys(encoder.view for encoder in encoders.values()):
            names = [name for name, encoder in encoders.items() if encoder.view == view]
            part = worker.request(clip, names) if inputs.again else inputs
            parts.append(part if isinstance(part, ClipInputs) else _failed(clip, view, names, part.error))
        return _joined(clip, parts, encoders)

    def close(self) -> None:
        """End all processes; a `prepare` that still runs raises an error."""
        self._template.close()
        workers = [self._idle.get() for _ in range(self._count)]
        for worker in workers:
            worker.close()
            self._idle.put(worker)


def can_use_processes(encoders: Mapping[str, Encoder]) -> bool:
    """Return whether every encoder can preprocess in another process."""
    try:
        _without_networks(encoders)
    except EncoderError:
        return False
    return True


def _without_networks(encoders: Mapping[str, Encoder]) -> dict[str, Encoder]:
    copies = {name: encoder.without_network() for name, encoder in encoders.items()}
    usable = {name: copy for name, copy in copies.items() if copy is not None and type(copy).__module__ != "__main__"}
    if refused := sorted(set(copies) - set(usable)):
        raise EncoderError(
            ", ".join(refused),
            expected="encoders of importable modules, with a copy without_network, to preprocess in processes",
            got="none",
            next_step="Decode in threads: --decode-in threads.",
        )
    return usable


def _failed(clip: Clip, view: View, names: Sequence[str], error: MediaError) -> ClipInputs:
    source = source_or_error(clip, view)
    failed = EncoderInput("" if isinstance(source, OSError) else source, failed=reason_of(error))
    return ClipInputs(clip, dict.fromkeys(names, failed), 0.0, 0.0, 0.0)


def _joined(clip: Clip, parts: Sequence[ClipInputs], names: Iterable[str]) -> ClipInputs:
    """Join what was prepared of a clip view by view."""
    by_feature = {name: item for part in parts for name, item in part.by_feature.items()}
    return ClipInputs(
        clip,
        {name: by_feature[name] for name in names},
        sum(part.hash_s for part in parts),
        sum(part.decode_s for part in parts),
        sum(part.preprocess_s for part in parts),
        list(dict.fromkeys(line for part in parts for line in part.notices)),
    )


@dataclass(frozen=True)
class _Ended:
    """A worker ended while it prepared a clip."""

    error: MediaError
    again: bool
    """Whether to prepare the clip again in a new worker before it is blamed."""


class _Template:
    """The process that forks workers; threads use it in turn."""

    def __init__(self, preparation: Preparation) -> None:
        self.closed = False
        self._lock = threading.Lock()
        self._control, template_end = socket.socketpair()
        with template_end:
            # In a separate session, so that signals of the terminal reach the parent only.
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps(sys.path), str(template_end.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[template_end.fileno()],
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stream:  # the first `_ask` tells of its end
            stream.write(pickle.dumps(preparation))

    def fork(self, channel: socket.socket, file: int) -> int:
        """Start a worker at the other end of a socket; return its process number."""
        return self._ask(FORK, [channel.fileno(), file])

    def wait(self, number: int) -> int:
        """Return the exit code of a worker that has ended."""
        return self._ask(number, [])

    def _ask(self, number: int, descriptors: Sequence[int]) -> int:
        with self._lock:
            answer = b""
            if not self.closed:
                with contextlib.suppress(OSError):
                    socket.send_fds(self._control, [NUMBER.pack(number)], descriptors)
                    answer = self._control.recv(NUMBER.size, socket.MSG_WAITALL)
            if self.closed:
                raise RuntimeError("the decode workers were closed")
            if len(answer) < NUMBER.size:
                raise RuntimeError(
                    f"the process that starts decode workers ended with {self._process.wait()}; an error of its own is"
                    " printed above"
                )
        return int(NUMBER.unpack(answer)[0])

    def close(self) -> None:
        """End the template, which ends its workers."""
        self.closed = True
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._process.wait()
        with self._lock:
            self._control.close()


class _Worker:
    """One worker process, or the place of one that is to be started; one thread uses it at a time."""

    def __init__(self, template: _Template, limit_s: float | None) -> None:
        self._template, self._limit_s = template, limit_s
        self._channel: Connection | None = None
        self._number = 0
        self._what = ""
        """What the worker is doing, in the error of a crash."""
        self._file = anonymous_file()

    def request(self, clip: Clip, names: list[str]) -> ClipInputs | _Ended:
        """Prepare a clip for the features `names`; a worker that ends meanwhile is replaced at the next request."""
        if self._channel is None:
            self._channel = self._start()
        self._what = "the decoder"
        with FRAME_MEMORY.reserve() as memory:
            try:
                message = self._last_message(self._channel, clip, names, memory)
            except TimeoutError:
                os.kill(self._number, signal.SIGKILL)
                self._ended()
                expected = f"decoding to take at most {self._limit_s:g} s"
                return _Ended(MediaError(f'clip "{clip.id}"', expected=expected, got="longer"), again=False)
            except (EOFError, OSError):
                code = self._ended()
                if code >= 0:
                    raise RuntimeError(f"a decode worker ended with {code}") from None
                return _Ended(crash_error(clip, code, self._what), again=True)
        if "error" in message:
            self._ended()
            raise _raised(message["error"])
        return self._read(clip, message["inputs"])

    def _last_message(self, channel: Connection, clip: Clip, names: list[str], memory: Reservation) -> dict[str, Any]:
        """Let the worker prepare the clip; return its last message.

        Raises:
            TimeoutError: its decoder does not end.
            EOFError, OSError: the worker has ended.
        """
        limit_s = None
        if self._limit_s is not None:
            limit_s = self._limit_s * sum(getattr(clip, kind) is not None for kind in MEDIA_KINDS) + KILL_AFTER_S
        channel.send((clip, names))
        while True:
            if not channel.poll(limit_s):
                raise TimeoutError
            message: dict[str, Any] = json.loads(channel.recv_bytes())
            if "decoded" in message:
                limit_s, self._what = None, "the preprocessing"
            elif "take" in message:
                memory.take(message["take"])
                channel.send_bytes(b"taken")
            else:
                return message

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _start(self) -> Connection:
        parent_end, worker_end = socket.socketpair()
        with parent_end, worker_end:
            self._number = self._template.fork(worker_end, self._file)
            return Connection(parent_end.detach())

    def _ended(self) -> int:
        """Return the exit code of the worker, which has closed its end."""
        assert self._channel is not None
        self._channel.close()
        self._channel = None
        return self._template.wait(self._number)

    def _read(self, clip: Clip, described: Mapping[str, Any]) -> ClipInputs:
        arrays = [self._array(**place) for place in described["arrays"]]
        by_feature = {}
        for name, fields in described["by_feature"].items():
            number = fields.pop("array", None)
            by_feature[name] = EncoderInput(**fields, array=None if number is None else arrays[number])
        return ClipInputs(clip, by_feature, **described["times"], notices=described["notices"])

    def _array(self, offset: int, shape: Sequence[int], dtype: str) -> np.ndarray:
        array = np.empty(shape, dtype)
        data, done = array.reshape(-1).view(np.uint8), 0
        while done < len(data):
            done += read_into(self._file, [data[done:]], offset + done, 0)
        return array


def _raised(described: Mapping[str, Any]) -> Exception:
    """Return the error of a worker, of the same class if it is Python's or this package's, with its traceback."""
    module = {"builtins": builtins, "featurecache.errors": featurecache.errors}.get(described["module"])
    kind = getattr(module, described["name"], None)
    error: Exception = RuntimeError(f"{described['module']}.{described['name']}: {described['text']}")
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError):  # a class with arguments of its own
            fields = described.get("fields")
            error = kind(**fields) if fields else kind(*described["args"])
    error.add_note("In a decode worker:\n" + described["traceback"])
    return error
