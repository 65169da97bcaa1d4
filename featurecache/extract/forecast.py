"""Forecast of an extraction: bytes on disk, hours, clips already decided, and files that cannot be opened.

Shapes and bytes come from the checkpoint's config.json only, without weights (`plan_shape` of the encoder). Hours come
from a trial extraction of a few clips, spread evenly over the list, into a temporary store. Failures come from opening
media files without decoding them, so the forecast misses damage further inside a file.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.encoders import encoder_class
from featurecache.encoders.perturbation import PERTURB_OPTION
from featurecache.errors import MediaError, WriteError
from featurecache.extract.job import EncoderSettings, ExtractionJob
from featurecache.extract.prepare import reason_of
from featurecache.extract.run import extract
from featurecache.extract.stats import ExtractionStats
from featurecache.media.crash_guard import CrashGuard, notes_folder
from featurecache.media.decode import header_problem
from featurecache.media.durations import length_differences
from featurecache.spec import STORED_BYTES
from featurecache.store import open_store


@dataclass(frozen=True)
class FeatureEstimate:
    """Shape and size of one feature to extract."""

    feature: str
    shape: tuple[int, int]
    num_clips: int
    num_decided: int
    """Clips that the store has decided already."""
    clip_bytes: int
    notices: tuple[str, ...] = ()
    """Remarks of the encoder about its tokens."""

    @property
    def bytes_to_write(self) -> int:
        return (self.num_clips - self.num_decided) * self.clip_bytes


def estimate_features(
    features: Mapping[str, EncoderSettings], num_clips: int, num_decided: Mapping[str, int], *, stored_dtype: str
) -> list[FeatureEstimate]:
    """Estimate every feature; `num_decided` is the number of clips that each has decided already, by feature name.

    Raises:
        EncoderError: no such encoder or option.
        WeightsError: no checkpoint to read the widths from.
    """
    results = []
    for feature, settings in features.items():
        registered_name, _, checkpoint = settings.encoder.partition(":")
        encoder = encoder_class(registered_name)
        weights = settings.weights or checkpoint or None
        encoder_options = {key: value for key, value in settings.options.items() if key != PERTURB_OPTION}
        notices = encoder.plan_notices(weights, encoder_options)
        shape = encoder.plan_shape(weights, encoder_options)
        clip_bytes = round(shape[0] * shape[1] * STORED_BYTES[stored_dtype])
        decided = num_decided.get(feature, 0)
        results.append(FeatureEstimate(feature, shape, num_clips, decided, clip_bytes, tuple(notices)))
    return results


def free_bytes(location: str) -> int | None:
    """Return the free bytes on the disk of a local store, which need not exist yet; None for a store behind a URL."""
    if "://" in location:
        return None
    folder = Path(location).resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def total_bytes(estimates: Sequence[FeatureEstimate]) -> int:
    """Return the bytes to write for all features together."""
    return sum(item.bytes_to_write for item in estimates)


TRIAL_S = 20.0
"""Approximate upper limit of the trial's time; at least one batch is tried."""
HEADER_THREADS = 8


@dataclass(frozen=True)
class Forecast:
    """Sizes, times and expected failures of an extraction."""

    estimates: Sequence[FeatureEstimate]
    num_clips: int
    free_bytes: int | None
    """None for a store behind a URL."""
    headers_read: int = 0
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Reason why a clip's files cannot be opened, by clip id."""
    lengths: Mapping[str, str] = field(default_factory=dict)
    """Difference between the length of a clip's file and its `duration_s`, by clip id; of opened files only."""
    notices: Sequence[str] = ()
    """Remarks of the clip list and of the encoders."""
    trial_clips: int = 0
    clips_per_s: float = 0.0
    """0 if no trial was made."""
    bottleneck: str | None = None

    @property
    def num_left(self) -> int:
        """Lower bound of the clips that some feature has yet to decide."""
        return max(item.num_clips - item.num_decided for item in self.estimates)

    @property
    def seconds(self) -> float | None:
        """Expected time for the clips that are left; None if no trial was made."""
        return self.num_left / self.clips_per_s if self.clips_per_s else None

    @property
    def expected_failures(self) -> int:
        """Clips of the whole list whose files cannot be opened, extrapolated from the opened ones."""
        return round(len(self.unreadable) / max(self.headers_read, 1) * self.num_clips)

    def reasons(self) -> dict[str, list[str]]:
        """Return the clip ids by reason, the most frequent reason first."""
        ids_by_reason: dict[str, list[str]] = {}
        for clip_id, reason in self.unreadable.items():
            ids_by_reason.setdefault(reason, []).append(clip_id)
        return dict(sorted(ids_by_reason.items(), key=lambda item: -len(item[1])))

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON values."""
        return {
            "clips": self.num_clips,
            "clips_left": self.num_left,
            "features": {
                item.feature: {
                    "shape": list(item.shape),
                    "clip_bytes": item.clip_bytes,
                    "there_already": item.num_decided,
                    "bytes_to_write": item.bytes_to_write,
                }
                for item in self.estimates
            },
            "bytes_to_write": sum(item.bytes_to_write for item in self.estimates),
            "free_bytes": self.free_bytes,
            "headers_read": self.headers_read,
            "notices": list(self.notices),
            "unreadable": dict(self.unreadable),
            "lengths": dict(self.lengths),
            "expected_failures": self.expected_failures,
            "trial_clips": self.trial_clips,
            "clips_per_s": round(self.clips_per_s, 4) or None,
            "hours": None if self.seconds is None else round(self.seconds / 3600, 3),
            "bottleneck": self.bottleneck,
        }


def forecast(
    job: ExtractionJob,
    devices: Sequence[str],
    *,
    num_trial_clips: int,
    num_headers: int,
    num_decided: Mapping[str, int],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Forecast:
    """Forecast `job`; `num_decided` is the number of clips that each feature has decided already, by feature name.

    The trial extracts `num_trial_clips` clips on `devices`; the files of `num_headers` clips are opened; 0 skips
    either.

    Raises:
        EncoderError, WeightsError: no such encoder, option or checkpoint.
    """
    clips = job.load_clips()
    estimates = estimate_features(job.features, len(clips), num_decided, stored_dtype=job.stored_dtype)
    opened = _spread(clips, num_headers)
    trial_clips, clips_per_s, bottleneck = 0, 0.0, None
    with _guard(job) as guard:
        unreadable = _read_headers(opened, guard, advance) if num_headers else {}
        lengths = length_differences(clip for clip in opened if clip.id not in unreadable)
        readable = ClipList(clip for clip in clips if clip.id not in unreadable)
        if num_trial_clips and len(readable):
            trial_clips, clips_per_s, bottleneck = _trial(job, devices, readable, num_trial_clips, guard)
    notices = dict.fromkeys((*clips.notices, *(line for item in estimates for line in item.notices)))
    return Forecast(
        estimates,
        len(clips),
        free_bytes(job.store),
        min(num_headers, len(clips)),
        unreadable,
        lengths,
        tuple(notices),
        trial_clips,
        clips_per_s,
        bottleneck,
    )


def _spread(clips: ClipList, count: int) -> ClipList:
    """Return `count` clips spread evenly over the list, or all clips of a shorter list."""
    count = min(count, len(clips))
    return ClipList(clips[number * len(clips) // count] for number in range(count))


@contextlib.contextmanager
def _guard(job: ExtractionJob) -> Iterator[CrashGuard | None]:
    """Yield a crash guard with notes in the user's cache; None where the cache cannot be written.

    A forecast writes nothing into the store.
    """
    try:
        guard = CrashGuard([notes_folder(job.store)], max(HEADER_THREADS, job.workers))
    except WriteError:
        yield None
        return
    try:
        yield guard
    finally:
        guard.close()


def _read_headers(clips: ClipList, guard: CrashGuard | None, advance: Callable[[int, int], None]) -> dict[str, str]:
    def problem_of(clip: Clip) -> MediaError | None:
        with contextlib.nullcontext() if guard is None else guard.decoding(clip.id) as isolated_decoder:
            if isolated_decoder is None:
                return header_problem(clip)
            return isolated_decoder.header_problem(clip)

    unreadable = {}
    with ThreadPoolExecutor(HEADER_THREADS, thread_name_prefix="header") as pool:
        for number, (clip, problem) in enumerate(zip(clips, pool.map(problem_of, clips), strict=True), start=1):
            if problem is not None:
                unreadable[clip.id] = reason_of(problem)
            advance(number, len(clips))
    return unreadable


def _trial(
    job: ExtractionJob, devices: Sequence[str], clips: ClipList, count: int, guard: CrashGuard | None
) -> tuple[int, float, str | None]:
    """Return the number of clips tried, clips per second, and the bottleneck."""
    encoders, *replicas = job.open_encoders(devices)
    batch_size = max(encoder.batch_size for encoder in encoders.values()) * len(devices)
    count = -(-count // batch_size) * batch_size
    with tempfile.TemporaryDirectory(prefix="fcache-plan-") as folder:

        def run(name: str, tried: ClipList) -> ExtractionStats:
            store = open_store(Path(folder) / name, "a")
            # Threads: the seconds that processes take to start would count in a short trial.
            options = {**job.extract_options, "decode_in": "threads"}
            return extract(store, tried, encoders, replicas=replicas, guard=guard, **options)

        began = time.perf_counter()
        stats = run("first.zarr", _spread(clips, batch_size))
        first_s = time.perf_counter() - began
        count = min(count, int(TRIAL_S / first_s) * batch_size)
        if count > 0:  # the first batch includes the start-up time of the process
            stats = run("trial.zarr", _spread(clips, count))
    return stats.num_clips, stats.clips_per_s, stats.bottleneck
