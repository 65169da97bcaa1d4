"""Stores of tokens on disk. `open_store` opens one; importing this package imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from featurecache.errors import StoreError, StoreNotFoundError
from featurecache.extras import require
from featurecache.store.formats import FORMATS, format_for_name, formats_present
from featurecache.store.local import LocalStore

__all__ = ["FORMATS", "LocalStore", "open_store"]

DEFAULT_CACHE_BYTES = 64 << 30
"""Upper bound for the cache of shards of stores at a URL."""


def open_store(
    location: str | os.PathLike[str],
    mode: Literal["r", "a"] = "r",
    *,
    format: str | None = None,
    verify: Literal["first-touch", "never"] = "first-touch",
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    storage_options: dict[str, Any] | None = None,
) -> LocalStore:
    """Open a store for reading ("r") or for extraction ("a", which creates it if it does not exist).

    Args:
        location: a folder, or a URL that fsspec reads (s3://, gs://, https://, memory://). A store at a URL is
            read-only.
        format: name of a registered format ("zarr" or "webdataset") for a new store. Without it, a name that ends
            in .wds, .tar or .webdataset gives WebDataset and any other name Zarr. An existing store shows its format
            by its files.
        verify: compare the checksum of a row at its first read, or never.
        cache: folder that keeps the shards of a store at a URL; by default the user's cache folder.
        cache_bytes: upper bound for the size of that folder.
        storage_options: options for fsspec.

    Raises:
        StoreNotFoundError: no store exists there, and `mode` is "r".
        StoreError: an unknown mode or format, or a store of another format than `format`.
        MissingExtraError: `location` is a URL, and fsspec is not installed.
    """
    address = os.fspath(location)
    for key, value, choices in (
        ("mode", mode, ("r", "a")),
        ("verify", verify, ("first-touch", "never")),
        ("format", format, (None, *FORMATS)),
    ):
        if value not in choices:
            raise StoreError(key, expected=" | ".join(choice for choice in choices if choice), got=repr(value))
    address = address.removeprefix("file://")
    if "://" in address:
        if mode != "r":
            raise StoreError(
                address,
                expected='mode "r": remote stores are read only',
                got=f'"{mode}"',
                next_step="Extract to a local store, then copy it.",
            )
        require("remote", "fsspec", subject=address)
        from featurecache.store.remote import RemoteStore  # fsspec is an extra

        folder = None if cache is None else Path(cache)
        return RemoteStore(address, verify, folder, cache_bytes, dict(storage_options or {}))
    root = Path(address)
    present = [shard_format.name for shard_format in formats_present(lambda path: (root / path).is_file())]
    if present and format not in (None, *present):
        raise StoreError(
            address,
            expected=f"a {format} store",
            got=present[0],
            next_step="Omit the format, or name another place.",
        )
    chosen = present[0] if present else format or format_for_name(address).name
    store = LocalStore(address, FORMATS[chosen], mode, verify)
    # A folder with files but without a store's files holds something else. The folder of an extraction that was killed
    # at its very start is empty.
    if mode == "r" and not present and any(path.is_file() and path.name[0] != "." for path in root.iterdir()):
        raise StoreNotFoundError(
            address,
            expected="a store",
            got="a folder without one",
            next_step="Run `fcache extract` to make it, or name another.",
        )
    return store
