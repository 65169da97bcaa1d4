"""Which frames a view takes of a clip, and how they come out of a decoded stream.

Shapes: frames (H, W, 3) uint8 RGB, as displayed: pixels that are not square are stretched to the width that they are
shown at, then turned and mirrored the way the recording says; all at the size of the first chosen frame. A frame is
known by its time or, where times are missing, double or contradict the order of the decoder, by its number in that
order. This module knows no file.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from fractions import Fraction

import av
import numpy as np
from av.error import FFmpegError

from featurecache.views import FramesView


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


SQUARE = Fraction(1)


def displayed_width(width: int, pixel_aspect: Fraction) -> int:
    """Return how many square pixels wide a picture of `width` pixels is shown."""
    return max(1, round(width * pixel_aspect))


def as_displayed(frame: av.VideoFrame, pixel_aspect: Fraction, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of a decoded frame, stretched, turned and mirrored as a player shows it.

    `pixel_aspect` is the width of a pixel over its height, `shape` the (H, W) to scale to where that is fixed already.
    """
    transposed, flipped_rows, flipped_columns = _orientation(frame)
    if shape is not None:
        height, width = reversed(shape) if transposed else shape
        picture = frame.to_ndarray(format="rgb24", width=width, height=height)
    elif (width := displayed_width(frame.width, pixel_aspect)) != frame.width:
        picture = frame.to_ndarray(format="rgb24", width=width, height=frame.height, interpolation="BICUBIC")
    else:
        picture = frame.to_ndarray(format="rgb24")
    picture = picture.transpose(1, 0, 2) if transposed else picture
    return picture[:: -1 if flipped_rows else 1, :: -1 if flipped_columns else 1]


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
    """Return whether a frame is to be transposed, then its rows, then its columns reversed, by its display matrix."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # A pixel (x, y) is shown at (a·x + c·y, b·x + d·y); of the eight orientations of a picture the nearest is taken.
    a, b, _, c, d = np.frombuffer(matrix, np.int32, count=5).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


MAX_DELAYED = 16
"""Frames that any codec holds back at most to put them into display order."""


class FramePicker:
    """Takes the frames with certain times, or certain numbers, out of a decoded stream."""

    def __init__(
        self,
        targets: list[int],
        by_time: bool,
        pixel_aspect: Fraction = SQUARE,
        doubtful: AbstractSet[int] = frozenset(),
    ) -> None:
        """Take the frames `targets`; after one with a `doubtful` time, see whether an earlier time follows."""
        self.targets, self.by_time, self._doubtful = targets, by_time, doubtful
        self._pixel_aspect = pixel_aspect
        self.places: dict[int | None, list[int]] = {}
        """Where in the result each frame goes; a clip of few frames repeats its last one."""
        for place, target in enumerate(targets):
            self.places.setdefault(target, []).append(place)
        self.frames: np.ndarray | None = None
        """(F, H, W, 3), filled as frames come."""
        self.emitted: list[int] = []
        self.went_back = False
        """Whether the decoder gave a frame of an earlier time after a later one."""
        self._to_see = 0
        self.seen = self.errors = self.damaged = 0
        self._found: set[int | None] = set()

    @property
    def num_found(self) -> int:
        return len(self._found)

    @property
    def found_all(self) -> bool:
        return len(self._found) == len(self.places)

    @property
    def done(self) -> bool:
        return self.found_all and self.seen >= self._to_see

    @property
    def misled(self) -> bool:
        """Whether a sound stream came to its end without some frame that its packets promised."""
        return self.by_time and not self.found_all and not self.errors and bool(self.emitted)

    def needs(self, time: int | None) -> bool:
        """Whether the frame of a packet has to be decoded even if no other frame is predicted from it."""
        if not self.by_time or time is None or time in self._doubtful:
            return True
        return time in self.places and time not in self._found

    def refused(self, error: FFmpegError) -> None:
        """Note a packet that the decoder refuses."""
        self.errors += 1

    def add(self, frame: av.VideoFrame) -> None:
        """Take one decoded frame, if it is asked for."""
        key = frame.pts if self.by_time else self.seen
        self.seen += 1
        if frame.pts is not None:
            self.went_back |= bool(self.emitted) and frame.pts < self.emitted[-1]
            self.emitted.append(frame.pts)
        if key not in self.places or key in self._found:
            return
        self.damaged += frame.is_corrupt
        # A stream may change its size midway; the first chosen frame decides.
        picture = as_displayed(frame, self._pixel_aspect, None if self.frames is None else self.frames.shape[1:3])
        if self.frames is None:
            self.frames = np.empty((len(self.targets), *picture.shape), np.uint8)
        for place in self.places[key]:
            self.frames[place] = picture
        self._found.add(key)
        if key in self._doubtful:
            self._to_see = self.seen + MAX_DELAYED
