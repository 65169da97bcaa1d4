"""Give groups to workers as these become idle; take a group apart that fails as a whole."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from featurecache.interrupt import Interrupted
from fusion_train.sweeps.engines import Executor
from fusion_train.sweeps.job import GroupResult, TrialGroup


def dispatch(
    executor: Executor,
    groups: Iterable[TrialGroup],
    say: Callable[[str], None],
    used_up: Callable[[float], bool] = lambda at_work_s: False,
) -> Iterator[tuple[TrialGroup, GroupResult, float]]:
    """Train groups, as many at once as there are workers; yields each with its answer and the seconds it took.

    A group of several that failed, or whose worker died with it, is taken apart: its trials are trained one by one,
    so that the one to blame is found. What was broken off counts as seconds of the trials that follow.

    Args:
        used_up: told how long what is at work has been so, all together; once it says yes, nothing more is begun.

    Raises:
        FeatureCacheError: no trial's fault, such as a full disk; what was at work waits where its checkpoints are.
        Interrupted: a stop was requested; what was at work has been saved.
    """
    left = deque(groups)
    busy: dict[int, tuple[TrialGroup, float]] = {}
    stopped = False
    while True:
        idle = [worker for worker in range(executor.count) if worker not in busy]
        now = time.perf_counter()
        while idle and left and not executor.stopping and not used_up(sum(now - began for _, began in busy.values())):
            worker, group = idle.pop(0), left.popleft()
            busy[worker] = group, now
            executor.begin(worker, group)
        if not busy:
            break
        for worker, answer in executor.answers():
            group, began = busy.pop(worker)
            if answer.halt is not None:
                raise answer.halt
            if answer.lost:
                left.appendleft(group)
            elif answer.error is not None and len(group.trials) > 1:
                say(f"{len(group.trials)} together failed ({answer.error}); one by one now")
                left.extendleft(replace(group, trials=(trial,)) for trial in reversed(group.trials))
            stopped = stopped or answer.stopped
            yield group, answer, time.perf_counter() - began
    if stopped or (left and executor.stopping):
        raise Interrupted("stopped. Go on with the same command.")
