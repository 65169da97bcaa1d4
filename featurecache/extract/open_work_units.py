"""The units of one run: opened one after another as clips are asked for, closed once they are written.

A run that ends early commits through here what it has finished. This module knows no media format and no store format.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator

from featurecache.extract.pipeline import Batch
from featurecache.extract.prepare import Job, PreparedClip
from featurecache.extract.work_units import OpenUnit, Unit


class OpenUnits:
    """Units by the clips that they wait for."""

    def __init__(self, chosen: Iterable[Unit], open_unit: Callable[[Unit], OpenUnit]) -> None:
        self._chosen, self._open_unit = chosen, open_unit
        self._open: deque[OpenUnit] = deque()
        self._by_clip: dict[str, OpenUnit] = {}
        self._ended: deque[OpenUnit] = deque()
        """Units all of whose clips were given out, but whose unlisted ones are not decided yet."""
        self._num_closed = 0

    def jobs(self) -> Iterator[Job]:
        """Yield every clip of every unit that is ours to do."""
        held: list[Unit] = []
        for unit in self._chosen:
            if not (yield from self._jobs_of(unit)):
                held.append(unit)
        for unit in held:  # once more: the holder may have died
            yield from self._jobs_of(unit)

    def _jobs_of(self, unit: Unit) -> Generator[Job, None, bool]:
        """Yield the clips of one unit; return whether it was ours to do."""
        self._close_written()
        opened = self._open_unit(unit)
        self._open.append(opened)
        if not opened.claim():
            self._open.pop().close()
            return False
        for clip, encoders in opened.jobs():
            self._by_clip[clip.id] = opened
            yield clip, encoders
        self._ended.append(opened)
        return True

    def take(self, prepared: PreparedClip) -> list[Batch]:
        """Decide a clip; return the batches that are full now."""
        return [*self.rest(), *self._by_clip.pop(prepared.clip.id).take(prepared.clip.id, prepared.by_feature)]

    def rest(self) -> list[Batch]:
        """Batches that are full once clips outside the list are decided."""
        batches: list[Batch] = []
        while self._ended:
            batches += self._ended.popleft().finish()
        return batches

    def begun(self) -> list[Batch]:
        """Batches that are not full, with what they hold: for a run that stops here."""
        return [batch for unit in self._open for batch in unit.begun()]

    def keep(self, *, failed: bool) -> None:
        """Commit what is decided of shards that are not whole; without `failed`, not the clips that failed.

        Raises:
            WriteError: the disk is full or refuses.
        """
        for unit in self._open:
            unit.keep(failed=failed)

    @property
    def num_kept(self) -> int:
        """Clips that this run has decided, and that are committed."""
        return self._num_closed + sum(unit.num_kept for unit in self._open)

    def close(self) -> None:
        """Give up what is not committed."""
        while self._open:
            self._open.pop().close()

    def _close_written(self) -> None:
        while self._open and self._open[0].written:
            unit = self._open.popleft()
            self._num_closed += unit.num_kept
            unit.close()
