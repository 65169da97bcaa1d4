"""Encoding and writing beside decoding: one thread a device, one that writes, bounded queues between.

    batches -> [2 a device] -> forward, pool, start the copy back (thread a device) -> [2] -> rows, commit (one thread)

A batch is one forward; all features that differ only in pooling take their tokens from it. Queues hold so much and no
more: whoever is faster waits. The first error stops every lane and is raised to whoever submits next.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurecache.encoders import Encoder
from featurecache.errors import EncoderError
from featurecache.extract.stats import Summary
from featurecache.spec import canonical_json

BATCHES_WAITING = 2
"""Before each device, and before the writer."""
POLL_S = 0.2

Rows = Mapping[int, np.ndarray]
"""(K, D) by position in the batch."""


@dataclass(frozen=True)
class Member:
    """One feature's part in a batch."""

    feature: str
    valid: Mapping[int, int]
    """Encoder tokens that each clip fills, by position; empty where this feature's pooling does not ask."""
    write: Callable[[Rows], None]
    """Takes the rows; called by the writing thread, in the order of submission on one device."""


@dataclass(frozen=True)
class Batch:
    """One forward: inputs by position, and every feature that pools from it.

    Only what the forward reads is shared. What pooling reads belongs to the member, since features that share a forward
    may differ in pooling.
    """

    inputs: Mapping[int, np.ndarray]
    members: tuple[Member, ...]


def forward_key(encoder: Encoder) -> str:
    """What must be equal for two encoders to share preprocessing and forward: all of the spec but the pooling.

    `implementation` is left out too: two encoders of one class run the same code, whatever number their pooling has.
    """
    identity = encoder.spec("float32").identity()
    del identity["pooling"], identity["shape"], identity["implementation"]
    identity |= {"view": repr(encoder.view), "batch": encoder.batch_size, "class": type(encoder).__qualname__}
    return canonical_json(identity)


def stack(encoder: Encoder, inputs: Mapping[int, np.ndarray]) -> np.ndarray:
    """(…) by position in; (B, …) out, zeros where a position has none."""
    some = next(iter(inputs.values()))
    stacked = np.zeros((encoder.batch_size, *some.shape), some.dtype)
    for position, array in inputs.items():
        stacked[position] = array
    return stacked


def pool(encoder: Encoder, tokens: Any, inputs: Container[int], valid: Mapping[int, int]) -> Any:
    """(B, T, D) in, (B, K, D) out; `valid` is how many tokens each clip fills, for encoders that ask.

    Raises:
        KeyError: the encoder asks, and a position of `inputs` has no number.
    """
    if getattr(encoder, "needs_valid", False):
        return encoder.pool(tokens, [valid[at] if at in inputs else 1 for at in range(len(tokens))])  # type: ignore[call-arg]
    return encoder.pool(tokens)


class DevicePipeline:
    """The threads behind decoding; `submit` batches, then `finish`."""

    def __init__(self, replicas: Sequence[Mapping[str, Encoder]], summary: Summary) -> None:
        """Start one lane for each of `replicas`, the encoders of one device by feature name."""
        self._summary = summary
        self._timing = threading.Lock()
        self._error: BaseException | None = None
        self._batches: queue.Queue[Batch | None] = queue.Queue(BATCHES_WAITING * len(replicas))
        self._results: queue.Queue[tuple[Batch, list[_Copy]] | None] = queue.Queue(BATCHES_WAITING)
        self._encoding = [
            threading.Thread(target=self._guarded, args=(self._encode, encoders), name=f"encode-{number}", daemon=True)
            for number, encoders in enumerate(replicas)
        ]
        self._writing = threading.Thread(target=self._guarded, args=(self._write,), name="write", daemon=True)
        for thread in (*self._encoding, self._writing):
            thread.start()

    def submit(self, batch: Batch) -> None:
        """Hand over a batch; waits while the lanes are full, and raises what went wrong in them."""
        self._put(self._batches, batch)
        self._raise()

    def finish(self) -> None:
        """Wait until everything submitted is written; raises what went wrong."""
        for _ in self._encoding:
            self._put(self._batches, None)
        for thread in self._encoding:
            thread.join()
        self._put(self._results, None)
        self._writing.join()
        self._raise()

    def abandon(self) -> None:
        """End the threads; what is not written by now is given up. Nothing is left to give up after `finish`."""
        self._error = self._error or _Abandoned()
        for thread in (*self._encoding, self._writing):
            thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _put(self, where: queue.Queue, item: Any) -> None:  # type: ignore[type-arg]
        while self._error is None:
            try:
                return where.put(item, timeout=POLL_S)
            except queue.Full:
                continue
        return None

    def _get(self, where: queue.Queue) -> Any:  # type: ignore[type-arg]
        """Return the next item, None at the end or once something went wrong."""
        while self._error is None:
            try:
                return where.get(timeout=POLL_S)
            except queue.Empty:
                continue
        return None

    def _guarded(self, work: Callable[..., None], *given: Any) -> None:
        try:
            work(*given)
        except BaseException as error:
            self._error = self._error or error
            if not isinstance(error, Exception):
                raise

    def _encode(self, encoders: Mapping[str, Encoder]) -> None:
        while (batch := self._get(self._batches)) is not None:
            began = time.perf_counter()
            copies = self._run(encoders, batch)
            self._spend("encode_s", time.perf_counter() - began)
            self._put(self._results, (batch, copies))

    def _run(self, encoders: Mapping[str, Encoder], batch: Batch) -> list[_Copy]:
        inputs = batch.inputs
        if not inputs:
            return [_Copy(None) for _ in batch.members]
        first = encoders[batch.members[0].feature]
        try:
            tokens = first.forward(stack(first, inputs))
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's; this module imports no torch
                raise
            raise EncoderError(
                batch.members[0].feature,
                expected=f"a batch of {first.batch_size} to fit the device's memory",
                got=str(error).partition(".")[0],
                next_step="Give a smaller --batch-size, or --compute-dtype float16.",
            ) from error
        with self._timing:
            self._summary.num_forwards += 1
        return [_Copy(pool(encoders[member.feature], tokens, inputs, member.valid)) for member in batch.members]

    def _write(self) -> None:
        while (result := self._get(self._results)) is not None:
            batch, copies = result
            for member, copy in zip(batch.members, copies, strict=True):
                began = time.perf_counter()
                pooled = copy.wait()
                waited = time.perf_counter()
                member.write({} if pooled is None else {position: pooled[position] for position in batch.inputs})
                self._spend("encode_s", waited - began)
                self._spend("write_s", time.perf_counter() - waited)

    def _spend(self, part: str, seconds: float) -> None:
        with self._timing:
            setattr(self._summary, part, getattr(self._summary, part) + seconds)


class _Abandoned(Exception):  # noqa: N818 -- it only ends threads
    """Nothing more is to be done."""


class _Copy:
    """Pooled tokens on their way from the device to main memory."""

    def __init__(self, pooled: Any) -> None:
        self._host, self._arrived = pooled, None
        if getattr(pooled, "is_cuda", False):
            import torch

            self._host = torch.empty(pooled.shape, dtype=pooled.dtype, pin_memory=True)
            with torch.cuda.device(pooled.device), torch.inference_mode():
                self._host.copy_(pooled, non_blocking=True)
                self._arrived = torch.cuda.Event()
                self._arrived.record()
            self._pooled = pooled  # must outlive the copy

    def wait(self) -> np.ndarray | None:
        """Return (B, K, D) once it is here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return None if self._host is None else self._host.cpu().numpy()
