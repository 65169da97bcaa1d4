"""Packets of one stream: the time of every frame, and whether the file was cut short.

Counts in headers are often absent or wrong, so frames are counted by their packets. A file that was cut short is
detected by its index, by the duration in its header, or by its size. Times may contradict the display order of frames:
in a file joined from two, times start again in the middle; AVI counts packets and calls the count a time. This module
detects such times where packets show them; `recording` detects the others when it decodes. This module decodes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av

from featurecache.media.extent import Extent
from featurecache.media.frames import SQUARE, displayed_width

Stream = Any
"""An av.VideoStream or av.AudioStream; the stubs of PyAV do not describe the attributes that both have."""
DURATION_SLACK_S = 1.0  # the duration in a header may exceed the last packet by rounding
EXACT_FORMATS = frozenset({"flac", "tta", "wv", "ape"})
"""Containers whose header states the number of samples."""
INDEXED_FORMATS = frozenset({"mov", "matroska", "rm"})
"""Containers that store an index of times (mp4: of all packets); for others libav builds an index while it reads."""
UNPACKETED_FORMATS = frozenset({"wav", "w64", "aiff", "au", "caf", "sox", "adx"})
"""Containers without packets, which libav reads in pieces of a fixed number of bytes."""


@dataclass
class Track:
    """The packets of one stream; times are in units of its time base."""

    start: float
    """The clip's part of the stream is start <= time < end."""
    end: float
    pts: list[int | None] = field(default_factory=list)
    keyframes: list[bool] = field(default_factory=list)
    """Whether the packet of the same index in `pts` holds a keyframe."""
    dts: list[int] = field(default_factory=list)
    damaged: set[int | None] = field(default_factory=set)
    """Times of packets that the file holds in part only."""
    missing: int = 0
    """Number of packets that the file should hold after its last one."""
    missing_guessed: bool = False
    """Whether that number is an estimate; that packets are missing is certain."""
    num_pixels: int = 0
    """Number of pixels per frame, as the header states its size and as it is displayed, whichever is larger."""
    pixel_aspect: Fraction = SQUARE
    """Width of a pixel over its height."""
    reorders: bool = False
    """Whether the decoder delays frames to put them into display order."""
    in_order: bool = True
    """Whether the decoder returns frames in the order of their times; set once they are decoded."""

    @property
    def by_time(self) -> bool:
        """Whether times identify frames: every frame has a different time, and times ascend in display order."""
        return self.in_order and None not in self.pts and len(set(self.pts)) == len(self.pts)

    @property
    def goes_back(self) -> bool:
        """Whether a keyframe has an earlier time than a frame before it, which no display order explains."""
        latest = float("-inf")
        for pts, is_keyframe in zip(self.pts, self.keyframes, strict=True):
            if pts is None:
                continue
            if is_keyframe and pts < latest:
                return True
            latest = max(latest, pts)
        return False

    def uncertain_times(self) -> set[int]:
        """Return times that may only count packets: they ascend between two keyframes, yet the decoder reorders."""
        uncertain: set[int] = set()
        if not self.reorders:
            return uncertain
        group: list[int] = []  # times from one keyframe to the next
        for pts, is_keyframe in [*zip(self.pts, self.keyframes, strict=True), (None, True)]:
            if is_keyframe:
                if all(first < second for first, second in pairwise(group)):
                    uncertain.update(group)
                group = []
            if pts is not None:
                group.append(pts)
        return uncertain

    def last_end_s(self, time_base: Fraction) -> float | None:
        """Return the end of the last packet; None if its packets have no times."""
        times = [time for time in self.pts if time is not None] or self.dts
        if not times:
            return None
        packet_duration = (max(times) - min(times)) / (len(times) - 1) if len(times) > 1 else 0
        return float((max(times) + packet_duration) * time_base)

    def display_times(self) -> list[int]:
        """Return the times of all frames in display order; empty if the file has no times, or times that go back."""
        if self.by_time:
            return sorted(time for time in self.pts if time is not None)
        # Without display times, decoding times serve to cut a clip: they differ only by the delay of B-frames.
        in_order = all(first <= second for first, second in pairwise(self.dts))
        return list(self.dts) if in_order and len(self.dts) == len(self.pts) else []


def set_frame_properties(track: Track, stream: av.VideoStream) -> None:
    """Fill in the frame properties of a track from the header of its stream."""
    track.pixel_aspect = stream.sample_aspect_ratio or SQUARE
    track.num_pixels = stream.height * max(stream.width, displayed_width(stream.width, track.pixel_aspect))
    track.reorders = stream.codec_context.has_b_frames


def count_missing(track: Track, stream: Stream, indexed_times: list[int], extent: Extent) -> None:
    """Fill in how many packets the file should hold after its last one.

    The number follows from the stored index, or from the stated duration of the stream, or, as an estimate, from the
    number of missing bytes.
    """
    formats = set(stream.container.format.name.split(","))
    last = max(track.dts, default=track.start - 1)
    last_shown = max((time for time in track.pts if time is not None), default=last)
    # The index of an mp4 lists decoding times, that of others the times at which frames are shown.
    last_listed = last if "mov" in formats else max(last, last_shown)
    num_beyond = sum(1 for time in indexed_times if last_listed < time < track.end) if formats & INDEXED_FORMATS else 0
    if not track.dts:
        track.missing, track.missing_guessed = num_beyond or int(bool(extent.missing_bytes)), not num_beyond
        return
    if formats & UNPACKETED_FORMATS and not extent.missing_bytes:
        track.damaged.clear()  # the last packet is shorter than others, and libav marks it as damaged
    first = stream.start_time if stream.start_time is not None else track.dts[0]
    packet_s = float((last - min(track.dts)) * stream.time_base) / max(len(track.dts) - 1, 1)
    end_s = float((last_shown - first) * stream.time_base) + packet_s
    needed_s = float((track.end - first) * stream.time_base)
    if end_s >= needed_s:
        return
    duration_s = _stated_duration_s(stream, formats)
    slack_s = 1.5 * packet_s if formats & EXACT_FORMATS else DURATION_SLACK_S
    missing_s = 0.0 if duration_s is None else min(duration_s, needed_s) - end_s
    if "mov" in formats and num_beyond:
        track.missing = num_beyond
    elif missing_s > slack_s and packet_s > 0:
        track.missing = round(missing_s / packet_s)
    elif extent.missing_bytes or num_beyond:
        estimate = round((extent.missing_bytes or 0) / max(extent.end, 1) * len(track.dts))
        track.missing = max(1, num_beyond, estimate)
        track.missing_guessed = True


def _stated_duration_s(stream: Stream, formats: set[str]) -> float | None:
    """Return the duration in the stream's header; None if the container only estimates one."""
    if formats & EXACT_FORMATS and stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if "matroska" in formats:
        stated = stream.metadata.get("DURATION", "").split(":")
        if len(stated) == 3 and all(part.replace(".", "", 1).isdigit() for part in stated):
            end_s = int(stated[0]) * 3600 + int(stated[1]) * 60 + float(stated[2])  # counts from time 0 of the file
            return end_s - max(0.0, float((stream.start_time or 0) * stream.time_base))
    return None
