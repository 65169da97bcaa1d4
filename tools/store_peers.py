"""What a user could keep the same tokens in instead: how each is written, and how a batch is read from it.

Every peer reads the same rows, in the same order, into the same buffer where its interface allows; litdata and
webdataset stream in file order, which is what they do best. `prepare` returns the function to time, and raises
ImportError where the library is not installed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Prepare = Callable[[Path, str, list[str], np.ndarray, list[list[int]], np.ndarray], Callable[[], None]]


@dataclass(frozen=True)
class Peer:
    """One rival."""

    name: str
    prepare: Prepare
    share: float = 1.0
    """Part of the rows that is read: the slowest would take minutes."""

    @property
    def slow(self) -> bool:
        return self.share < 1


def _some(order: list[list[int]], share: float) -> list[list[int]]:
    return order[: max(1, round(len(order) * share))]


def zarr_python(root: Path, name: str, ids: list[str], tokens: Any, order: Any, out: Any) -> Callable[[], None]:
    import zarr

    array = zarr.open_group(str(root / "ours.zarr"), mode="r")[name]

    def read() -> None:
        for batch in _some(order, ZARR_SHARE):
            for place, number in zip(out, batch, strict=True):
                place[...] = array[number]

    return read


def tensorstore(root: Path, name: str, ids: list[str], tokens: Any, order: Any, out: Any) -> Callable[[], None]:
    import tensorstore as ts

    where = {"driver": "file", "path": str(root / "ours.zarr" / name)}
    context = {"cache_pool": {"total_bytes_limit": 0}}
    array = ts.open({"driver": "zarr3", "kvstore": where, "context": context}, read=True).result()

    def read() -> None:
        for batch in order:
            for place, future in zip(out, [array[number].read() for number in batch], strict=True):
                place[...] = future.result()

    return read


def safetensors(root: Path, name: str, ids: list[str], tokens: Any, order: Any, out: Any) -> Callable[[], None]:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = _fresh(root / f"{name}.safetensors")
    save_file(dict(zip(ids, tokens, strict=True)), path)
    file = safe_open(path, framework="np")

    def read() -> None:
        for batch in order:
            for place, number in zip(out, batch, strict=True):
                place[...] = file.get_tensor(ids[number])

    return read


def _npy(dtype: str) -> Prepare:
    def prepare(root: Path, name: str, ids: list[str], tokens: Any, order: Any, out: Any) -> Callable[[], None]:
        folder = _fresh(root / f"{name}-npy-{dtype}")
        folder.mkdir()
        for clip_id, row in zip(ids, tokens, strict=True):
            np.save(folder / f"{clip_id}.npy", row.astype(dtype)[None])

        def read() -> None:
            for batch in order:
                for place, number in zip(out, batch, strict=True):
                    place[...] = np.load(folder / f"{ids[number]}.npy")[0]

        return read

    return prepare


def litdata(root: Path, name: str, ids: list[str], tokens: Any, order: Any, out: Any) -> Callable[[], None]:
    from litdata.streaming import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder = _fresh(root / f"{name}-litdata")
    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, row in enumerate(tokens):
        writer[number] = {"tokens": row}
    writer.done()
    writer.merge(1)
    dataset = StreamingDataset(str(folder))

    def read() -> None:
        for number, sample in enumerate(dataset):
            out[number % len(out)] = sample["tokens"]

    return read


def webdataset(root: Path, name: str, ids: list[str], tokens: Any, order: Any, out: Any) -> Callable[[], None]:
    import webdataset as wds

    import featurecache
    from featurecache.maintenance.convert import convert_store

    location = root / "ours.wds"
    convert_store(featurecache.open_store(root / "ours.zarr"), featurecache.open_store(location, "a"), [name])
    shards = [str(path) for path in sorted((location / name).glob("*.tar"))]

    def read() -> None:
        samples = wds.WebDataset(shards, shardshuffle=False).decode()
        for number, sample in enumerate(samples):
            out[number % len(out)] = sample[f"{name}.npy"]

    return read


ZARR_SHARE = 0.05

PEERS = [
    Peer("zarr_python", zarr_python, ZARR_SHARE),
    Peer("tensorstore", tensorstore),
    Peer("litdata", litdata),
    Peer("webdataset", webdataset),
    Peer("safetensors", safetensors),
    Peer("npy_fp16", _npy("float16")),
    Peer("npy_fp32", _npy("float32")),
]


def _fresh(path: Path) -> Path:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return path
