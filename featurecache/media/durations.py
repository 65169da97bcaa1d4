"""Durations of clips as the headers of their files state them, read in a few milliseconds without decoding.

A header may be wrong, or state no duration. So these durations serve to refuse a long film before it is read, and to
report clips whose list and file differ; they are not exact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
from av.error import FFmpegError

from featurecache.clips.clip_list import Clip
from featurecache.media.container import open_container

HEADER_LIMIT_S = 20.0
THREADS = 8
MIN_RATIO = 1.5
MIN_DIFFERENCE_S = 1.0
"""Two lengths differ greatly if they differ by more than this and the longer is more than `MIN_RATIO` × the shorter."""
MAX_NAMED = 3


def length_difference(clip: Clip) -> str | None:
    """Describe how the clip's length in the list differs from that of its files; None if they do not differ greatly.

    Compared are `duration_s`, and an `end_s` beyond the end of the file. A clip with neither opens no file.
    """
    if clip.duration_s is None and clip.end_s is None:
        return None
    whole_s = stated_duration_s(replace(clip, start_s=None, end_s=None), HEADER_LIMIT_S)
    if whole_s is None:
        return None
    if clip.end_s is not None and clip.end_s - whole_s > MIN_DIFFERENCE_S:
        return f"end_s is {clip.end_s:.2f} s, its file ends at {whole_s:.2f} s"
    part_s = max(0.0, min(whole_s, math.inf if clip.end_s is None else clip.end_s) - (clip.start_s or 0.0))
    listed_s = clip.duration_s
    if listed_s is None or abs(part_s - listed_s) <= MIN_DIFFERENCE_S:
        return None
    if max(part_s, listed_s) <= MIN_RATIO * min(part_s, listed_s):
        return None
    return f"the table says {listed_s:.2f} s, its file holds {part_s:.2f} s"


def length_differences(clips: Iterable[Clip]) -> dict[str, str]:
    """Return `length_difference` of every clip that has one, by clip id, in the order of the clips."""
    comparable = [clip for clip in clips if clip.duration_s is not None or clip.end_s is not None]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="header") as pool:
        differences = zip(comparable, pool.map(length_difference, comparable), strict=True)
        return {clip.id: difference for clip, difference in differences if difference is not None}


def differences_in_words(differences: Mapping[str, str]) -> list[str]:
    """Return lines that name the first clips with differences; no line if there are none."""
    if not differences:
        return []
    named = [f"  {clip_id}: {difference}" for clip_id, difference in list(differences.items())[:MAX_NAMED]]
    rest = [f"  … and {len(differences) - MAX_NAMED} more"] if len(differences) > MAX_NAMED else []
    count = f"{len(differences)} clip{'s' if len(differences) > 1 else ''}"
    return [f"length: {count} whose list and file differ greatly; look at them before you use them", *named, *rest]


def stated_duration_s(clip: Clip, limit_s: float = math.inf) -> float | None:
    """Return the longest stated duration of the clip's part of its files; None if no header states one.

    A file whose header takes longer than `limit_s` to read counts as one without a duration.
    """
    stated = [_header_s(path, time.monotonic() + limit_s) for path in (clip.video, clip.audio) if path]
    known = [duration for duration in stated if duration is not None]
    if not known:
        return None
    end_s = math.inf if clip.end_s is None else clip.end_s
    return max(0.0, min(max(known), end_s) - (clip.start_s or 0.0))


def _header_s(path: Path, deadline: float) -> float | None:
    try:
        with open_container(path, deadline) as container:
            return None if container.duration is None else container.duration / av.time_base
    except (FFmpegError, OSError):
        return None  # decoding reports the error
