"""Whether a file has sound and moving pictures, from its header; nothing is decoded. Cover art is no picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import av
from av.error import FFmpegError

from featurecache.media.container import open_container


@dataclass(frozen=True)
class Streams:
    """What a file has."""

    sound: bool
    picture: bool


NO_STREAMS = Streams(False, False)


def streams_of(path: Path, deadline: float = math.inf) -> Streams:
    """Return what a file has; `NO_STREAMS` also if it is no recording or cannot be opened until `deadline`.

    `deadline` is a value of `time.monotonic`.
    """
    cover_art = av.stream.Disposition.attached_pic
    try:
        with open_container(path, deadline) as container:
            pictures = [stream for stream in container.streams.video if not stream.disposition & cover_art]
            return Streams(bool(container.streams.audio), bool(pictures))
    except (FFmpegError, OSError):
        return NO_STREAMS  # decoding reports the error
