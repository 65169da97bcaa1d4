"""A Ray cluster, connected to for as long as a block runs. Needs the extra `ray`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from featurecache.extras import require


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Yield the package `ray`, connected to the cluster at `address`, to one that is found, or to a local one.

    A connection that was there before is used and left open.

    Raises:
        MissingExtraError: ray is not installed.
        ConnectionError: nothing answers at `address`.
    """
    require("ray", "ray", subject="--engine ray")
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    options = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
    if address is not None:
        options.pop("include_dashboard")
        ray.init(address, **options)
        return
    with contextlib.suppress(ConnectionError):
        ray.init("auto", log_to_driver=False, logging_level="ERROR")
        return
    ray.init(**options)
