"""The registered store formats. `open_store`, the commands and the store contract suite go by this list.

A new format is one module with a class that implements `ShardFormat`, and one entry in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from featurecache.store.shard_format import ShardFormat
from featurecache.store.webdataset_store import WebDatasetFormat
from featurecache.store.zarr_store import ZarrFormat

_REGISTERED: tuple[ShardFormat, ...] = (ZarrFormat(), WebDatasetFormat())

FORMATS: dict[str, ShardFormat] = {shard_format.name: shard_format for shard_format in _REGISTERED}
"""Formats by name; the first is the default of a new store."""


def format_for_name(location: str) -> ShardFormat:
    """Return the format of a new store: the one whose ending its name has, the default for any other name."""
    name = location.rstrip("/")
    default, *_ = FORMATS.values()
    return next((shard_format for shard_format in FORMATS.values() if name.endswith(shard_format.endings)), default)


def formats_present(is_file: Callable[[str], bool]) -> Iterator[ShardFormat]:
    """Yield the formats of which some root file exists; `is_file` answers for a path below the store's root."""
    return (
        shard_format for shard_format in FORMATS.values() if any(is_file(path) for path in shard_format.root_files())
    )


def is_shard_of_any_format(relative: str) -> bool:
    """Return whether a path inside a feature's folder is one of a shard, in any registered format."""
    return any(shard_format.is_shard(relative) for shard_format in FORMATS.values())
