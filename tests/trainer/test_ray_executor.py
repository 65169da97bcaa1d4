"""The Ray executor of sweeps: what its actors answer, how a dead one is replaced, and when a machine counts as lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from in_process_ray import ActorDies, InProcessRay

from featurecache.errors import MissingExtraError
from featurecache.interrupt import StopRequest
from fusion_train.errors import ConfigError
from fusion_train.sweeps import worker as worker_module
from fusion_train.sweeps.engines import ray as engine
from fusion_train.sweeps.job import Cost, DeviceCapacity, GroupResult, SweepSettings, TrialGroup, TrialResult
from fusion_train.sweeps.sweep_file import Trial

COST = Cost(trained=1, soft_tokens=448, flops=1e12, shared_bytes=100, own_bytes=10)


class StubWorker:
    """Says two lines for each group; a group of a trial `dies`, `breaks` or `refuses` ends its actor or fails."""

    started: list[StubWorker]

    def __init__(self, work: SweepSettings, say: Callable[[str], None], stop: Callable[[], bool]) -> None:
        self.say, self.stop, self.refusal = say, stop, None
        self.started.append(self)

    def capacity(self) -> DeviceCapacity:
        return DeviceCapacity(1000 + len(self.started), 1e12)

    def check(self, sweep: object) -> dict[str, Cost | None]:
        self.say("checked")
        if sweep == "bad":
            raise ConfigError("sweep", expected="a good one", got="a bad one")
        return {"a": COST}

    def answer(self, group: TrialGroup) -> GroupResult:
        name = group.trials[0].variant
        self.say(f"{name} begins")
        if name == "dies":
            raise ActorDies
        if name == "breaks":
            raise ValueError("too many values to unpack")
        self.say(f"{name} ends")
        return GroupResult((TrialResult(step=3),), stopped=self.stop())


def group(variant: str) -> TrialGroup:
    return TrialGroup((Trial(variant, 0, ()),), 0, None)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> InProcessRay:
    module = InProcessRay({"CPU": 4.0})
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setattr(worker_module, "Worker", StubWorker)
    monkeypatch.setattr(StubWorker, "started", [], raising=False)
    return module


@pytest.fixture
def opened(ray: InProcessRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    work = SweepSettings("s.zarr", "c.jsonl", tmp_path, "emotion", "val")

    @contextmanager
    def opened(actors: int | None = 2) -> Iterator[tuple[engine.RayExecutor, list[str]]]:
        lines: list[str] = []
        with engine.executor(work, lines.append, actors=actors) as executor:
            yield executor, lines

    return opened


def test_a_group_is_answered_with_its_result_and_its_lines_are_passed_on(opened, ray) -> None:
    with opened() as (executor, lines):
        assert executor.count == 2
        executor.begin(1, group("conv"))
        ((worker, result),) = executor.answers()
    assert (worker, result.trained[0].step, result.damaged) == (1, 3, False)
    assert lines == ["conv begins", "conv ends"]
    assert len(ray.killed) == 2  # the actors end with the block


@pytest.mark.parametrize("unready", [1, 2])
def test_lines_of_a_group_that_still_trains_are_passed_on_once(opened, ray, unready: int) -> None:
    with opened() as (executor, lines):
        executor.begin(0, group("conv"))
        ray.unready = unready  # the group; and the lines of its actor too
        assert executor.answers() == []
        assert lines == (["conv begins", "conv ends"] if unready == 1 else [])
        assert len(executor.answers()) == 1
    assert lines == ["conv begins", "conv ends"]


def test_a_sweep_is_checked_by_one_actor_and_its_refusal_is_raised_as_itself(opened) -> None:
    with opened() as (executor, lines):
        assert executor.check("good") == {"a": COST}
        with pytest.raises(ConfigError, match="expected a good one"):
            executor.check("bad")
    assert lines == ["checked", "checked"]


def test_the_group_of_an_actor_that_dies_fails_and_another_actor_takes_its_place(opened, ray) -> None:
    with opened() as (executor, _):
        executor.begin(0, group("dies"))
        ((_, result),) = executor.answers()
        assert (result.error, result.damaged, result.lost) == ("The actor died unexpectedly.", True, False)
        dead = executor._actors[0]
        executor.begin(0, group("conv"))
        assert executor.answers()[0][1].trained
    assert ray.killed[0] is dead
    assert len(StubWorker.started) == 3


def test_the_group_of_a_machine_that_is_gone_is_lost_and_not_at_fault(opened, ray) -> None:
    with opened() as (executor, _):
        executor.begin(0, group("dies"))
        ray.dead_nodes.add("node")
        ((_, result),) = executor.answers()
    assert (result.damaged, result.lost) == (True, True)


def test_an_error_of_the_program_names_itself_and_costs_the_actor(opened) -> None:
    with opened() as (executor, _):
        executor.begin(0, group("breaks"))
        ((_, result),) = executor.answers()
        assert (result.error, result.damaged, result.lost) == ("ValueError: too many values to unpack", True, False)
        executor.begin(0, group("conv"))
        assert not executor.answers()[0][1].damaged
    assert len(StubWorker.started) == 3


def test_a_stop_reaches_every_actor_once(opened) -> None:
    with opened() as (executor, _):
        executor._request = StopRequest(also=lambda: True)
        executor.begin(0, group("conv"))
        assert not executor.answers()[0][1].stopped  # it had ended before the stop arrived
        assert [worker.stop() for worker in StubWorker.started] == [True, True]
        executor.begin(1, group("conv"))
        assert executor.answers()[0][1].stopped


@pytest.mark.parametrize(
    ("resources", "actors", "count", "options", "free"),
    [
        ({"CPU": 16.0, "GPU": 2.0}, None, 2, {"num_gpus": 1, "num_cpus": 8, "max_concurrency": 2}, 1002),
        ({"CPU": 16.0}, None, 1, {"num_gpus": 0, "num_cpus": 16, "max_concurrency": 2}, 1001),
        ({"CPU": 16.0}, 4, 4, {"num_gpus": 0, "num_cpus": 4, "max_concurrency": 2}, 1004 // 4),
        ({"CPU": 2.0}, 4, 4, {"num_gpus": 0, "num_cpus": 1, "max_concurrency": 2}, 1004 // 4),
    ],
)
def test_an_actor_per_gpu_or_per_node_and_actors_of_one_node_share_its_memory(
    resources, actors, count, options, free, opened, ray
) -> None:
    ray.resources = resources
    with opened(actors) as (executor, _):
        assert executor.count == count
        assert ray.actor_options == [options] * count
        assert executor.capacity() == DeviceCapacity(free, 1e12)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("featurecache.extras._installed", lambda module: module != "ray")
    work = SweepSettings("s.zarr", "c.jsonl", tmp_path, "emotion", "val")
    with pytest.raises(MissingExtraError, match=r"featurecache\[ray\]"), engine.executor(work, print):
        pass
