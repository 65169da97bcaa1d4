"""Read and write speed of the feature store beside a plain copy, and beside what else one could use.

Warm: random batches of 8 clips, one process, page cache warm, against a copy of the same rows from memory. What counts
is the worst over where a caller's buffer begins within a page (16 bytes into it for a large array of numpy), without a
buffer, every stored dtype and both formats; the copy goes into memory that begins at a page. Every contestant reads the
same rows in the same order; passes are interleaved with the copy, so that a noisy machine disturbs both alike, and the
best pass of each counts. Peers that are not installed are named under `absent`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import store_peers

import featurecache
from featurecache.importers.npy import unverified_spec
from featurecache.store.copying import empty

BATCH = 8
SHAPES = {"64x1280": (64, 1280), "1025x1408": (1025, 1408)}
SOURCE = "00" * 31 + "01"
OFFSETS = (0, 16, 64, 2048)
"""Where a caller's buffer begins, in bytes from the start of a page."""
DTYPES = ("float16", "bfloat16", "int8")
LOCATIONS = {"zarr": "{}.zarr", "webdataset": "{}.wds"}
READ_BLOCK_BYTES = 4 << 20
COLD_PASSES = 9

OPTIONS = [
    click.Option(["--megabytes"], type=int, default=256, show_default=True, help="Size of each feature."),
    click.Option(["--passes"], type=int, default=9, show_default=True),
    click.Option(["--folder"], default=None, help="Where to write; a temporary folder by default."),
    click.Option(["--peers/--no-peers"], default=True, show_default=True),
    click.Option(["--million/--no-million"], default=True, show_default=True, help="Also a store of a million clips."),
]


def measure(megabytes: int, passes: int, folder: str | None, peers: bool, million: bool) -> dict[str, Any]:
    """All figures; ratios are over the plain operation named in their key."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix="store-read-") as place:
        root = Path(place)
        for label, shape in SHAPES.items():
            tokens = make_tokens(megabytes << 20, shape)
            ids = [f"clip_{number:06d}" for number in range(len(tokens))]
            figures |= _prefixed(label, write_figures(root / "ours.zarr", label, ids, tokens))
            figures |= _prefixed(label, warm_figures(root, label, ids, tokens, passes, peers))
            figures |= _prefixed(label, placement_figures(root, label, ids, tokens, passes))
            figures |= _prefixed(label, cold_figures(root / "ours.zarr", label, ids))
        if million:
            figures |= size_figures(root)
    return figures


def make_tokens(num_bytes: int, shape: tuple[int, int]) -> np.ndarray:
    """(N, K, D) float16 that look like activations."""
    count = max(4 * BATCH, num_bytes // (2 * shape[0] * shape[1]))
    some = np.random.default_rng(0).standard_normal((BATCH, *shape), np.float32).astype(np.float16)
    tokens = np.empty((count, *shape), np.float16)
    for number in range(count):
        np.multiply(some[number % BATCH], np.float16(1 + number / count), out=tokens[number])
    return tokens


def write_store(location: Path, name: str, ids: list[str], tokens: np.ndarray, stored_dtype: str = "float16") -> float:
    """Extract into a store without an encoder; returns the seconds from the first row to the last commit."""
    writer = featurecache.open_store(location, "a").writer(name, unverified_spec(name, tokens.shape[1:], stored_dtype))
    writer.plan(ids)
    place = {clip_id: number for number, clip_id in enumerate(ids)}
    began = time.perf_counter()
    for shard in writer.pending():
        with writer.begin(shard) as shard_writer:
            for slot, clip_id in enumerate(shard.ids):
                shard_writer.put(slot, tokens[place[clip_id]], SOURCE)
            shard_writer.commit()
    return time.perf_counter() - began


def write_figures(location: Path, name: str, ids: list[str], tokens: np.ndarray) -> dict[str, Any]:
    """Writing with checksums and the commit protocol, against write + fsync of the same bytes."""
    plain_s, ours_s = [], []
    for _ in range(3):
        plain = location.with_name("plain.bin")
        began = time.perf_counter()
        with plain.open("wb") as file:
            for row in tokens:
                file.write(row.data)
            file.flush()
            os.fsync(file.fileno())
        plain_s.append(time.perf_counter() - began)
        plain.unlink()
        shutil.rmtree(location / name, ignore_errors=True)
        ours_s.append(write_store(location, name, ids, tokens))
    gigabytes = tokens.nbytes / 1e9
    best = min(ours_s)
    return {
        "write_GBps": round(gigabytes / best, 3),
        "write_plain_GBps": round(gigabytes / min(plain_s), 3),
        "write_over_plain": round(min(plain_s) / best, 3),
    }


def warm_figures(root: Path, name: str, ids: list[str], tokens: np.ndarray, passes: int, peers: bool) -> dict[str, Any]:
    """Random batches into one buffer, against a copy of rows in memory."""
    order = np.random.default_rng(1).permutation(len(ids))[: len(ids) // BATCH * BATCH].reshape(-1, BATCH).tolist()
    batches = [[ids[number] for number in batch] for batch in order]
    out = np.empty((BATCH, *tokens.shape[1:]), np.float16)
    num_bytes = len(order) * out.nbytes

    def copy() -> None:
        for batch in order:
            for place, number in zip(out, batch, strict=True):
                np.copyto(place, tokens[number])

    opened = featurecache.open_store(root / "ours.zarr")[name]
    first_s = _seconds(_reader(opened, batches, out))
    unchecked_first_s = _seconds(
        _reader(featurecache.open_store(root / "ours.zarr", verify="never")[name], batches, out)
    )
    copy_s, ours_s = _interleaved(copy, _reader(opened, batches, out), passes)
    figures: dict[str, Any] = {
        "memcpy_GBps": round(num_bytes / copy_s / 1e9, 2),
        "warm_GBps": round(num_bytes / ours_s / 1e9, 2),
        "warm_over_memcpy": round(copy_s / ours_s, 3),
        "first_pass_checked_GBps": round(num_bytes / first_s / 1e9, 2),
        "first_pass_unchecked_GBps": round(num_bytes / unchecked_first_s / 1e9, 2),
    }
    if peers:
        measured: dict[str, float] = {}
        absent = []
        for peer in store_peers.PEERS:
            try:
                read = peer.prepare(root, name, ids, tokens, order, out)
            except ImportError as error:
                absent.append(f"{peer.name} ({error.name or error})")
                continue
            read_bytes = num_bytes * peer.share
            read()  # warm
            measured[peer.name] = read_bytes / min(_seconds(read) for _ in range(2 if peer.slow else 3)) / 1e9
        figures |= {f"peer_{key}_GBps": round(value, 3) for key, value in measured.items()}
        ours = num_bytes / ours_s / 1e9
        baselines = [
            value for key, value in measured.items() if key.startswith(("tensorstore", "litdata", "webdataset"))
        ]
        figures["over_best_array_or_streaming_store"] = round(ours / max(baselines), 1) if baselines else None
        figures["over_zarr_python"] = round(ours / measured["zarr_python"], 1) if "zarr_python" in measured else None
        figures["absent"] = absent
    return figures


def placement_figures(root: Path, name: str, ids: list[str], tokens: np.ndarray, passes: int) -> dict[str, Any]:
    """Warm reads over the copy, by format, stored dtype and place of the buffer; and the worst of each dtype."""
    tokens, ids = tokens[: max(4 * BATCH, len(tokens) // 4)], ids[: max(4 * BATCH, len(tokens) // 4)]
    order = np.random.default_rng(1).permutation(len(ids))[: len(ids) // BATCH * BATCH].reshape(-1, BATCH).tolist()
    batches = [[ids[number] for number in batch] for batch in order]
    copied = _at_offset(0, (BATCH, *tokens.shape[1:]), np.dtype(np.float16))

    def copy() -> None:
        for batch in order:
            for place, number in zip(copied, batch, strict=True):
                np.copyto(place, tokens[number])

    ratios: dict[str, float] = {}
    for form, pattern in LOCATIONS.items():
        for stored_dtype in DTYPES:
            location = root / pattern.format(f"{name}-{stored_dtype}")
            write_store(
                location, name, ids, tokens if stored_dtype != "bfloat16" else tokens.astype(np.float32), stored_dtype
            )
            feature = featurecache.open_store(location)[name]
            for offset in (*OFFSETS, None):
                out = None if offset is None else _at_offset(offset, copied.shape, feature.dtype)
                copy_s, read_s = _interleaved(copy, _reader(feature, batches, out), passes)
                ratios[f"{form}_{stored_dtype}_{'own' if offset is None else offset}"] = round(copy_s / read_s, 3)
            shutil.rmtree(location)
    worst = {kind: min(value for key, value in ratios.items() if f"_{kind}_" in key) for kind in DTYPES}
    return {f"placed_{key}": value for key, value in ratios.items()} | {
        f"worst_{kind}_over_memcpy": value for kind, value in worst.items()
    }


def _reader(feature: Any, batches: list[list[str]], out: np.ndarray | None) -> Callable[[], None]:
    def read() -> None:
        for batch in batches:
            feature.read(batch, out)

    return read


def _at_offset(offset: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that begins `offset` bytes into a page."""
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    return empty((offset + num_bytes,), np.dtype(np.uint8))[offset:].view(dtype).reshape(shape)


def cold_figures(location: Path, name: str, ids: list[str]) -> dict[str, Any]:
    """Shard files dropped from the page cache: batches in row order, against plain reads of the same files.

    Disks vary from second to second: the three take turns, in another order each time, and the best of each counts.
    """
    shards = sorted((location / name / "c").glob("*/0/0"), key=lambda path: int(path.parts[-3]))
    num_bytes = sum(path.stat().st_size for path in shards)
    out = np.empty((BATCH, *featurecache.open_store(location)[name].shape), np.float16)

    def read_ours() -> None:
        feature = featurecache.open_store(location)[name]
        for begin in range(0, len(ids), BATCH):
            batch = ids[begin : begin + BATCH]
            feature.read(batch, out[: len(batch)])

    contestants = [lambda: _read_plain(shards), lambda: _read_parallel(shards), read_ours]
    taken: list[list[float]] = [[], [], []]
    for turn in range(COLD_PASSES):
        for number in sorted(range(3), key=lambda number: (number + turn) % 3):
            _drop(shards)
            taken[number].append(_seconds(contestants[number]))
    plain_s, parallel_s, ours_s = (min(each) for each in taken)
    return {
        "cold_GBps": round(num_bytes / ours_s / 1e9, 3),
        "cold_plain_sequential_GBps": round(num_bytes / plain_s / 1e9, 3),
        "cold_plain_parallel_GBps": round(num_bytes / parallel_s / 1e9, 3),
        "cold_over_best_plain": round(min(plain_s, parallel_s) / ours_s, 3),
        "cold_over_best_plain_by_medians": round(min(map(np.median, taken[:2])) / float(np.median(taken[2])), 3),
    }


def size_figures(root: Path) -> dict[str, Any]:
    """Opening stores of 10^3 to 10^6 clips in a fresh process: seconds, and megabytes it adds."""
    figures: dict[str, Any] = {}
    for exponent in (3, 4, 5, 6):
        location = root / f"many-{exponent}.zarr"
        count = 10**exponent
        ids = [f"dataset/clip_{number:07d}" for number in range(count)]
        began = time.perf_counter()
        write_store(location, "small", ids, np.ones((count, 1, 8), np.float16))
        write_s = time.perf_counter() - began
        done = subprocess.run(
            [sys.executable, __file__, str(location)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        told = json.loads(done.stdout)
        figures[f"clips_1e{exponent}_open_s"] = told["open_s"]
        figures[f"clips_1e{exponent}_added_MB"] = told["added_MB"]
        figures[f"clips_1e{exponent}_read_us_a_clip"] = told["read_us"]
        figures[f"clips_1e{exponent}_write_us_a_clip"] = round(write_s / count * 1e6, 1)
        shutil.rmtree(location)
    return figures


def _open_and_tell(location: str) -> None:
    """Run in a process of its own: open a store, look up clips, and say what it took."""
    before_kb = _peak_kb()
    began = time.perf_counter()
    feature = featurecache.open_store(location)["small"]
    num_clips = len(feature)
    feature["dataset/clip_0000007"]
    open_s = time.perf_counter() - began
    added_mb = (_peak_kb() - before_kb) / 1024
    some = [f"dataset/clip_{number:07d}" for number in np.random.default_rng(0).integers(0, num_clips, 1000)]
    began = time.perf_counter()
    for begin in range(0, 1000, BATCH):
        feature.read(some[begin : begin + BATCH])
    read_us = (time.perf_counter() - began) * 1e3
    print(json.dumps({"open_s": round(open_s, 3), "added_MB": round(added_mb, 1), "read_us": round(read_us, 1)}))


def _peak_kb() -> int:
    """Most memory this process has held; getrusage would count its parent's."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def _interleaved(first: Callable[[], None], second: Callable[[], None], passes: int) -> tuple[float, float]:
    """Least seconds of both, taken in turns, after a pass to warm up."""
    first()
    second()
    taken = [(_seconds(first), _seconds(second)) for _ in range(passes)]
    return min(a for a, _ in taken), min(b for _, b in taken)


def _seconds(function: Callable[[], None]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _drop(paths: list[Path]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _read_plain(paths: list[Path]) -> None:
    buffer = bytearray(READ_BLOCK_BYTES)
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        while os.readv(fd, [buffer]):
            pass
        os.close(fd)


def _read_parallel(paths: list[Path]) -> None:
    def block(place: tuple[Path, int]) -> None:
        fd = os.open(place[0], os.O_RDONLY)
        os.preadv(fd, [bytearray(READ_BLOCK_BYTES)], place[1])
        os.close(fd)

    places = [(path, begin) for path in paths for begin in range(0, path.stat().st_size, READ_BLOCK_BYTES)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(block, places))


def _prefixed(label: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {f"{label}_{key}": value for key, value in figures.items()}


if __name__ == "__main__":
    _open_and_tell(sys.argv[1])
