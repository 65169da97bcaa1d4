"""Stores: where tokens are kept. `open_store` opens one; importing this package imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from featurecache.errors import StoreError, StoreNotFoundError
from featurecache.extras import require
from featurecache.store.formats import ShardFormat
from featurecache.store.local import LocalStore
from featurecache.store.shard_cache import DEFAULT_CACHE_BYTES
from featurecache.store.webdataset_store import WebDatasetFormat
from featurecache.store.zarr_store import ZarrFormat

__all__ = ["FORMATS", "LocalStore", "open_store"]

FORMATS: dict[str, type[ShardFormat]] = {"zarr": ZarrFormat, "webdataset": WebDatasetFormat}
WEBDATASET_ENDINGS = (".wds", ".tar", ".webdataset")


def open_store(
    location: str | os.PathLike[str],
    mode: Literal["r", "a"] = "r",
    *,
    format: Literal["zarr", "webdataset"] | None = None,
    verify: Literal["first-touch", "never"] = "first-touch",
    cache: str | os.PathLike[str] | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    storage_options: dict[str, Any] | None = None,
) -> LocalStore:
    """Open a store to read ("r") or to extract into ("a", created where there is none).

    The format of a store that is there shows in its files; that of a new one is `format`, by default WebDataset for a
    name that ends in .wds and Zarr otherwise. `verify` says when the checksum of a row is compared: at its first read,
    or not at all.

    A location with a scheme (s3://, gs://, https://, memory://) is read through fsspec, which `storage_options` go to;
    its shards are kept in the folder `cache`, by default the user's, of at most `cache_bytes`.

    Raises:
        StoreNotFoundError: nothing is there, and `mode` is "r".
        StoreError: an unknown mode or format, or a store of another format than asked for.
        MissingExtraError: a location with a scheme, and fsspec is not installed.
    """
    place = os.fspath(location)
    for key, value, known in (
        ("mode", mode, ("r", "a")),
        ("verify", verify, ("first-touch", "never")),
        ("format", format, (None, *FORMATS)),
    ):
        if value not in known:
            raise StoreError(key, expected=" | ".join(str(each) for each in known if each), got=repr(value))
    place = place.removeprefix("file://")
    if "://" in place:
        if mode != "r":
            raise StoreError(
                place,
                expected='mode "r": remote stores are read only',
                got=f'"{mode}"',
                next_step="Extract to a local store, then copy it.",
            )
        require("remote", "fsspec", subject=place)
        from featurecache.store.remote import RemoteStore  # fsspec is an extra

        folder = None if cache is None else Path(cache)
        return RemoteStore(place, FORMATS, verify, folder, cache_bytes, dict(storage_options or {}))
    found = [
        name for name, form in FORMATS.items() if any((Path(place) / file).is_file() for file in form().root_files())
    ]
    if found and format not in (None, *found):
        raise StoreError(
            place, expected=f"a {format} store", got=found[0], next_step="Leave the format out, or name another place."
        )
    by_name = "webdataset" if place.rstrip("/").endswith(WEBDATASET_ENDINGS) else "zarr"
    store = LocalStore(place, FORMATS[found[0] if found else format or by_name](), mode, verify)
    if mode == "r" and not found and any(each.is_file() and each.name[0] != "." for each in Path(place).iterdir()):
        # A folder of other things; one that a killed extraction has only just made is empty.
        raise StoreNotFoundError(
            place,
            expected="a store",
            got="a folder without one",
            next_step="Run `fcache extract` to make it, or name another.",
        )
    return store
