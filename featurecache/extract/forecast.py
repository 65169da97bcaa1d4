"""What an extraction will take, before it begins: bytes on disk, hours, existing features, files that cannot be opened.

Shapes and bytes come from the checkpoint's config.json only (through the encoder's own `plan_shape`), without weights.
Hours come from a trial on a few clips, spread evenly over the list, into a store that is deleted. Failures come from
opening media files without decoding them, so damage further inside a file shows only in the run itself.
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
from featurecache.encoders import encoder_factory
from featurecache.encoders.perturbed import PERTURB_OPTION
from featurecache.errors import MediaError, WriteError
from featurecache.extract.job import EncoderSettings, ExtractionJob
from featurecache.extract.prepare import reason_of
from featurecache.extract.run import extract
from featurecache.media.crash_guard import CrashGuard, notes_folder
from featurecache.media.decode import header_problem
from featurecache.media.durations import length_differences
from featurecache.spec import STORED_BYTES
from featurecache.store import open_store


@dataclass(frozen=True)
class Estimate:
    """One feature to be made."""

    feature: str
    shape: tuple[int, int]
    num_clips: int
    num_held: int
    clip_bytes: int
    notices: tuple[str, ...] = ()
    """Of the encoder: what is to be known of its tokens."""

    @property
    def bytes_to_write(self) -> int:
        return (self.num_clips - self.num_held) * self.clip_bytes


def estimate(
    features: Mapping[str, EncoderSettings], num_clips: int, held: Mapping[str, int], *, stored_dtype: str
) -> list[Estimate]:
    """Estimate every feature, by name; `held` says how many of the clips each has already.

    Raises:
        EncoderError: no such encoder or option.
        WeightsError: no checkpoint to read the widths from.
    """
    results = []
    for feature, opening in features.items():
        registered_name, _, checkpoint = opening.encoder.partition(":")
        factory = encoder_factory(registered_name)
        weights = opening.weights or checkpoint or None
        own = {key: value for key, value in opening.options.items() if key != PERTURB_OPTION}
        notices = factory.plan_notices(weights, own) if hasattr(factory, "plan_notices") else []
        if hasattr(factory, "plan_shape"):
            shape = factory.plan_shape(weights, own)
        else:  # a user's own encoder may not offer it
            shape = opening.open("cpu").shape
        clip_bytes = round(shape[0] * shape[1] * STORED_BYTES[stored_dtype])
        results.append(Estimate(feature, shape, num_clips, held.get(feature, 0), clip_bytes, tuple(notices)))
    return results


def free_bytes(location: str) -> int | None:
    """Return the bytes free where a local store lies or will lie; None for a store behind a URL."""
    if "://" in location:
        return None
    folder = Path(location).resolve()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def total_bytes(estimates: Sequence[Estimate]) -> int:
    """Sum of what is to be written."""
    return sum(item.bytes_to_write for item in estimates)


TRIAL_S = 20.0
"""A trial takes about so long at most, but at least one clip."""
HEADER_THREADS = 8


@dataclass(frozen=True)
class Forecast:
    """What an extraction will take."""

    estimates: Sequence[Estimate]
    num_clips: int
    free_bytes: int | None
    """None for a store behind a URL."""
    headers_read: int = 0
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Why a clip's files cannot be opened, by clip id."""
    lengths: Mapping[str, str] = field(default_factory=dict)
    """How the length of a clip's file differs from what the list says, by clip id; of those whose files were opened."""
    notices: Sequence[str] = ()
    """Of the clip list and of the encoders."""
    trial_clips: int = 0
    clips_per_s: float = 0.0
    """0 without a trial."""
    bottleneck: str | None = None

    @property
    def num_left(self) -> int:
        """Clips that some feature lacks, at least."""
        return max(item.num_clips - item.num_held for item in self.estimates)

    @property
    def seconds(self) -> float | None:
        """How long the clips that are left would take; None without a trial."""
        return self.num_left / self.clips_per_s if self.clips_per_s else None

    @property
    def expected_failures(self) -> int:
        """Clips of the whole list whose files cannot be opened, by the share of those tried."""
        return round(len(self.unreadable) / max(self.headers_read, 1) * self.num_clips)

    def reasons(self) -> dict[str, list[str]]:
        """Clip ids by reason, the most frequent first."""
        found: dict[str, list[str]] = {}
        for clip_id, reason in self.unreadable.items():
            found.setdefault(reason, []).append(clip_id)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {
            "clips": self.num_clips,
            "clips_left": self.num_left,
            "features": {
                item.feature: {
                    "shape": list(item.shape),
                    "clip_bytes": item.clip_bytes,
                    "there_already": item.num_held,
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
    work: ExtractionJob,
    devices: Sequence[str],
    *,
    calibrate: int,
    headers: int,
    held: Mapping[str, int],
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Forecast:
    """Tell what `work` will take; `held` says how many clips each feature has already.

    `calibrate` clips are tried on `devices`, and the files of `headers` clips are opened; 0 leaves either out.

    Raises:
        EncoderError, WeightsError: no such encoder, option or checkpoint.
    """
    clips = work.load_clips()
    estimates = estimate(work.features, len(clips), held, stored_dtype=work.stored_dtype)
    opened = _spread(clips, headers)
    trial_clips, clips_per_s, bottleneck = 0, 0.0, None
    with _guard(work) as guard:
        unreadable = _read_headers(opened, guard, advance) if headers else {}
        lengths = length_differences(clip for clip in opened if clip.id not in unreadable)
        readable = ClipList(clip for clip in clips if clip.id not in unreadable)
        if calibrate and len(readable):
            trial_clips, clips_per_s, bottleneck = _trial(work, devices, readable, calibrate, guard)
    notices = dict.fromkeys((*clips.notices, *(line for each in estimates for line in each.notices)))
    return Forecast(
        estimates,
        len(clips),
        free_bytes(work.store),
        min(headers, len(clips)),
        unreadable,
        lengths,
        tuple(notices),
        trial_clips,
        clips_per_s,
        bottleneck,
    )


def _spread(clips: ClipList, count: int) -> ClipList:
    """Return `count` clips, evenly spread over the list; all where it has no more."""
    count = min(count, len(clips))
    return ClipList(clips[number * len(clips) // count] for number in range(count))


@contextlib.contextmanager
def _guard(work: ExtractionJob) -> Iterator[CrashGuard | None]:
    """Keep notes in the user's cache, since a forecast writes into no store; none where that cannot be written."""
    try:
        guard = CrashGuard([notes_folder(work.store)], max(HEADER_THREADS, work.workers))
    except WriteError:
        yield None
        return
    try:
        yield guard
    finally:
        guard.close()


def _read_headers(clips: ClipList, guard: CrashGuard | None, advance: Callable[[int, int], None]) -> dict[str, str]:
    def problem_of(clip: Clip) -> MediaError | None:
        with contextlib.nullcontext() if guard is None else guard.decoding(clip.id) as apart:
            return header_problem(clip) if apart is None else apart.header_problem(clip)

    unreadable = {}
    with ThreadPoolExecutor(HEADER_THREADS, thread_name_prefix="header") as pool:
        for number, (clip, problem) in enumerate(zip(clips, pool.map(problem_of, clips), strict=True), start=1):
            if problem is not None:
                unreadable[clip.id] = reason_of(problem)
            advance(number, len(clips))
    return unreadable


def _trial(
    work: ExtractionJob, devices: Sequence[str], clips: ClipList, count: int, guard: CrashGuard | None
) -> tuple[int, float, str | None]:
    """Return how many clips were tried, clips a second, and the bottleneck."""
    encoders, *replicas = work.open_encoders(devices)
    batch = max(encoder.batch_size for encoder in encoders.values()) * len(devices)
    count = -(-count // batch) * batch
    with tempfile.TemporaryDirectory(prefix="fcache-plan-") as folder:

        def run(name: str, some: ClipList) -> Any:
            store = open_store(Path(folder) / name, "a")
            return extract(store, some, encoders, replicas=replicas, guard=guard, **work.extract_options)

        began = time.perf_counter()
        summary = run("first.zarr", _spread(clips, batch))
        first_s = time.perf_counter() - began
        count = min(count, int(TRIAL_S / first_s) * batch)
        if count > 0:  # the first batch pays for what every process pays once
            summary = run("trial.zarr", _spread(clips, count))
    return summary.num_clips, summary.clips_per_s, summary.bottleneck
