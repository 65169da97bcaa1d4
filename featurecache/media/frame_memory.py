"""How much memory decoded frames may take, over all decode threads of a process.

A clip's frames are held at the size of its recording until they are resized: 16 frames of 1280 × 720 are 44 MB, of
7680 × 4320 1.6 GB. A clip that does not fit beside what others hold waits; a clip larger than the whole budget waits
until it is alone, and one beyond `MAX_CLIP_BYTES` fails.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

BUDGET_BYTES = 2 << 30
MAX_CLIP_BYTES = 4 << 30


class Reservation:
    """What one clip holds."""

    def __init__(self, memory: FrameMemory) -> None:
        self._memory = memory
        self.num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Wait until there is room for this much more. A clip takes once."""
        self._memory._take(num_bytes)
        self.num_bytes += num_bytes


class FrameMemory:
    """A budget that threads share."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._held_bytes = 0
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self) -> Iterator[Reservation]:
        """Give back at the end of the block what was taken in it."""
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
"""The one of this process."""
