"""How long a clip is by what its files' headers state, which costs a few milliseconds; nothing is decoded.

A header may be wrong or silent: this is for refusing a film before it is read and for naming clips whose list says
another length than their files, not for knowing a clip's length.
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
from featurecache.media.container import opened

HEADER_LIMIT_S = 20.0
THREADS = 8
GREATLY = 1.5
"""Lengths differ greatly where one is so many times the other, and by more than `BEYOND_S`."""
BEYOND_S = 1.0
MAX_NAMED = 3


def length_difference(clip: Clip) -> str | None:
    """Return how the length that the list states of a clip differs from that of its files, if it does greatly.

    Looked at are `duration_s`, and `end_s` where it lies beyond the file; a clip with neither has no file opened.
    """
    if clip.duration_s is None and clip.end_s is None:
        return None
    whole_s = stated_duration_s(replace(clip, start_s=None, end_s=None), HEADER_LIMIT_S)
    if whole_s is None:
        return None
    if clip.end_s is not None and clip.end_s - whole_s > BEYOND_S:
        return f"end_s is {clip.end_s:.2f} s, its file ends at {whole_s:.2f} s"
    part_s = max(0.0, min(whole_s, math.inf if clip.end_s is None else clip.end_s) - (clip.start_s or 0.0))
    said_s = clip.duration_s
    if said_s is None or abs(part_s - said_s) <= BEYOND_S or max(part_s, said_s) <= GREATLY * min(part_s, said_s):
        return None
    return f"the table says {said_s:.2f} s, its file holds {part_s:.2f} s"


def length_differences(clips: Iterable[Clip]) -> dict[str, str]:
    """Return the differences of `length_difference` by clip id, in the order of the clips."""
    some = [clip for clip in clips if clip.duration_s is not None or clip.end_s is not None]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="header") as pool:
        found = zip(some, pool.map(length_difference, some), strict=True)
        return {clip.id: difference for clip, difference in found if difference is not None}


def differences_in_words(differences: Mapping[str, str]) -> list[str]:
    """Return lines that name the clips; none where there are none."""
    if not differences:
        return []
    named = [f"  {clip_id}: {difference}" for clip_id, difference in list(differences.items())[:MAX_NAMED]]
    rest = [f"  … and {len(differences) - MAX_NAMED} more"] if len(differences) > MAX_NAMED else []
    count = f"{len(differences)} clip{'s' if len(differences) > 1 else ''}"
    return [f"length: {count} whose list and file differ greatly; look at them before you use them", *named, *rest]


def stated_duration_s(clip: Clip, limit_s: float = math.inf) -> float | None:
    """Return the longest stated duration of the clip's part of its files; None where no header states one.

    A file whose header takes longer than `limit_s` to read states none.
    """
    stated = [_header_s(path, time.monotonic() + limit_s) for path in (clip.video, clip.audio) if path]
    known = [duration for duration in stated if duration is not None]
    if not known:
        return None
    end_s = math.inf if clip.end_s is None else clip.end_s
    return max(0.0, min(max(known), end_s) - (clip.start_s or 0.0))


def _header_s(path: Path, deadline: float) -> float | None:
    try:
        with opened(path, deadline) as container:
            return None if container.duration is None else container.duration / av.time_base
    except (FFmpegError, OSError):
        return None  # decoding will say what is wrong with it
