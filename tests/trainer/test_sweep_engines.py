"""Where groups of a sweep are trained: given to workers, taken apart when they break, stopped, and within a budget."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file
from toy import make_config

from featurecache.interrupt import Interrupted, StopRequest
from featurecache.machine import usable_cores
from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.errors import ConfigError
from fusion_train.run import Run
from fusion_train.sweeps.budget import TimeEstimate, admitted, estimate, share_of_steps, used_up
from fusion_train.sweeps.early_stopping import stop_those_behind
from fusion_train.sweeps.engines.processes import environment, executor
from fusion_train.sweeps.grouping import group_trials
from fusion_train.sweeps.job import Cost, DeviceCapacity, GroupResult, SweepSettings, TrialGroup, TrialResult
from fusion_train.sweeps.running import dispatch
from fusion_train.sweeps.sweep_file import Sweep, load_sweep
from fusion_train.sweeps.trials import DONE, FAILED, STOPPED, WAITING, Outcome, TrialTable

COST = Cost(trained=1, soft_tokens=448, flops=1e12, shared_bytes=100, own_bytes=10)
FOUR = "variants:\n" + "".join(f"  {name}: {{optim: {{lr: {n + 1}e-4}}}}\n" for n, name in enumerate("abcd"))


@pytest.fixture
def load(tmp_path):
    def load(text: str, **budget: str) -> Sweep:
        (tmp_path / "mine.yaml").write_text(text)
        return load_sweep(str(tmp_path / "mine.yaml"), None, (), budget)

    return load


class Scripted:
    """A crew whose workers answer at once: a group with a trial of a name in `bad` breaks."""

    stopping = False

    def __init__(self, count: int = 1, bad: Sequence[str] = (), lost: Sequence[str] = ()) -> None:
        self.count, self.bad, self.lost = count, set(bad), set(lost)
        self.begun: list[list[str]] = []
        self.at_work: dict[int, TrialGroup] = {}

    def capacity(self) -> DeviceCapacity:
        return DeviceCapacity(1 << 30, 1e12)

    def begin(self, worker: int, group: TrialGroup) -> None:
        assert worker not in self.at_work
        self.begun.append([trial.name for trial in group.trials])
        self.at_work[worker] = group

    def answers(self) -> list[tuple[int, GroupResult]]:
        worker, group = self.at_work.popitem()
        names = {trial.name for trial in group.trials}
        if names & self.lost:
            self.lost -= names
            return [(worker, GroupResult(error="the node is gone", damaged=True, lost=True))]
        if names & self.bad:
            return [(worker, GroupResult(error="killed", damaged=True))]
        return [(worker, GroupResult(tuple(TrialResult(step=1) for _ in group.trials)))]


def groups(sweep: Sweep) -> list[TrialGroup]:
    return [TrialGroup(tuple(each), 0, None) for each in group_trials(sweep.trials, 0, lambda trial: COST, 1000)]


def quiet(line: str) -> None:
    pass


def test_a_broken_group_is_taken_apart_and_only_the_culprit_fails(load):
    executor = Scripted(count=2, bad=["b-seed0"])
    answers = list(dispatch(executor, groups(load("seeds: [0, 1]\n" + FOUR)), quiet))
    failed = [group.trials[0].name for group, answer, _ in answers if answer.error and len(group.trials) == 1]
    assert failed == ["b-seed0"]
    trained = [trial.name for group, answer, _ in answers if answer.trained for trial in group.trials]
    assert sorted(trained) == sorted([*(f"{v}-seed0" for v in "acd"), *(f"{v}-seed1" for v in "abcd")])


def test_a_group_whose_machine_was_lost_is_trained_again_as_it_is(load):
    executor = Scripted(lost=["a-seed0"])
    answers = list(dispatch(executor, groups(load("seeds: [0]\n" + FOUR)), quiet))
    assert executor.begun == [[f"{v}-seed0" for v in "abcd"]] * 2
    assert len(answers[-1][1].trained) == 4


def test_once_the_budget_is_used_up_nothing_more_is_begun(load):
    executor = Scripted()
    spent: list[TrialGroup] = []
    for group, _, _ in dispatch(
        executor, groups(load("seeds: [0, 1, 2]\n" + FOUR)), quiet, lambda at_work: bool(spent)
    ):
        spent.append(group)
    assert len(executor.begun) == 1


def test_a_stop_begins_nothing_more_and_says_that_the_command_goes_on(load):
    executor = Scripted()
    executor.stopping = True
    with pytest.raises(Interrupted, match="same command"):
        list(dispatch(executor, groups(load("seeds: [0]\n" + FOUR)), quiet))
    assert executor.begun == []


@pytest.mark.parametrize(
    ("workers", "sizes"), [(1, [4, 4]), (2, [4, 4]), (3, [3, 3, 1, 1]), (8, [1] * 8), (99, [1] * 8)]
)
def test_groups_are_cut_where_that_shares_the_work_evenly(load, workers, sizes):
    trials = load("seeds: [0, 1]\n" + FOUR).trials
    found = group_trials(trials, 0, lambda trial: COST, 1000, workers)
    assert [len(group) for group in found] == sizes
    assert sorted(trial.name for group in found for trial in group) == sorted(trial.name for trial in trials)


def test_a_worker_sees_its_own_device_alone(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    both = ["cuda:0", "cuda:1"]
    assert [environment(device, both)["CUDA_VISIBLE_DEVICES"] for device in both] == ["4", "7"]
    assert environment("cpu", ["cpu"])["CUDA_VISIBLE_DEVICES"] == ""
    cores = usable_cores()
    assert environment("cpu", ["cpu"] * cores)["OMP_NUM_THREADS"] == "1"
    assert environment("auto", ["auto"])["CUDA_VISIBLE_DEVICES"] == "4,7"
    for wrong in ("cuda:2", "gpu", "cuda:x"):
        with pytest.raises(ConfigError):
            environment(wrong, [wrong])


def table_of(sweep: Sweep, folder: Path) -> TrialTable:
    table = TrialTable(folder)
    table.add(sweep.trials)
    return table


def seeds_of(trials) -> list[int]:
    return sorted({trial.seed for trial in trials})


@pytest.mark.parametrize(
    ("budget", "kept"),
    [({"hours": "12"}, [0, 1, 2]), ({"hours": "11"}, [0, 1]), ({"trials": "7"}, [0]),
     ({"hours": "4", "trials": "12"}, [0])],
)  # fmt: skip
def test_a_budget_lets_whole_seeds_fall_out_the_last_first(load, tmp_path, budget, kept):
    sweep = load(FOUR, **budget)
    hourly = TimeEstimate(dict.fromkeys("abcd", 1.0), 3600.0, measured=True)
    said: list[str] = []
    found = admitted(sweep, table_of(sweep, tmp_path), hourly, said.append)
    assert seeds_of(found) == kept
    assert len(found) == 4 * len(kept)
    assert (len(kept) == 3) == (not any("left waiting" in line for line in said))


def test_a_budget_without_room_for_one_seed_is_refused_and_a_larger_one_goes_on(load, tmp_path):
    hourly = TimeEstimate(dict.fromkeys("abcd", 1.0), 3600.0, measured=True)
    sweep = load(FOUR, hours="3")
    table = table_of(sweep, tmp_path)
    with pytest.raises(ConfigError, match="4 hours, 4 trials, got hours 3"):
        admitted(sweep, table, hourly, quiet)
    for trial in sweep.trials:
        if trial.seed == 0:
            table.write(trial, state=DONE)
    table.spend(5 * 3600)
    assert seeds_of(admitted(load(FOUR, hours="5"), table, hourly, quiet)) == [0]
    assert seeds_of(admitted(load(FOUR, hours="9"), table, hourly, quiet)) == [0, 1]
    assert used_up(load(FOUR, hours="5"), table, 0.0)
    assert not used_up(load(FOUR, hours="6"), table, 3599.0)
    assert used_up(load(FOUR, hours="6"), table, 3600.0)
    assert not used_up(load(FOUR), table, 1e9)


def test_the_estimate_is_that_of_trials_trained_before_and_knows_of_stopping_early(load, tmp_path):
    sweep = load("seeds: [0]\nhalving: {at: [0.25, 0.5], keep: 0.5}\n" + FOUR)
    table, costs = table_of(sweep, tmp_path), dict.fromkeys("abcd", COST)
    assert estimate(sweep, table, costs, lambda: 1e12).seconds(sweep.trials[0]) > 1
    steps = sweep.trials[0].config.optim.steps
    table.write(sweep.trials[1], step=steps // 2, seconds=50.0)
    assert estimate(sweep, table, costs, lambda: 1e12).seconds(sweep.trials[0]) == pytest.approx(100)
    assert share_of_steps(sweep) == pytest.approx(0.25 + 0.5 * 0.25 + 0.25 * 0.5)


def test_unknown_budgets_are_refused(load):
    for budget in ({"hour": "1"}, {"hours": "0"}, {"trials": "many"}):
        with pytest.raises(ConfigError, match="budget"):
            load(FOUR, **budget)


def test_judging_again_comes_to_the_same(load, tmp_path):
    """As it is when a sweep goes on after its first rung."""
    sweep = load("seeds: [0, 1]\nreference: a\nhalving: {at: [0.25], keep: 0.5}\n" + FOUR)
    table = table_of(sweep, tmp_path)
    for trial in sweep.trials:
        if trial.seed == 0:  # the other seed is not in the budget
            table.write(trial, rungs={"5": {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}[trial.variant]})

    def states() -> dict[str, str]:
        stop_those_behind(sweep, table, sweep.trials, 5, quiet)
        return {trial.name: table.outcome(trial).state for trial in sweep.trials}

    first = states()
    assert {name for name, state in first.items() if state == STOPPED} == {"b-seed0", "b-seed1"}
    table.write(next(trial for trial in sweep.trials if trial.name == "d-seed0"), state=DONE)
    assert states() == first | {"d-seed0": DONE}


def test_a_stop_may_be_requested_from_elsewhere():
    told: list[int] = []
    with StopRequest(lambda: bool(told)) as request:
        assert not request.requested
        told.append(1)
        assert request.requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_that_somebody_stopped_fails_no_trial(load, tmp_path, number):
    lines: list[str] = []
    with executor(SweepSettings("features.zarr", "clips.jsonl", tmp_path, "emotion", "val"), lines.append) as workers:
        workers.begin(0, groups(load("seeds: [0]\nvariants: {a: {}}\n"))[0])
        os.kill(workers._workers[0]._process.pid, number)
        found: list[tuple[int, GroupResult]] = []
        while not found:
            found = workers.answers()
    assert found == [(0, GroupResult(stopped=True))]
    assert lines == [f"a worker was ended by {signal.Signals(number).name}"]


def test_a_driver_of_workers_elsewhere_imports_no_torch():
    modules = "fusion_train.sweeps.running, fusion_train.sweeps.engines.processes, fusion_train.sweeps.report"
    said = subprocess.run(
        [sys.executable, "-c", f"import sys, {modules}; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "False"


# As a user runs it: worker processes.

DEADLY = """
import ctypes, os, signal
from torch import nn

class Deadly(nn.Module):
    def __init__(self, dims, hidden=(1,), out_dim=8, dropout=0.0):
        super().__init__()
        self.project = nn.Linear(dims[0], out_dim)
        self.out_dim, self.num_tokens = out_dim, 1

    def forward(self, *features):
        self.die()

class Killed(Deadly):
    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

class Crashed(Deadly):
    def die(self):
        ctypes.string_at(0)
"""


@pytest.fixture
def command(llama, material, tmp_path):
    def write(text: str, *overrides: str) -> list[str]:
        fast = ("log.peak_tflops=1", "log.eval_every=100", "optim.steps=2")
        (tmp_path / "recipe.yaml").write_text(make_config(llama, *fast, *overrides).to_yaml())
        (tmp_path / "mine.yaml").write_text(text)
        return [
            "sweep",
            str(tmp_path / "mine.yaml"),
            "--config",
            str(tmp_path / "recipe.yaml"),
            "--store",
            str(material / "features.zarr"),
            "--clips",
            str(material / "clips.jsonl"),
            "--out",
            str(tmp_path / "sweep"),
        ]

    return write


def outcomes(folder: Path) -> dict[str, Outcome]:
    with closing(sqlite3.connect(folder / "sweep" / "trials.sqlite")) as table:
        keys = [key for (key,) in table.execute("SELECT key FROM trials ORDER BY rowid")]
    found = [TrialTable(folder / "sweep").read(key) for key in keys]
    return {outcome.name: outcome for outcome in found}


def weights(folder: Path) -> dict:
    return load_file(checkpoint.choose(Run(folder).checkpoints, "last") / "model.safetensors")


def test_a_worker_trains_and_answers_as_this_process_does(command, tmp_path):
    text = "seeds: [0]\nvariants: {conv: {model: {fusion: {name: conv}}}}\n"
    here = [*command(text)[:-1], str(tmp_path / "here"), "--engine", "here"]
    assert CliRunner().invoke(main, here).exit_code == 0
    result = CliRunner().invoke(main, [*command(text), "--devices", "cpu"])
    assert result.exit_code == 0, result.output
    assert outcomes(tmp_path)["conv-seed0"].state == DONE
    one, two = (tmp_path / folder / "conv-seed0" for folder in ("here", "sweep"))
    mine, theirs = weights(one), weights(two)
    assert all(mine[key].equal(theirs[key]) for key in mine | theirs)
    assert (one / "predictions.jsonl").read_bytes() == (two / "predictions.jsonl").read_bytes()


@pytest.mark.slow
def test_what_the_system_kills_fails_alone(command, tmp_path, monkeypatch):
    """One variant is killed as by a lack of memory, one has a segmentation fault, one is sound."""
    plugin = tmp_path / "plugin"
    (plugin / "deadly-1.dist-info").mkdir(parents=True)
    (plugin / "deadly.py").write_text(DEADLY)
    (plugin / "deadly-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly\nVersion: 1\n")
    (plugin / "deadly-1.dist-info" / "entry_points.txt").write_text(
        "[fusion_train.fusions]\nkilled = deadly:Killed\ncrashed = deadly:Crashed\n"
    )
    monkeypatch.syspath_prepend(plugin)
    monkeypatch.setenv("PYTHONPATH", str(plugin), prepend=os.pathsep)
    asked = command(
        "seeds: [0]\nvariants:\n  killed: {model: {fusion: {name: killed}}}\n"
        "  crashed: {model: {fusion: {name: crashed}}}\n  sound: {}\n"
    )
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 1, result.output
    assert "3 together failed" in result.output
    found = outcomes(tmp_path)
    assert {name: each.state for name, each in found.items()} == {
        "killed-seed0": FAILED,
        "crashed-seed0": FAILED,
        "sound-seed0": DONE,
    }
    assert "SIGKILL" in (found["killed-seed0"].error or "")
    assert "SIGSEGV" in (found["crashed-seed0"].error or "")


@pytest.mark.slow
def test_two_devices_train_the_weights_of_one(command, tmp_path):
    text = "seeds: [0, 1]\nvariants:\n  conv: {model: {fusion: {name: conv}}}\n  conv-attention: {}\n"
    one = [*command(text)[:-1], str(tmp_path / "one"), "--engine", "here"]
    assert CliRunner().invoke(main, one).exit_code == 0
    result = CliRunner().invoke(main, [*command(text), "--devices", "cpu,cpu"])
    assert result.exit_code == 0, result.output
    for name in outcomes(tmp_path):
        mine, theirs = weights(tmp_path / "one" / name), weights(tmp_path / "sweep" / name)
        assert all(mine[key].equal(theirs[key]) for key in mine | theirs)


@pytest.fixture
def start():
    """Start a command with two workers; it is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(asked: list[str]) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "fusion_train.cli", *asked, "--devices", "cpu,cpu"],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_until(true, seconds: float = 600) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_stopped_or_killed_it_leaves_no_worker_and_the_same_command_goes_on(command, start, tmp_path, how):
    text = "seeds: [0, 1]\nvariants:\n  conv: {model: {fusion: {name: conv}}}\n  conv-attention: {}\n"
    asked = command(text, "optim.steps=300", "checkpoint.every=20")
    driver = start(asked)
    for seed in (0, 1):
        kept = f"conv-attention-seed{seed}/checkpoints/step-*/state.json"
        wait_until(lambda kept=kept: list((tmp_path / "sweep").glob(kept)))
    workers = children(driver.pid)
    assert len(workers) == 2
    driver.send_signal(how)
    said, _ = driver.communicate(timeout=120)
    if how != signal.SIGKILL:
        assert driver.returncode == 1, said
        assert "same command" in said
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 60)
    assert {each.state for each in outcomes(tmp_path).values()} == {WAITING}
    again = start(asked)
    said, _ = again.communicate(timeout=1200)
    assert again.returncode == 0, said
    assert not re.search("(together from|training) step 0 ", said)
    assert {each.state for each in outcomes(tmp_path).values()} == {DONE}


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_trains_the_same_weights_though_an_actor_is_killed(command, tmp_path):
    ray = pytest.importorskip("ray")
    text = "seeds: [0, 1]\nvariants:\n  conv: {model: {fusion: {name: conv}}}\n  conv-attention: {}\n"
    longer = ("optim.steps=120", "checkpoint.every=10")
    one = [*command(text, *longer)[:-1], str(tmp_path / "one"), "--engine", "here"]
    assert CliRunner().invoke(main, one).exit_code == 0
    asked = [*command(text, *longer), "--engine", "ray", "--ray-actors", "2"]

    def kill_one() -> None:
        wait_until(lambda: list((tmp_path / "sweep").glob("*/checkpoints/step-*/state.json")))
        actors = [
            path for path in Path("/proc").glob("[0-9]*/cmdline") if path.read_bytes().startswith(b"ray::WorkerActor")
        ]
        os.kill(int(actors[0].parent.name), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        killer.start()
        result = CliRunner().invoke(main, asked)
    finally:
        ray.shutdown()
        killer.join()
    assert result.exit_code == 0, result.output
    assert result.output.count("2 together failed") == 1
    assert result.output.count("step 120: ") == 4
    for name in outcomes(tmp_path):
        mine, theirs = weights(tmp_path / "one" / name), weights(tmp_path / "sweep" / name)
        assert all(mine[key].equal(theirs[key]) for key in mine | theirs)
