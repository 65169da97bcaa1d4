"""Train groups in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fusion_train.sweeps.job import Cost, DeviceCapacity, GroupResult, SweepSettings, TrialGroup
from fusion_train.sweeps.sweep_file import Sweep


class InProcessExecutor:
    """A crew of one, which trains when it is asked for its answer."""

    count = 1
    stopping = False
    """Signals are taken by the training loop itself."""

    def __init__(self, work: SweepSettings, say: Callable[[str], None]) -> None:
        from fusion_train.sweeps.worker import Worker  # with torch, which drivers of other engines do without

        self._worker = Worker(work, say)
        self._given: list[TrialGroup] = []

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        return self._worker.check(sweep)

    def room(self) -> DeviceCapacity:
        return self._worker.room()

    def begin(self, worker: int, group: TrialGroup) -> None:
        self._given.append(group)

    def answers(self) -> list[tuple[int, GroupResult]]:
        return [(0, self._worker.answer(self._given.pop()))]


@contextmanager
def executor(work: SweepSettings, say: Callable[[str], None]) -> Iterator[InProcessExecutor]:
    yield InProcessExecutor(work, say)
