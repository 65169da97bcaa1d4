"""Which frames a view takes of a clip, and how they come out of a decoded stream.

Shapes: frames (H, W, 3) uint8 RGB, as displayed: turned the way the recording says, at the size of its first chosen
frame. A frame is known by its time or, where times are missing or double, by its number. This module knows no file.
"""

from __future__ import annotations

import av
import numpy as np
from av.error import FFmpegError

from featurecache.encoders import FramesView


def frame_indices(view: FramesView, num_frames: int, peak_frame: int | None) -> list[int]:
    """Return the number of each of `view.count` frames among `num_frames`, by the view's rule.

    Raises:
        ValueError: `peak_frame` lies beyond the clip.
    """
    if view.rule == "uniform":
        if num_frames < view.count:
            return [min(i, num_frames - 1) for i in range(view.count)]
        return [(2 * i + 1) * num_frames // (2 * view.count) for i in range(view.count)]
    centre = num_frames // 2
    if view.rule == "first":
        centre = 0
    elif view.rule == "peak" and peak_frame is not None:
        if peak_frame >= num_frames:
            raise ValueError(f"expected peak_frame below {num_frames}, the frames of the clip, got {peak_frame}")
        centre = peak_frame
    first = max(0, min(centre - view.count // 2, num_frames - view.count))
    return [min(first + i, num_frames - 1) for i in range(view.count)]


class FramePicker:
    """Takes the frames with certain times, or certain numbers, out of a decoded stream."""

    def __init__(self, targets: list[int], by_time: bool) -> None:
        self.targets, self.by_time = targets, by_time
        self.needed: set[int | None] = set(targets)
        self.pictures: dict[int | None, np.ndarray] = {}
        self.emitted: list[int] = []
        self.seen = self.errors = self.damaged = 0

    @property
    def done(self) -> bool:
        return len(self.pictures) == len(self.needed)

    @property
    def misled(self) -> bool:
        """Whether a sound stream came to its end without some frame that its packets promised."""
        return self.by_time and not self.done and not self.errors and bool(self.emitted)

    def refused(self, error: FFmpegError) -> None:
        """Note a packet that the decoder refuses."""
        self.errors += 1

    def add(self, frame: av.VideoFrame) -> None:
        """Take one decoded frame, if it is asked for."""
        key = frame.pts if self.by_time else self.seen
        self.seen += 1
        if frame.pts is not None:
            self.emitted.append(frame.pts)
        if key not in self.needed or key in self.pictures:
            return
        self.damaged += frame.is_corrupt
        quarter_turns = round(frame.rotation / 90) % 4
        size = {}
        if self.pictures:  # a stream may change its size midway; the first chosen frame decides
            height, width = next(iter(self.pictures.values())).shape[:2]
            size = {"width": height, "height": width} if quarter_turns % 2 else {"width": width, "height": height}
        # libav gives the angle by which the picture is to be turned counterclockwise, as rot90 turns.
        picture = np.rot90(frame.to_ndarray(format="rgb24", **size), quarter_turns)
        self.pictures[key] = np.ascontiguousarray(picture)
