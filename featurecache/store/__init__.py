"""Stores: where tokens are kept. `open_store` opens one; importing this package imports no torch."""

from __future__ import annotations

import os
from typing import Literal

from featurecache.errors import StoreError
from featurecache.store.local import LocalStore
from featurecache.store.zarr_store import ZarrFormat

__all__ = ["LocalStore", "open_store"]


def open_store(
    location: str | os.PathLike[str],
    mode: Literal["r", "a"] = "r",
    *,
    verify: Literal["first-touch", "never"] = "first-touch",
) -> LocalStore:
    """Open a store to read ("r") or to extract into ("a", created where there is none).

    `verify` says when the checksum of a row is compared: at its first read, or not at all.

    Raises:
        StoreNotFoundError: nothing is there, and `mode` is "r".
        StoreError: another mode, or a folder that is no store.
    """
    if mode not in ("r", "a"):
        raise StoreError("mode", expected='"r" | "a"', got=repr(mode))
    if verify not in ("first-touch", "never"):
        raise StoreError("verify", expected='"first-touch" | "never"', got=repr(verify))
    return LocalStore(os.fspath(location), ZarrFormat(), mode, verify)
