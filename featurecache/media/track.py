"""What the packets of one stream say: every frame's time, and whether the file holds all that it promises.

Counts in headers are often absent or wrong, so frames are counted by their packets. Whether a file was cut short is
told from its index, from the duration that its header states, or from its size. Times may contradict the order in
which frames are displayed: a file joined from two begins again in its middle, AVI counts packets and calls that time.
What packets show of this is told here; the rest shows when frames are decoded. This module decodes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

from featurecache.media.extent import Extent
from featurecache.media.frames import SQUARE, displayed_width

DURATION_SLACK_S = 1.0  # a header's duration may exceed the last packet by rounding
EXACT_FORMATS = frozenset({"flac", "tta", "wv", "ape"})
"""Containers whose header states the number of samples."""
INDEXED_FORMATS = frozenset({"mov", "matroska", "rm"})
"""Containers that store an index of times, mp4 of all packets; libav indexes others by bytes or by what it has read."""
PARTIAL_FORMATS = frozenset({"wav", "w64", "aiff", "au", "caf", "sox", "adx"})
"""Containers without packets, of which libav reads so many bytes at a time."""


@dataclass
class Track:
    """What the packets of one stream say; times in units of its time base."""

    start: float
    """The clip's part of the stream: start <= time < end."""
    end: float
    pts: list[int | None] = field(default_factory=list)
    keyframes: list[bool] = field(default_factory=list)
    """Whether the packet at the same place of `pts` holds a keyframe."""
    dts: list[int] = field(default_factory=list)
    damaged: set[int | None] = field(default_factory=set)
    """Times of packets that the file holds in part only."""
    missing: int = 0
    """Packets that the file promises after its last one."""
    missing_guessed: bool = False
    """Whether that number is a guess, though not that there are some."""
    num_pixels: int = 0
    """Of a frame, as the header states its size and as it is displayed."""
    pixel_aspect: Fraction = SQUARE
    """Width of a pixel over its height."""
    reorders: bool = False
    """Whether the decoder holds frames back to put them into display order."""
    in_order: bool = True
    """Whether the decoder gives frames in the order of their times; known once they are decoded."""

    @property
    def by_time(self) -> bool:
        """Whether a frame is known by its time: every frame has one of its own, and they ascend as displayed."""
        return self.in_order and None not in self.pts and len(set(self.pts)) == len(self.pts)

    @property
    def goes_back(self) -> bool:
        """Whether a keyframe has an earlier time than a frame before it, which no order of display explains."""
        latest = float("-inf")
        for pts, is_keyframe in zip(self.pts, self.keyframes, strict=True):
            if pts is None:
                continue
            if is_keyframe and pts < latest:
                return True
            latest = max(latest, pts)
        return False

    def doubtful(self) -> set[int]:
        """Return times that may only count packets: they ascend between two keyframes, yet the decoder reorders."""
        doubtful: set[int] = set()
        if not self.reorders:
            return doubtful
        group: list[int] = []
        for pts, is_keyframe in [*zip(self.pts, self.keyframes, strict=True), (None, True)]:
            if is_keyframe:
                if all(first < second for first, second in pairwise(group)):
                    doubtful.update(group)
                group = []
            if pts is not None:
                group.append(pts)
        return doubtful

    def last_end_s(self, time_base: Fraction) -> float | None:
        """Return when the last packet read ends, where that is known."""
        times = [time for time in self.pts if time is not None] or self.dts
        if not times:
            return None
        packet = (max(times) - min(times)) / (len(times) - 1) if len(times) > 1 else 0
        return float((max(times) + packet) * time_base)

    def shown(self) -> list[int]:
        """Return the times of all frames in display order; empty where the file has none or they go back."""
        if self.by_time:
            return sorted(self.pts)  # type: ignore[type-var, arg-type]
        # Decoding order is as good for cutting where display times are missing: only the delay of B-frames differs.
        in_order = all(first <= second for first, second in pairwise(self.dts))
        return list(self.dts) if in_order and len(self.dts) == len(self.pts) else []


def note_pictures(stream, track: Track) -> None:  # type: ignore[no-untyped-def]
    """Fill in what the header says of the pictures of a stream."""
    track.pixel_aspect = stream.sample_aspect_ratio or SQUARE
    track.num_pixels = stream.height * max(stream.width, displayed_width(stream.width, track.pixel_aspect))
    track.reorders = stream.codec_context.has_b_frames


def count_missing(stream, track: Track, promised: list[int], extent: Extent) -> None:  # type: ignore[no-untyped-def]
    """Fill in how many packets the file should hold beyond its last one.

    A stored index tells, or the duration that the stream states, or the bytes that the file lacks, which is a guess.
    """
    formats = set(stream.container.format.name.split(","))
    last = max(track.dts, default=track.start - 1)
    last_shown = max((time for time in track.pts if time is not None), default=last)
    # The index of an mp4 lists decoding times, that of others the times at which frames are shown.
    last_listed = last if "mov" in formats else max(last, last_shown)
    beyond = sum(1 for time in promised if last_listed < time < track.end) if formats & INDEXED_FORMATS else 0
    if not track.dts:
        track.missing, track.missing_guessed = beyond or int(bool(extent.lacking)), not beyond
        return
    if formats & PARTIAL_FORMATS and not extent.lacking:
        track.damaged.clear()  # the last packet is shorter than others, which libav takes for damage
    first = stream.start_time if stream.start_time is not None else track.dts[0]
    packet_s = float((last - min(track.dts)) * stream.time_base) / max(len(track.dts) - 1, 1)
    end_s = float((last_shown - first) * stream.time_base) + packet_s
    wanted_s = float((track.end - first) * stream.time_base)
    if end_s >= wanted_s:
        return
    duration_s = _stated_duration_s(stream, formats)
    slack_s = 1.5 * packet_s if formats & EXACT_FORMATS else DURATION_SLACK_S
    lacking_s = 0.0 if duration_s is None else min(duration_s, wanted_s) - end_s
    if "mov" in formats and beyond:
        track.missing = beyond
    elif lacking_s > slack_s and packet_s > 0:
        track.missing = round(lacking_s / packet_s)
    elif extent.lacking or beyond:
        track.missing = max(1, beyond, round((extent.lacking or 0) / max(extent.end, 1) * len(track.dts)))
        track.missing_guessed = True


def _stated_duration_s(stream, formats: set[str]) -> float | None:  # type: ignore[no-untyped-def]
    """Return the duration that the stream's header states; None where the container only estimates one."""
    if formats & EXACT_FORMATS and stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if "matroska" in formats:
        stated = stream.metadata.get("DURATION", "").split(":")
        if len(stated) == 3 and all(part.replace(".", "", 1).isdigit() for part in stated):
            end_s = int(stated[0]) * 3600 + int(stated[1]) * 60 + float(stated[2])  # a time, from the file's zero
            return end_s - max(0.0, float((stream.start_time or 0) * stream.time_base))
    return None
