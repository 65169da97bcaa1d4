"""Connection to a Ray cluster for the time of a `with` block. Needs the extra `ray`.

Extraction and sweeps both use it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from featurecache.extras import require


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Yield the package `ray`, connected to the cluster at `address`; if None, to a running or a local cluster.

    A connection that exists already is used and left open.

    Raises:
        MissingExtraError: ray is not installed.
        ConnectionError: nothing answers at `address`.
    """
    require("ray", "ray", subject="--engine ray")
    import ray

    connected_before = ray.is_initialized()
    if not connected_before:
        _connect(ray, address)
    try:
        yield ray
    finally:
        if not connected_before:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    options = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        ray.init(address, **options)
        return
    with contextlib.suppress(ConnectionError):
        ray.init("auto", **options)
        return
    ray.init(include_dashboard=False, **options)
