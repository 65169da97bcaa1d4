"""Train groups on a Ray cluster: one actor with a worker per GPU, or per node where no node has a GPU.

Every node must reach store, clip list, models and the sweep's folder under the paths of the driver; actors work in the
driver's folder. When an actor dies, its group fails; when its node is lost too, the group trains again on another node.
Needs the extra `ray`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from featurecache.engines.cluster import cluster
from featurecache.errors import FeatureCacheError
from featurecache.interrupt import StopRequest
from fusion_train.sweeps.engines import POLL_S
from fusion_train.sweeps.job import Cost, DeviceCapacity, GroupResult, SweepSettings, TrialGroup
from fusion_train.sweeps.sweep_file import Sweep


class WorkerActor:
    """A worker on the cluster; `train` runs on one thread, the other methods on a second one."""

    def __init__(self, work: SweepSettings, folder: str) -> None:
        from fusion_train.sweeps.worker import Worker

        os.chdir(folder)
        self._lines: list[str] = []
        self._stop = False
        self._worker = Worker(work, self._lines.append, lambda: self._stop)

    def place(self) -> tuple[str, DeviceCapacity]:
        """Return the node and its capacity."""
        import ray

        return ray.get_runtime_context().get_node_id(), self._worker.capacity()

    def check(self, sweep: Sweep) -> tuple[dict[str, Cost | None], FeatureCacheError | None]:
        """Return costs by variant, or the error that keeps the sweep from running."""
        try:
            return self._worker.check(sweep), None
        except FeatureCacheError as error:
            return {}, error

    def train(self, group: TrialGroup) -> GroupResult:
        return self._worker.answer(group)

    def lines(self) -> list[str]:
        """Return the lines printed since the last call."""
        lines, self._lines[:] = list(self._lines), []
        return lines

    def stop(self) -> None:
        """Save and stop after the current step."""
        self._stop = True


class RayExecutor:
    """Actors of a Ray cluster, one worker each."""

    def __init__(
        self, ray: Any, work: SweepSettings, actors: int | None, say: Callable[[str], None], request: StopRequest
    ) -> None:
        self._ray, self._work, self._say, self._request = ray, work, say, request
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        nodes = sum(node["Alive"] for node in ray.nodes())
        self.count = actors or gpus or nodes
        self._on_gpus = bool(gpus)
        self._options = {"num_gpus": 1 if gpus else 0, "num_cpus": max(1, cpus // self.count), "max_concurrency": 2}
        self._stop_sent = False
        self._actors = [self._start() for _ in range(self.count)]
        self._places: dict[int, tuple[str, DeviceCapacity]] = {}
        self._damaged: set[int] = set()
        self._training: dict[Any, int] = {}
        self._line_requests: dict[int, Any] = {}

    @property
    def stopping(self) -> bool:
        return self._request.requested

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        costs, error = self._ray.get(self._actors[0].check.remote(sweep))
        self._pass_on(0, last=True)
        if error is not None:
            raise error
        return costs

    def capacity(self) -> DeviceCapacity:
        """Actors on one node without GPUs share its memory."""
        for number in range(self.count):
            self._place(number)
        nodes = [node for node, _ in self._places.values()]
        free_bytes = [
            capacity.free_bytes // (1 if self._on_gpus else nodes.count(node))
            for node, capacity in self._places.values()
        ]
        return DeviceCapacity(min(free_bytes), min(capacity.peak_flops for _, capacity in self._places.values()))

    def begin(self, worker: int, group: TrialGroup) -> None:
        if worker in self._damaged:
            self._ray.kill(self._actors[worker])
            self._actors[worker] = self._start()
            self._damaged.discard(worker)
            self._places.pop(worker, None)
        self._place(worker)  # remembers the node, to tell later whether it is lost
        self._training[self._actors[worker].train.remote(group)] = worker

    def answers(self) -> list[tuple[int, GroupResult]]:
        if self.stopping and not self._stop_sent:
            self._stop_sent = True
            for actor in self._actors:
                actor.stop.remote()
        results = []
        for future in self._ray.wait(list(self._training), num_returns=len(self._training), timeout=POLL_S)[0]:
            number = self._training.pop(future)
            results.append((number, self._answer(number, future)))
        for number in self._training.values():
            self._pass_on(number)
        return results

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)

    def _start(self) -> Any:
        return self._ray.remote(**self._options)(WorkerActor).remote(self._work, os.getcwd())

    def _place(self, number: int) -> tuple[str, DeviceCapacity]:
        if number not in self._places:
            self._places[number] = self._ray.get(self._actors[number].place.remote())
        return self._places[number]

    def _answer(self, number: int, future: Any) -> GroupResult:
        try:
            result: GroupResult = self._ray.get(future)
            if number in self._line_requests:
                self._pass_on(number, last=True)
            self._pass_on(number, last=True)
        except self._ray.exceptions.RayActorError as error:
            lost = self._place(number)[0] not in {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
            result = GroupResult(error=str(error).strip().partition("\n")[0], damaged=True, lost=lost)
        except self._ray.exceptions.RayTaskError as error:
            result = GroupResult(error=f"{type(error.cause).__name__}: {error.cause}", damaged=True)
        if result.damaged:
            self._damaged.add(number)
            self._line_requests.pop(number, None)
        return result

    def _pass_on(self, number: int, last: bool = False) -> None:
        """Print an actor's lines; one request is under way at a time, and `last` waits for it."""
        if number not in self._line_requests:
            self._line_requests[number] = self._actors[number].lines.remote()
        if last or self._ray.wait([self._line_requests[number]], timeout=0)[0]:
            for line in self._ray.get(self._line_requests.pop(number)):
                self._say(line)


@contextmanager
def executor(
    work: SweepSettings, say: Callable[[str], None], address: str | None = None, actors: int | None = None
) -> Iterator[RayExecutor]:
    """Start actors on the cluster at `address`, a cluster that is found, or a local one; they end with the block.

    Raises:
        MissingExtraError: ray is not installed.
    """
    with cluster(address) as ray, StopRequest() as request:
        workers = RayExecutor(ray, work, actors, say, request)
        try:
            yield workers
        finally:
            workers.close()
