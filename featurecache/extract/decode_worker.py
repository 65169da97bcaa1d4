"""The child side of `decode_processes`: the template process, which forks one worker process per request.

    parent -- 0 and two descriptors, or a worker's number --> template -- a new worker's number, or an exit code -->
           -- clip and feature names, pickled --------------> worker   -- messages, each a JSON object ------------>

The template imports what preprocessing needs, once, and stays single-threaded, so that its forks are safe and start in
milliseconds. A worker prepares one clip at a time. It writes the inputs one after another to a file in memory, which
its next clip overwrites, and describes them in its last message:

    {"take": n}        the clip needs n bytes for frames; the worker waits until the other side has reserved them
    {"decoded": true}  from here on, no time limit holds
    {"inputs": …}      `ClipInputs`, with place, shape and dtype of each array
    {"error": …}       an error that the clip's media did not cause, with its traceback; the worker ends

What decodes hostile files only sends JSON: nothing that a worker says is unpickled.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from featurecache.clips.clip_list import Clip
from featurecache.encoders import Encoder
from featurecache.errors import FeatureCacheError, MediaError
from featurecache.extract.prepare import ClipInputs, prepare_with
from featurecache.interrupt import SIGNALS
from featurecache.media.decode import Decoded, decode_each
from featurecache.media.frames import FRAME_MEMORY, Reservation
from featurecache.views import View

FORK = 0
"""Request to the template for a new worker; any other number is that of a worker to wait for."""
NUMBER = struct.Struct("!q")
ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Preparation:
    """What all workers of a run have in common."""

    encoders: Mapping[str, Encoder]
    """By feature name, without networks."""
    sharing: Mapping[str, str]
    limit_s: float | None


def serve(descriptor: int) -> None:
    """Fork workers and wait for them, until the parent closes its end; then end those that are left."""
    # Ctrl-C, a closed terminal and the end of a batch job signal every process: the parent decides what follows.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)
    control = socket.socket(fileno=descriptor)
    preparation: Preparation = pickle.load(sys.stdin.buffer)  # sent by the parent, over a pipe of its own
    workers: set[int] = set()
    try:
        while True:
            request, descriptors, _, _ = socket.recv_fds(control, NUMBER.size, 2)
            if len(request) < NUMBER.size:
                return
            (number,) = NUMBER.unpack(request)
            if number == FORK:
                answer = _fork(control, preparation, descriptors)
                workers.add(answer)
            else:
                answer = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
                workers.discard(number)
            control.sendall(NUMBER.pack(answer))
    except BrokenPipeError:
        return
    finally:
        for number in workers:
            os.kill(number, signal.SIGKILL)
        for number in workers:
            os.waitpid(number, 0)


def _fork(control: socket.socket, preparation: Preparation, descriptors: Sequence[int]) -> int:
    """Fork a worker and return its process number; does not return in the worker."""
    number = os.fork()
    if number:
        for descriptor in descriptors:
            os.close(descriptor)
        return number
    code = 1
    try:
        control.close()
        channel = Connection(descriptors[0])
        try:
            _work(preparation, channel, descriptors[1])
            code = 0
        except Exception as error:
            _send(channel, error=_described_error(error))
            raise
    finally:
        os._exit(code)


def _work(preparation: Preparation, channel: Connection, file: int) -> None:
    """Prepare clips until the parent closes its end. Raises every error that a clip's media did not cause."""
    while True:
        try:
            clip, names = channel.recv()  # pickled by the parent
        except EOFError:
            return
        _send(channel, inputs=_described(_prepare(preparation, channel, clip, names), file))


def _prepare(preparation: Preparation, channel: Connection, clip: Clip, names: Sequence[str]) -> ClipInputs:
    def decode(views: Sequence[View], notices: list[str]) -> Sequence[Decoded | MediaError]:
        decoded = decode_each(clip, views, preparation.limit_s, _ParentMemory(channel), notices)
        _send(channel, decoded=True)
        return decoded

    encoders = {name: preparation.encoders[name] for name in names}
    return prepare_with(decode, clip, encoders, preparation.sharing)


class _ParentMemory(Reservation):
    """Memory that the parent reserves for the clip, out of the budget that all its workers share."""

    def __init__(self, channel: Connection) -> None:
        super().__init__(FRAME_MEMORY)
        self._channel = channel

    def take(self, num_bytes: int) -> None:
        _send(self._channel, take=num_bytes)
        self._channel.recv_bytes()


def _send(channel: Connection, **message: Any) -> None:
    channel.send_bytes(json.dumps(message, default=str).encode())


def _described(inputs: ClipInputs, file: int) -> dict[str, Any]:
    """Write the arrays to the file; return everything else, and where they are, as JSON values."""
    arrays: dict[int, int] = {}
    """Number of each array by its identity: features may share one."""
    places: list[dict[str, Any]] = []
    by_feature: dict[str, dict[str, Any]] = {}
    end = 0
    for name, item in inputs.by_feature.items():
        fields = {field: getattr(item, field) for field in ("source", "absent", "failed", "num_valid")}
        if item.array is not None:
            if id(item.array) not in arrays:
                arrays[id(item.array)] = len(places)
                places.append({"offset": end, "shape": item.array.shape, "dtype": item.array.dtype.str})
                end = _written(file, np.ascontiguousarray(item.array), end)
            fields["array"] = arrays[id(item.array)]
        by_feature[name] = fields
    times = {field: getattr(inputs, field) for field in ("hash_s", "decode_s", "preprocess_s")}
    return {"by_feature": by_feature, "arrays": places, "times": times, "notices": list(inputs.notices)}


def _written(file: int, array: np.ndarray, offset: int) -> int:
    """Write an array and return where the next one begins."""
    data = array.reshape(-1).view(np.uint8).data
    end = offset + len(data)
    while offset < end:
        offset += os.pwrite(file, data[offset - end :], offset)
    return -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def _described_error(error: Exception) -> dict[str, Any]:
    kind = type(error)
    message: dict[str, Any] = {"module": kind.__module__, "name": kind.__qualname__, "text": str(error)}
    if isinstance(error, FeatureCacheError):
        message["fields"] = {
            field: getattr(error, field) for field in ("subject", "expected", "got", "next_step", "problems")
        }
    else:
        message["args"] = error.args
    return message | {"traceback": "".join(traceback.format_exception(error))}
