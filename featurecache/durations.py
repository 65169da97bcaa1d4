"""How long a clip is by what its files' headers state, which costs a few milliseconds; nothing is decoded.

A header may be wrong or silent: this is for refusing a film before it is read, not for knowing a clip's length.
"""

from __future__ import annotations

import math

import av
from av.error import FFmpegError

from featurecache.clips import Clip


def stated_duration_s(clip: Clip) -> float | None:
    """Return the longest stated duration of the clip's part of its files; None where no header states one."""
    stated = [duration for path in (clip.video, clip.audio) if path and (duration := _header_s(str(path))) is not None]
    if not stated:
        return None
    end_s = math.inf if clip.end_s is None else clip.end_s
    return max(0.0, min(max(stated), end_s) - (clip.start_s or 0.0))


def _header_s(path: str) -> float | None:
    try:
        with av.open(f"file:{path}", options={"protocol_whitelist": "file"}, metadata_errors="ignore") as container:
            return None if container.duration is None else container.duration / av.time_base
    except (FFmpegError, OSError):
        return None  # decoding will say what is wrong with it
