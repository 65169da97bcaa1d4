"""How long a clip is by what its files' headers state, which costs a few milliseconds; nothing is decoded.

A header may be wrong or silent: this is for refusing a film before it is read, not for knowing a clip's length.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import av
from av.error import FFmpegError

from featurecache.clips import Clip
from featurecache.container import opened


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
