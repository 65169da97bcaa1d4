"""Train groups in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fusion_train.sweeps.job import Cost, DeviceCapacity, GroupResult, SweepSettings, TrialGroup
from fusion_train.sweeps.sweep_file import Sweep


class InProcessExecutor:
    """One worker in this process, which trains when `answers` is called."""

    count = 1
    stopping = False
    """Always False: the training loop itself handles signals."""

    def __init__(self, work: SweepSettings, say: Callable[[str], None]) -> None:
        from fusion_train.sweeps.worker import Worker  # with torch, which drivers of other engines do without

        self._worker = Worker(work, say)
        self._queued: list[TrialGroup] = []

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        return self._worker.check(sweep)

    def capacity(self) -> DeviceCapacity:
        return self._worker.capacity()

    def begin(self, worker: int, group: TrialGroup) -> None:
        self._queued.append(group)

    def answers(self) -> list[tuple[int, GroupResult]]:
        return [(0, self._worker.answer(self._queued.pop()))]


@contextmanager
def executor(work: SweepSettings, say: Callable[[str], None]) -> Iterator[InProcessExecutor]:
    yield InProcessExecutor(work, say)
