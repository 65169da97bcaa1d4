"""Small stores of every kind, made without an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import featurecache
from featurecache.spec import Spec
from featurecache.store.formats import FORMATS
from featurecache.store.local import LocalStore
from featurecache.store.shard_format import ShardFormat
from featurecache.store.writer import StoredFeatureWriter
from featurecache.store.zarr_store import ARCHIVE_CODEC

SHAPE = (5, 6)
SHORT_NAMES = {ARCHIVE_CODEC: "archive"}


class StoreKind(NamedTuple):
    """One codec of a registered format, and the name of a folder for such a store."""

    folder: str
    codec: str
    format: str


def kinds_of(shard_format: ShardFormat) -> dict[str, StoreKind]:
    """A kind per codec; the uncompressed store has the name of its format."""
    kinds = {}
    for codec in shard_format.codecs:
        kind = shard_format.name if codec == "none" else SHORT_NAMES.get(codec, f"{shard_format.name}-{codec}")
        stem = "features" if codec == "none" else kind
        kinds[kind] = StoreKind(stem + shard_format.endings[0], codec, shard_format.name)
    return kinds


KINDS = {kind: settings for known in FORMATS.values() for kind, settings in kinds_of(known).items()}
"""Every codec of every registered format."""


def make_spec(stored_dtype: str = "float16", shape: tuple[int, int] = SHAPE, **changes: object) -> Spec:
    fields: dict = {
        "encoder": "whisper",
        "implementation": 1,
        "weights": {"model.safetensors": "ab" * 32},
        "architecture": {"heads": 2},
        "tap": {"blocks": 4},
        "preprocessing": {"rate": 16_000},
        "pooling": {"rule": "adaptive", "tokens": shape[0]},
        "compute_dtype": "float32",
        "stored_dtype": stored_dtype,
        "shape": shape,
        "provenance": {"hub": "some/model"},
    }
    return Spec(**(fields | changes))


def tokens_of(clip_id: str, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """The tokens that any extraction of this clip gives."""
    return np.random.default_rng(list(clip_id.encode())).standard_normal(shape, np.float32)


def source_of(clip_id: str) -> str:
    return clip_id.encode().hex().rjust(64, "1")[-64:]


def fill(writer: StoredFeatureWriter, failed: Sequence[str] = (), absent: Sequence[str] = ()) -> None:
    """Extract every pending shard."""
    for shard in writer.pending():
        with writer.begin(shard) as shard_writer:
            for slot, clip_id in enumerate(shard.ids):
                if clip_id in failed:
                    shard_writer.fail(slot, "the decoder gave up", source_of(clip_id))
                elif clip_id in absent:
                    shard_writer.absent(slot, "no audio stream", source_of(clip_id))
                else:
                    shard_writer.put(slot, tokens_of(clip_id, writer.shape), source_of(clip_id))
            shard_writer.commit()


def clip_ids(count: int, first: int = 0) -> list[str]:
    return [f"set/clip_{number:03d}" for number in range(first, first + count)]


def build(
    location: Path, kind: str = "zarr", stored_dtype: str = "float16", name: str = "whisper", count: int = 10
) -> LocalStore:
    """A store of two segments, a failed, an absent and a retried clip; four rows per shard."""
    ids = clip_ids(count)
    store = featurecache.open_store(location, mode="a")
    writer = store.writer(name, make_spec(stored_dtype), shard_rows=4, codec=KINDS[kind][1])
    writer.plan(ids)
    fill(writer, failed=[ids[3], ids[5]], absent=[ids[4]])
    writer.plan(clip_ids(count + 2))
    writer.retry([ids[3]])
    fill(writer)
    return featurecache.open_store(location, mode="a")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
