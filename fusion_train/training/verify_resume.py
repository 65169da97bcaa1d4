"""Train, kill, resume, and compare every trained tensor with an uninterrupted run.

Both runs are separate processes (this module run as a program). The second is killed by SIGKILL a given number of times
and started again: at steps drawn over the whole run, half of them within a step, a quarter as the step's
checkpoint is written, a quarter while the process starts. Trained parameters, their average and
the state of the optimizer must agree to the bit.
"""

from __future__ import annotations

import functools
import itertools
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file

from featurecache.files.publish import make_folder, replace_bytes
from fusion_train import checkpoint
from fusion_train.config import Config, validate
from fusion_train.errors import CheckpointError
from fusion_train.run import Run
from fusion_train.yaml_settings import parse_yaml

CONFIG = "config.yaml"
OUTPUT = "said.txt"
"""Output of the newest process."""
READY = "trained parameters"
"""Text that `train` prints before its first step."""
CHECKPOINTS = 7
"""Number of checkpoints of a run."""
POLL_S = 0.005
TAIL_BYTES = 1 << 16
"""Bytes at the end of a metrics log that hold its newest line."""
PATIENCE_S = 600.0
"""Longest wait for a step of a run that will be killed."""


Where = Literal["in a step", "at a checkpoint", "at the start"]


@dataclass(frozen=True)
class Kill:
    """When to kill a process."""

    step: int
    """Number of logged steps after which the kill falls."""
    where: Where
    part: float
    """Share of the duration of a step, or of the start, before the kill."""


@dataclass(frozen=True)
class Pace:
    """Speed of the uninterrupted run."""

    start_s: float
    step_s: float


@dataclass(frozen=True)
class Verification:
    """Result of a comparison of both runs."""

    kills: list[int]
    """Newest logged step when the process was killed, per kill."""
    tensors: int
    differing: list[str]
    """`file: name, largest difference`."""


def verify_resume(
    config: Config,
    *,
    store: str,
    clips: str,
    folder: Path,
    steps: int,
    kills: int,
    seed: int,
    say: Callable[[str], None] = print,
) -> Verification:
    """Train `steps` steps twice, the second time killed `kills` times; both runs are left in `folder`.

    Raises:
        CheckpointError: a process failed without a kill; its last output is quoted.
    """
    every = max(1, steps // CHECKPOINTS)
    shortened = config.model_copy(
        update={
            "optim": config.optim.model_copy(update={"steps": steps}),
            "checkpoint": config.checkpoint.model_copy(update={"every": every}),
            "log": config.log.model_copy(update={"every": 1, "tensorboard": False, "tracker": None}),
        }
    )
    make_folder(folder)
    replace_bytes(folder / CONFIG, shortened.to_yaml().encode())
    uninterrupted, interrupted = Run(folder / "whole"), Run(folder / "killed")
    say(f"training {steps} steps without a break")
    speed = _leave_alone(folder, uninterrupted, store, clips, steps)
    killed: list[int] = []
    for kill in draw_kills(steps, kills, every, seed):
        if not _killed(kill, _start(folder, interrupted, store, clips), folder / OUTPUT, interrupted, speed):
            say(f"finished before kill {len(killed) + 1}")
            break
        killed.append(newest_step(interrupted))
        say(
            f"kill {len(killed)} of {kills}: {kill.where}, {killed[-1]} steps logged, "
            f"{len(checkpoint.published(interrupted.checkpoints))} checkpoints"
        )
    if not interrupted.finished:
        _finish(_start(folder, interrupted, store, clips))
    return compare(uninterrupted, interrupted, killed)


def draw_kills(steps: int, kills: int, every: int, seed: int) -> list[Kill]:
    """Moments over the first nine tenths of a run of `steps` steps, which has a checkpoint `every` so many."""
    chance = random.Random(seed)
    drawn = sorted(chance.randrange(max(1, steps * 9 // 10)) for _ in range(kills))
    kinds: tuple[Where, ...] = ("in a step", "at a checkpoint", "in a step", "at the start")
    kills_drawn = []
    for step, where in zip(drawn, itertools.cycle(kinds), strict=False):
        saved = every * min(max(1, -(-step // every)), CHECKPOINTS - 1)
        kills_drawn.append(Kill(saved if where == "at a checkpoint" else step, where, chance.random()))
    return kills_drawn


def compare(first: Run, second: Run, kills: Sequence[int] = ()) -> Verification:
    """Compare the last checkpoints of two runs, tensor by tensor."""
    folders = [checkpoint.choose(run.checkpoints, "last") for run in (first, second)]
    for folder in folders:
        checkpoint.verify(folder)
    differing: list[str] = []
    count = 0
    for path in sorted(folders[0].glob("*.safetensors")):
        one, other = load_file(path), load_file(folders[1] / path.name)
        count += len(one)
        for name in sorted(one.keys() | other.keys()):
            if name not in one or name not in other:
                differing.append(f"{path.name}: {name} only in one")
            elif not torch.equal(one[name], other[name]):
                gap = (one[name].double() - other[name].double()).abs().max().item()
                differing.append(f"{path.name}: {name}, by up to {gap:.3g}")
    return Verification(list(kills), count, differing)


def newest_step(run: Run) -> int:
    """Last logged step of a run, 0 without a log; a line torn by a kill is skipped."""
    return max((int(row["step"]) for row in run.metric_rows()), default=0)


def _start(folder: Path, run: Run, store: str, clips: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "fusion_train.training.verify_resume",
        str(folder / CONFIG),
        store,
        clips,
        str(run.folder),
    ]
    with (folder / OUTPUT).open("w") as said:
        return subprocess.Popen(command, stdout=said, stderr=subprocess.PIPE, text=True)


def _leave_alone(folder: Path, run: Run, store: str, clips: str, steps: int) -> Pace:
    began = time.monotonic()
    process = _start(folder, run, store, clips)
    _wait(process, lambda: _ready(folder / OUTPUT))
    ready = time.monotonic()
    _finish(process)
    return Pace(ready - began, (time.monotonic() - ready) / steps)


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise CheckpointError(
            "verify-resume",
            expected="training to end well",
            got=f"exit code {process.returncode}",
            problems=errors.strip().splitlines()[-8:],
        )


def _killed(kill: Kill, process: subprocess.Popen[str], said: Path, run: Run, pace: Pace) -> bool:
    """SIGKILL at the moment asked for; False where the process ended before."""
    if kill.where == "at the start":
        time.sleep(kill.part * pace.start_s)
    else:
        _wait(process, lambda: _ready(said) and newest_step(run) >= kill.step)
        time.sleep(kill.part * pace.step_s if kill.where == "in a step" else 0)
    if process.poll() is not None:
        _finish(process)
        return False
    process.kill()
    process.communicate()
    return True


def _ready(said: Path) -> bool:
    return READY in said.read_text()


def _wait(process: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and not until() and time.monotonic() < deadline:
        time.sleep(POLL_S)


if __name__ == "__main__":
    from fusion_train.training.trainer import train

    config_file, store, clips, out = sys.argv[1:]
    settings = validate(parse_yaml(Path(config_file).read_bytes(), config_file), config_file)
    train(settings, store=store, clips=clips, run=Run(out), say=functools.partial(print, flush=True))
