"""One network in memory for all encoders that ask for the same weights, device and precision.

It lives as long as an encoder holds it. So a sweep over token counts, or both EVA taps, load weights once.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featurecache.encoders.network import FrozenNetwork


@dataclass(eq=False)
class Loaded:
    """A network and what is to be said of it."""

    network: FrozenNetwork | None
    """None where only preprocessing is wanted."""
    config: Any
    weights: Mapping[str, str]
    """sha256 by weight file."""
    provenance: Mapping[str, str]


_loaded: weakref.WeakValueDictionary[tuple[str, ...], Loaded] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def load_once(key: tuple[str, ...], load: Callable[[], Loaded]) -> Loaded:
    """Return what `load` gave for this key, as long as somebody holds it."""
    with _lock:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = load()
        return found
