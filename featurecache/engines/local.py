"""Run an extraction in this process, on one device or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from featurecache.extract.job import ExtractionJob
from featurecache.extract.run import extract
from featurecache.extract.stats import Summary
from featurecache.store import open_store


def run(
    work: ExtractionJob,
    devices: Sequence[str] = ("auto",),
    *,
    rank: tuple[int, int] = (0, 1),
    notify: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Extract here; devices share the batches, one named twice runs two at a time. Raises what `extract` raises."""
    clips = work.load_clips()
    for notice in clips.notices:
        notify(notice)
    encoders, *replicas = work.open_encoders(devices)
    for encoder in encoders.values():
        for notice in getattr(encoder, "notices", ()):
            notify(notice)
    return extract(
        open_store(work.store, "a"),
        clips,
        encoders,
        replicas=replicas,
        rank=rank,
        max_failures=work.max_failures,
        advance=advance,
        stop=stop,
        **work.extract_options,
    )
