"""Train groups on a Ray cluster: actors hold a worker each, one a GPU, or one a node where there is none.

Store, clip list, models and the sweep's folder must be reachable from every node under the paths that they have here;
actors work in the driver's folder. An actor that dies is said to be gone; where its node went with it, the group is
said to be lost, which is no fault of the group. Needs the extra `ray`.
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
    """A worker on the cluster; `train` runs on one thread of it, the other calls on a second."""

    def __init__(self, work: SweepSettings, folder: str) -> None:
        from fusion_train.sweeps.worker import Worker

        os.chdir(folder)
        self._lines: list[str] = []
        self._stop = False
        self._worker = Worker(work, self._lines.append, lambda: self._stop)

    def place(self) -> tuple[str, DeviceCapacity]:
        """The node, and what it has."""
        import ray

        return ray.get_runtime_context().get_node_id(), self._worker.room()

    def check(self, sweep: Sweep) -> tuple[dict[str, Cost | None], FeatureCacheError | None]:
        """Costs by variant, or why the sweep cannot run."""
        try:
            return self._worker.check(sweep), None
        except FeatureCacheError as error:
            return {}, error

    def train(self, group: TrialGroup) -> GroupResult:
        return self._worker.answer(group)

    def lines(self) -> list[str]:
        """What it has to say since it was asked last."""
        said, self._lines[:] = list(self._lines), []
        return said

    def stop(self) -> None:
        """Save and stop after the step that it is at."""
        self._stop = True


class RayExecutor:
    """A crew of actors."""

    def __init__(
        self, ray: Any, work: SweepSettings, actors: int | None, say: Callable[[str], None], request: StopRequest
    ) -> None:
        self._ray, self._work, self._say, self._request = ray, work, say, request
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        nodes = sum(node["Alive"] for node in ray.nodes())
        self.count = actors or gpus or nodes
        self._on_gpus = bool(gpus)
        self._options = {"num_gpus": 1 if gpus else 0, "num_cpus": max(1, cpus // self.count), "max_concurrency": 2}
        self._told = False
        self._actors = [self._start() for _ in range(self.count)]
        self._places: dict[int, tuple[str, DeviceCapacity]] = {}
        self._damaged: set[int] = set()
        self._training: dict[Any, int] = {}
        self._asked: dict[int, Any] = {}

    @property
    def stopping(self) -> bool:
        return self._request.requested

    def check(self, sweep: Sweep) -> dict[str, Cost | None]:
        costs, error = self._ray.get(self._actors[0].check.remote(sweep))
        self._pass_on(0, last=True)
        if error is not None:
            raise error
        return costs

    def room(self) -> DeviceCapacity:
        """Actors on one node without GPUs share its memory."""
        for number in range(self.count):
            self._place(number)
        nodes = [node for node, _ in self._places.values()]
        free = [room.free_bytes // (1 if self._on_gpus else nodes.count(node)) for node, room in self._places.values()]
        return DeviceCapacity(min(free), min(room.peak_flops for _, room in self._places.values()))

    def begin(self, worker: int, group: TrialGroup) -> None:
        if worker in self._damaged:
            self._ray.kill(self._actors[worker])
            self._actors[worker] = self._start()
            self._damaged.discard(worker)
            self._places.pop(worker, None)
        self._place(worker)  # which node is lost with it, should it be
        self._training[self._actors[worker].train.remote(group)] = worker

    def answers(self) -> list[tuple[int, GroupResult]]:
        if self.stopping and not self._told:
            self._told = True
            for actor in self._actors:
                actor.stop.remote()
        found = []
        for future in self._ray.wait(list(self._training), num_returns=len(self._training), timeout=POLL_S)[0]:
            number = self._training.pop(future)
            found.append((number, self._answer(number, future)))
        for number in self._training.values():
            self._pass_on(number)
        return found

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
            answer: GroupResult = self._ray.get(future)
            if number in self._asked:
                self._pass_on(number, last=True)
            self._pass_on(number, last=True)
        except self._ray.exceptions.RayActorError as error:
            lost = self._place(number)[0] not in {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
            answer = GroupResult(error=str(error).strip().partition("\n")[0], damaged=True, lost=lost)
        except self._ray.exceptions.RayTaskError as error:
            answer = GroupResult(error=f"{type(error.cause).__name__}: {error.cause}", damaged=True)
        if answer.damaged:
            self._damaged.add(number)
            self._asked.pop(number, None)
        return answer

    def _pass_on(self, number: int, last: bool = False) -> None:
        """Say what an actor has said; one question under way at a time; the `last` one is waited for."""
        if number not in self._asked:
            self._asked[number] = self._actors[number].lines.remote()
        if last or self._ray.wait([self._asked[number]], timeout=0)[0]:
            for line in self._ray.get(self._asked.pop(number)):
                self._say(line)


@contextmanager
def executor(
    work: SweepSettings, say: Callable[[str], None], address: str | None = None, actors: int | None = None
) -> Iterator[RayExecutor]:
    """Actors on the cluster at `address`, on one that is found, or on a local one, that end with the block.

    Raises:
        MissingExtraError: ray is not installed.
    """
    with cluster(address) as ray, StopRequest() as request:
        workers = RayExecutor(ray, work, actors, say, request)
        try:
            yield workers
        finally:
            workers.close()
