"""From clips to the networks' inputs, on threads: hash, decode once for all encoders, preprocess.

What comes out for a clip and a feature is a `Prepared`: an input, or why there is none. Clips come out in the order
they went in, and only a bounded number is in flight, so memory does not grow with the list. It knows no store.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from featurecache.clips import Clip
from featurecache.encoders import Encoder, View
from featurecache.errors import FeatureCacheError, MediaError
from featurecache.media import Absent, decode_each
from featurecache.sources import clip_source


@dataclass(frozen=True)
class Prepared:
    """One clip, ready for one encoder, or not."""

    source: str
    """Hash of what the view sees; empty where the media cannot be read."""
    input: np.ndarray | None = None
    absent: str = ""
    """Why the clip does not have what the encoder reads."""
    failed: str = ""
    """Why it has it, but it cannot be used."""


@dataclass(frozen=True)
class PreparedClip:
    """One clip for every feature that wants it."""

    clip: Clip
    by_feature: Mapping[str, Prepared]
    seconds: float


def prepare(clip: Clip, encoders: Mapping[str, Encoder]) -> PreparedClip:
    """Hash, decode and preprocess one clip for `encoders`, by feature name; never raises for a bad clip."""
    began = time.perf_counter()
    views = [encoder.view for encoder in encoders.values()]
    decoded = _attempt(lambda: decode_each(clip, views))
    results = {}
    for index, (name, encoder) in enumerate(encoders.items()):
        source = _attempt(lambda view=encoder.view: clip_source(clip, view))
        result = decoded if isinstance(decoded, Exception) else decoded[index]
        if not isinstance(result, Exception | Absent):
            result = _attempt(lambda result=result, encoder=encoder: encoder.preprocess(result))
        results[name] = _prepared("" if isinstance(source, Exception) else source, result)
    return PreparedClip(clip, results, time.perf_counter() - began)


def prepare_all(
    jobs: Iterable[tuple[Clip, Mapping[str, Encoder]]], pool: ThreadPoolExecutor, in_flight: int
) -> Iterator[PreparedClip]:
    """Prepare clips on the pool and yield them in order; at most `in_flight` are held at once."""
    waiting: deque[Future[PreparedClip]] = deque()
    try:
        for clip, encoders in jobs:
            waiting.append(pool.submit(prepare, clip, encoders))
            if len(waiting) >= in_flight:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def current_source(clip: Clip, view: View) -> str:
    """Return the clip's source hash, or an empty string where its media are not here to be hashed."""
    try:
        return clip_source(clip, view)
    except OSError:
        return ""


def _attempt(work):  # type: ignore[no-untyped-def]
    """Return what `work` returns, or its exception: one bad clip must not end the extraction of a million."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  (the one broad except of the project; the reason goes into the record)
        return error


def _prepared(source: str, result: np.ndarray | Absent | Exception) -> Prepared:
    if isinstance(result, Absent):
        return Prepared(source, absent=result.reason)
    if isinstance(result, Exception):
        return Prepared(source, failed=reason_of(result))
    return Prepared(source, input=result)


def reason_of(error: Exception) -> str:
    """Return one line for the record: no clip id, which is beside it, and no path, which no store may hold."""
    if isinstance(error, MediaError):
        text = str(error).removeprefix(error.subject + ": ")
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, FeatureCacheError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split()).rstrip(".")[:500]
