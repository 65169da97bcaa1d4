"""Train groups in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fusion_train.sweeps.job import Answer, Cost, Group, Room, Work
from fusion_train.sweeps.sweep_file import Sweep


class Here:
    """A crew of one, which trains when it is asked for its answer."""

    count = 1
    stopping = False
    """Signals are taken by the training loop itself."""

    def __init__(self, work: Work, say: Callable[[str], None]) -> None:
        from fusion_train.sweeps.worker import Worker  # with torch, which drivers of other engines do without

        self._worker = Worker(work, say)
        self._given: list[Group] = []

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        return self._worker.check(sweep)

    def room(self) -> Room:
        return self._worker.room()

    def begin(self, worker: int, group: Group) -> None:
        self._given.append(group)

    def answers(self) -> list[tuple[int, Answer]]:
        return [(0, self._worker.answer(self._given.pop()))]


@contextmanager
def executor(work: Work, say: Callable[[str], None]) -> Iterator[Here]:
    yield Here(work, say)
