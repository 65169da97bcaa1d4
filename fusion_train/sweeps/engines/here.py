"""Train groups in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fusion_train.sweeps.work import Answer, Group, Room, Work
from fusion_train.sweeps.worker import Worker, room


class Here:
    """A crew of one, which trains when it is asked for its answer."""

    count = 1
    stopping = False
    """Signals are taken by the training loop itself."""

    def __init__(self, work: Work, say: Callable[[str], None]) -> None:
        self._work, self._worker = work, Worker(work, say)
        self._given: list[Group] = []

    def room(self) -> Room:
        return room(self._work)

    def begin(self, worker: int, group: Group) -> None:
        self._given.append(group)

    def answers(self) -> list[tuple[int, Answer]]:
        return [(0, self._worker.answer(self._given.pop()))]


@contextmanager
def crew(work: Work, say: Callable[[str], None]) -> Iterator[Here]:
    yield Here(work, say)
