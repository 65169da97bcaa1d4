"""Encode and write while other threads decode: one thread per device, one writer thread, bounded queues between them.

    batches -> [2 per device] -> forward, pool, start the copy back (one thread per device) -> [2] -> rows, commit
    (writer)

A batch is one forward; all features that differ only in pooling or layer take their tokens from it. A thread that is
faster than the next one waits at the full queue. The first error stops every thread; the next `submit` or `finish`
raises it.
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
from featurecache.extract.stats import ExtractionStats
from featurecache.spec import canonical_json

BATCHES_WAITING = 2
"""Queue length before each device, and before the writer."""
POLL_S = 0.2
"""How often a thread that waits at a queue looks for an error of the other threads."""

Rows = Mapping[int, np.ndarray]
"""(K, D) by position in the batch."""


@dataclass(frozen=True)
class BatchTarget:
    """One feature that takes its tokens from a batch."""

    feature: str
    num_valid: Mapping[int, int]
    """Encoder tokens that each clip fills, by position; empty where the pooling of this feature ignores it."""
    write: Callable[[Rows], None]
    """Stores the rows; the writer thread calls it, in the order of submission per device."""


@dataclass(frozen=True)
class ForwardBatch:
    """The inputs of one forward, by position, and every feature that pools from it.

    Features share only what the forward reads. What pooling reads belongs to the target, because features that share a
    forward may differ in pooling.
    """

    inputs: Mapping[int, np.ndarray]
    targets: tuple[BatchTarget, ...]


def forward_key(encoder: Encoder) -> str:
    """Return a key that two encoders have in common if they can share preprocessing and forward.

    The key is the spec without pooling. `implementation` is left out too: two encoders of one class run the same
    code, and a pooling may have a number of its own. So is the layer of an encoder that gives the tokens of several
    layers from one forward.
    """
    identity = encoder.spec("float32").identity()
    if encoder.output_layer is not None:
        del identity["tap"]["blocks"]
    del identity["pooling"], identity["shape"], identity["implementation"]
    identity |= {"view": repr(encoder.view), "batch": encoder.batch_size, "class": type(encoder).__qualname__}
    return canonical_json(identity)


def stack_inputs(encoder: Encoder, inputs: Mapping[int, np.ndarray]) -> np.ndarray:
    """Stack inputs (…) by position into (B, …), B the encoder's batch size; zeros where a position has no input."""
    first = next(iter(inputs.values()))
    stacked = np.zeros((encoder.batch_size, *first.shape), first.dtype)
    for position, array in inputs.items():
        stacked[position] = array
    return stacked


def tokens_by_layer(
    encoder: Encoder, readers: Sequence[Encoder], inputs: Mapping[int, np.ndarray]
) -> Mapping[int | None, Any]:
    """Return `output_layer` of each of `readers`, which share a forward with `encoder` -> tokens (B, T, D)."""
    layers = sorted({reader.output_layer for reader in readers if reader.output_layer is not None})
    stacked = stack_inputs(encoder, inputs)
    if len(layers) < 2:
        return {encoder.output_layer: encoder.forward(stacked)}
    by_layer = encoder.forward_layers(stacked, layers)
    return {layer: by_layer[layer] for layer in layers}


def pool_tokens(encoder: Encoder, tokens: Any, positions: Container[int], num_valid: Mapping[int, int]) -> Any:
    """Pool (B, T, D) to (B, K, D); `num_valid` is the number of tokens that the clip at each position fills.

    Raises:
        KeyError: the encoder needs the number of valid tokens, and one of `positions` has none.
    """
    if encoder.needs_valid:
        # padding rows get 1: their pooled tokens are never stored
        valid = [num_valid[position] if position in positions else 1 for position in range(len(tokens))]
        return encoder.pool(tokens, valid)
    return encoder.pool(tokens)


class DevicePipeline:
    """The device threads and the writer thread; `submit` batches, then `finish`."""

    def __init__(self, replicas: Sequence[Mapping[str, Encoder]], stats: ExtractionStats) -> None:
        """Start one device thread per item of `replicas`: the encoders on one device, by feature name."""
        self._stats = stats
        self._stats_lock = threading.Lock()
        self._error: BaseException | None = None
        self._batches: queue.Queue[ForwardBatch | None] = queue.Queue(BATCHES_WAITING * len(replicas))
        self._results: queue.Queue[tuple[ForwardBatch, list[_HostCopy]] | None] = queue.Queue(BATCHES_WAITING)
        self._device_threads = [
            threading.Thread(target=self._guarded, args=(self._encode, encoders), name=f"encode-{number}", daemon=True)
            for number, encoders in enumerate(replicas)
        ]
        self._writer_thread = threading.Thread(target=self._guarded, args=(self._write,), name="write", daemon=True)
        for thread in (*self._device_threads, self._writer_thread):
            thread.start()

    def submit(self, batch: ForwardBatch) -> None:
        """Queue a batch; waits while the queue is full, and raises an error of the threads."""
        self._put(self._batches, batch)
        self._raise()

    def finish(self) -> None:
        """Wait until every submitted batch is written; raises an error of the threads."""
        for _ in self._device_threads:
            self._put(self._batches, None)
        for thread in self._device_threads:
            thread.join()
        self._put(self._results, None)
        self._writer_thread.join()
        self._raise()

    def abandon(self) -> None:
        """End the threads without writing the batches that are still queued. Does nothing after `finish`."""
        self._error = self._error or _Abandoned()
        for thread in (*self._device_threads, self._writer_thread):
            thread.join()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _put(self, target: queue.Queue[Any], item: Any) -> None:
        while self._error is None:
            try:
                return target.put(item, timeout=POLL_S)
            except queue.Full:
                continue
        return None

    def _get(self, source: queue.Queue[Any]) -> Any:
        """Return the next item; None at the end, or after an error."""
        while self._error is None:
            try:
                return source.get(timeout=POLL_S)
            except queue.Empty:
                continue
        return None

    def _guarded(self, target: Callable[..., None], *args: Any) -> None:
        """Run a thread's function and keep its error for the thread that submits."""
        try:
            target(*args)
        except BaseException as error:
            self._error = self._error or error
            if not isinstance(error, Exception):
                raise

    def _encode(self, encoders: Mapping[str, Encoder]) -> None:
        while (batch := self._get(self._batches)) is not None:
            began = time.perf_counter()
            copies = self._forward(encoders, batch)
            self._add_time("encode_s", time.perf_counter() - began)
            self._put(self._results, (batch, copies))

    def _forward(self, encoders: Mapping[str, Encoder], batch: ForwardBatch) -> list[_HostCopy]:
        if not batch.inputs:  # every clip of the batch failed or is absent
            return [_HostCopy(None) for _ in batch.targets]
        encoder = encoders[batch.targets[0].feature]
        try:
            tokens = tokens_by_layer(encoder, [encoders[target.feature] for target in batch.targets], batch.inputs)
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's; this module imports no torch
                raise
            raise EncoderError(
                batch.targets[0].feature,
                expected=f"a batch of {encoder.batch_size} to fit the device's memory",
                got=str(error).partition(".")[0],
                next_step="Give a smaller --batch-size, or --compute-dtype float16.",
            ) from error
        with self._stats_lock:
            self._stats.num_forwards += 1
        return [
            _HostCopy(pool_tokens(reader, tokens[reader.output_layer], batch.inputs, target.num_valid))
            for target in batch.targets
            for reader in (encoders[target.feature],)
        ]

    def _write(self) -> None:
        while (result := self._get(self._results)) is not None:
            batch, copies = result
            for target, copy in zip(batch.targets, copies, strict=True):
                began = time.perf_counter()
                pooled = copy.wait()
                arrived = time.perf_counter()
                target.write({} if pooled is None else {position: pooled[position] for position in batch.inputs})
                self._add_time("encode_s", arrived - began)
                self._add_time("write_s", time.perf_counter() - arrived)

    def _add_time(self, field_name: str, seconds: float) -> None:
        with self._stats_lock:
            setattr(self._stats, field_name, getattr(self._stats, field_name) + seconds)


class _Abandoned(Exception):  # noqa: N818 -- it only ends threads
    """The pipeline was abandoned."""


class _HostCopy:
    """Copy of pooled tokens from the device to main memory, under way until `wait` returns."""

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
        """Return (B, K, D) once the copy is complete; None for a batch without inputs."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return None if self._host is None else self._host.cpu().numpy()
