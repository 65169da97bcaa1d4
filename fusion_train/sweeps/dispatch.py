"""Hand groups to idle workers; a group that fails as a whole is split into its trials."""

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
    """Train groups, as many at once as there are workers; yields each group with its result and its seconds.

    A group of several trials that failed, or whose worker died, is split: its trials train one by one, so that the
    trial at fault is found.

    Args:
        used_up: receives the total running time of active groups; when it returns True, no new group starts.

    Raises:
        FeatureCacheError: an error that is no trial's fault, such as a full disk; active groups resume from their
        checkpoints.
        Interrupted: a stop was requested; all active groups are saved.
    """
    queue = deque(groups)
    active: dict[int, tuple[TrialGroup, float]] = {}
    stopped = False
    while True:
        idle = [worker for worker in range(executor.count) if worker not in active]
        now = time.perf_counter()
        while (
            idle
            and queue
            and not executor.stopping
            and not used_up(sum(now - start_s for _, start_s in active.values()))
        ):
            worker, group = idle.pop(0), queue.popleft()
            active[worker] = group, now
            executor.begin(worker, group)
        if not active:
            break
        for worker, result in executor.answers():
            group, start_s = active.pop(worker)
            if result.halt is not None:
                raise result.halt
            if result.lost:
                queue.appendleft(group)
            elif result.error is not None and len(group.trials) > 1:
                say(f"{len(group.trials)} together failed ({result.error}); one by one now")
                queue.extendleft(replace(group, trials=(trial,)) for trial in reversed(group.trials))
            stopped = stopped or result.stopped
            yield group, result, time.perf_counter() - start_s
    if stopped or (queue and executor.stopping):
        raise Interrupted("stopped. Go on with the same command.")
