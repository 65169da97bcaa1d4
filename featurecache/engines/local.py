"""Run an extraction in this process, on one device or several."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from featurecache.extract.job import ExtractionJob, encoder_notices
from featurecache.extract.run import extract
from featurecache.extract.stats import ExtractionStats
from featurecache.store import open_store


def run(
    job: ExtractionJob,
    devices: Sequence[str] = ("auto",),
    *,
    rank: tuple[int, int] = (0, 1),
    notify: Callable[[str], None] = lambda line: None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> ExtractionStats:
    """Run the job on `devices`, which share the batches; a device named twice runs two batches at a time.

    `notify` receives the notices of the clip list and of the encoders, and a line about the loaded weights. Raises the
    errors of `extract`.
    """
    clips = job.load_clips()
    for line in clips.notices:
        notify(line)
    began = time.monotonic()
    encoders, *replicas = job.open_encoders(devices)
    notify(f"weights loaded in {time.monotonic() - began:.1f} s: {job.origins(encoders)}")
    for line in encoder_notices(encoders):
        notify(line)
    return extract(
        open_store(job.store, "a"),
        clips,
        encoders,
        replicas=replicas,
        rank=rank,
        max_failures=job.max_failures,
        advance=advance,
        stop=stop,
        **job.extract_options,
    )
