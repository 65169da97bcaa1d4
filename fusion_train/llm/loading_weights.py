"""Say which weights are being loaded, in one line of our own: a spinner on a terminal, a plain line elsewhere.

Bars and notices of the libraries that load them are kept off the terminal: what is wrong with weights is raised.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from featurecache.console import say
from featurecache.encoders.checkpoint import quiet_transformers
from featurecache.outside_text import one_line
from featurecache.terminal import Screen
from fusion_train.processes import this_process


@contextmanager
def loading_weights(kind: str, place: str | Path) -> Iterator[None]:
    """Say on standard error, in the main process, that the block loads `kind` from `place`, a folder or hub id."""
    name = f"{kind} {Path(place).resolve().name if Path(place).exists() else place}"
    with quiet_transformers():
        if not this_process().is_main_process:
            yield
        elif not sys.stderr.isatty():
            say(f"loading {name}", err=True)
            yield
        else:
            began = time.monotonic()
            with Screen(stderr=True).status(one_line(f"loading {name}")):
                yield
            say(f"{name}: loaded in {time.monotonic() - began:.1f} s", err=True)
