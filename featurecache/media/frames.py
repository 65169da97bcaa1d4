"""Choose the frames of a view, pick them out of a decoded stream, and bound the memory that they take.

Shapes: frames (H, W, 3) uint8 RGB, as displayed: pixels that are not square are stretched to their displayed width,
then frames are turned and mirrored as the recording states; all have the size of the first picked frame. A time
identifies a frame. If times are missing, repeated or contradict the order of the decoder, its number in that order
does.

Memory: the frames of a clip are held at the size of its recording until they are resized: 16 frames of 1280 × 720 take
44 MB, of 7680 × 4320 1.6 GB. All decode threads of a process share one budget (`FRAME_MEMORY`): a clip that does not
fit into the rest of it waits, a clip larger than the whole budget waits until no other clip holds memory, and a clip
beyond `MAX_CLIP_BYTES` fails. This module knows no file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.error import FFmpegError

from featurecache.views import FramesView


def frame_indices(view: FramesView, num_frames: int, peak_frame: int | None) -> list[int]:
    """Return the numbers of the `view.count` frames that the view's rule takes out of `num_frames`.

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
    """Return the displayed width in square pixels of a picture that is `width` pixels wide."""
    return max(1, round(width * pixel_aspect))


def as_displayed(frame: av.VideoFrame, pixel_aspect: Fraction, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of a decoded frame, stretched, turned and mirrored as a player shows it.

    Args:
        pixel_aspect: width of a pixel over its height.
        shape: (H, W) to scale to; None keeps the displayed size of the frame.
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
    """Return, by the display matrix, whether to transpose a frame, then to reverse its rows, then its columns."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    # Pixel (x, y) is displayed at (a·x + c·y, b·x + d·y); the nearest of the eight orientations is taken.
    a, b, _, c, d = np.frombuffer(matrix, np.int32, count=5).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, d < 0, a < 0
    return True, b < 0, c < 0


MAX_DELAYED = 16
"""The largest number of frames that a codec delays to put them into display order."""


class FramePicker:
    """Picks the frames with certain times, or certain numbers, out of a decoded stream."""

    def __init__(
        self,
        targets: list[int],
        by_time: bool,
        pixel_aspect: Fraction = SQUARE,
        uncertain_times: AbstractSet[int] = frozenset(),
    ) -> None:
        """Pick the frames `targets`; after a frame with an uncertain time, decode on to see if an earlier one follows.

        Args:
            targets: times of the frames, or with `by_time` False their numbers; a target may be repeated.
            pixel_aspect: width of a pixel over its height.
            uncertain_times: see `Track.uncertain_times`.
        """
        self.targets, self.by_time, self._uncertain_times = targets, by_time, uncertain_times
        self._pixel_aspect = pixel_aspect
        self.positions: dict[int | None, list[int]] = {}
        """Target -> positions in the result; a clip with too few frames repeats its last frame."""
        for position, target in enumerate(targets):
            self.positions.setdefault(target, []).append(position)
        self.frames: np.ndarray | None = None
        """(F, H, W, 3), filled as frames are decoded."""
        self.decoded_times: list[int] = []
        self.went_back = False
        """Whether the decoder returned a frame of an earlier time after a frame of a later time."""
        self.num_decoded = self.num_errors = self.num_damaged = 0
        self._num_to_decode = 0
        """Number of frames to decode before the picker is done."""
        self._picked: set[int | None] = set()

    @property
    def num_picked(self) -> int:
        return len(self._picked)

    @property
    def all_picked(self) -> bool:
        return len(self._picked) == len(self.positions)

    @property
    def done(self) -> bool:
        return self.all_picked and self.num_decoded >= self._num_to_decode

    @property
    def lacks_frames(self) -> bool:
        """Whether the stream ended without errors, but without some frame for which it has a packet."""
        return self.by_time and not self.all_picked and not self.num_errors and bool(self.decoded_times)

    def needs(self, time: int | None) -> bool:
        """Whether the frame of a packet must be decoded even if no other frame is predicted from it."""
        if not self.by_time or time is None or time in self._uncertain_times:
            return True
        return time in self.positions and time not in self._picked

    def refused(self, error: FFmpegError) -> None:
        """Count a packet that the decoder refuses."""
        self.num_errors += 1

    def add(self, frame: av.VideoFrame) -> None:
        """Store one decoded frame if it is a target."""
        key = frame.pts if self.by_time else self.num_decoded
        self.num_decoded += 1
        if frame.pts is not None:
            self.went_back |= bool(self.decoded_times) and frame.pts < self.decoded_times[-1]
            self.decoded_times.append(frame.pts)
        if key not in self.positions or key in self._picked:
            return
        self.num_damaged += frame.is_corrupt
        # A stream may change its frame size; all frames get the size of the first picked one.
        shape = None if self.frames is None else (self.frames.shape[1], self.frames.shape[2])
        picture = as_displayed(frame, self._pixel_aspect, shape)
        if self.frames is None:
            self.frames = np.empty((len(self.targets), *picture.shape), np.uint8)
        for position in self.positions[key]:
            self.frames[position] = picture
        self._picked.add(key)
        if key in self._uncertain_times:
            self._num_to_decode = self.num_decoded + MAX_DELAYED


BUDGET_BYTES = 2 << 30
MAX_CLIP_BYTES = 4 << 30


class Reservation:
    """The memory that one clip holds."""

    def __init__(self, memory: FrameMemory) -> None:
        self._memory = memory
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Wait until the budget has room for this much more memory; a clip takes memory once."""
        self._memory._take(num_bytes)
        self.num_bytes += num_bytes


class FrameMemory:
    """A memory budget that threads share."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._held_bytes = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """Release at the end of the block the memory that was taken in it."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            with self._changed:
                self._held_bytes -= reservation.num_bytes
                self._changed.notify_all()

    def _take(self, num_bytes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._held_bytes or self._held_bytes + num_bytes <= self._budget_bytes)
            self._held_bytes += num_bytes


FRAME_MEMORY = FrameMemory()
"""The budget of this process."""
