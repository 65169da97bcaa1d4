"""Features from the store on the way to the device: reading on one and on all cores, and copies from pinned memory.

A batch is what training reads for a row: random clips, all three features, into one block of pinned memory, which then
goes to the device in one copy. Beside it stand the bare copy of such a block in main memory, and the bare copy to the
device. The store lies in the page cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.material import NUM_CLIPS, Material
from featurecache.machine import usable_cores
from fusion_train.data.feature_reader import BatchBuffer, FeatureReader

CLIPS = 8
"""Of a batch."""
NAMES = {"audio": "whisper", "image": "eva-global", "video": "eva-temporal"}
PARTS_PER_THREAD = 4
"""Measured: reading and copying, each alone and on its threads."""


def measure(material: Material, case: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield GB/s by number of threads."""
    reader = FeatureReader.open(str(material.training / "features.zarr"), NAMES)
    spec = reader.buffer_spec(CLIPS)
    num_bytes = BatchBuffer(spec).block.numel()
    cores = usable_cores()
    counts = sorted({1, 2, 4, 8, 16, cores} & set(range(1, cores + 1)))
    seconds = material.measured_s / PARTS_PER_THREAD / len(counts)
    random = np.random.default_rng(0)
    batches = [random.choice(NUM_CLIPS, CLIPS, replace=False) for _ in range(64)]
    ids = [[f"clip_{number:07d}" for number in batch] for batch in batches]
    shown = [[True] * len(NAMES)] * CLIPS
    on_device = material.device.type == "cuda"
    for count in counts:
        blocks = [BatchBuffer(spec) for _ in range(count)]
        plain = [torch.empty_like(buffer.block) for buffer in blocks]
        streams = [torch.cuda.Stream() for _ in range(count)] if on_device else []

        def read(thread: int, turn: int, blocks: list[BatchBuffer] = blocks) -> None:
            reader.read_visible(ids[(thread * 7 + turn) % len(ids)], shown, blocks[thread])

        def copy_in_memory(
            thread: int, turn: int, blocks: list[BatchBuffer] = blocks, plain: list[torch.Tensor] = plain
        ) -> None:
            plain[thread].copy_(blocks[thread].block)

        def copy_to_device(
            thread: int, turn: int, blocks: list[BatchBuffer] = blocks, streams: list[Any] = streams
        ) -> None:
            with torch.cuda.stream(streams[thread]):
                blocks[thread].to(material.device)
                streams[thread].synchronize()

        def read_and_copy(thread: int, turn: int) -> None:
            read(thread, turn)
            copy_to_device(thread, turn)

        actions = {"read": read, "host_copy": copy_in_memory}
        if on_device:
            actions |= {"pinned_copy": copy_to_device, "read_and_copy": read_and_copy}
        rates = {name: per_second(action, count, seconds) for name, action in actions.items()}
        figures = {f"{name}_GB_per_s": round(value * num_bytes / 1e9, 2) for name, value in rates.items()}
        yield (
            f"{count}_threads",
            figures
            | {
                "read_clips_per_s": round(rates["read"] * CLIPS, 1),
                "read_over_host_copy": round(rates["read"] / rates["host_copy"], 3),
            },
        )


def per_second(action: Callable[[int, int], None], count: int, seconds: float) -> float:
    """How often per second `count` threads together do `action(thread, turn)`."""

    def work(thread: int, until: float) -> int:
        turn = 0
        while time.perf_counter() < until:
            action(thread, turn)
            turn += 1
        return turn

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda thread: action(thread, 0), range(count)))  # the first ones warm up
        began = time.perf_counter()
        done = sum(pool.map(lambda thread: work(thread, began + seconds), range(count)))
        return done / (time.perf_counter() - began)
