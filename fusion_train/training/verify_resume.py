"""Train, kill, resume, and compare every trained tensor with a run that was left alone.

Both runs are processes of their own (this module run as a program). The second is ended by SIGKILL at a moment drawn
at random, as often as asked, and started again each time. What must agree to the bit: trained
parameters, their average, and the optimizer's state.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from featurecache.store.publish import make_folder, replace_bytes
from fusion_train import checkpoint
from fusion_train.config import Config, validate
from fusion_train.errors import CheckpointError
from fusion_train.run import Run

CONFIG = "config.yaml"
POLL_S = 0.02
PATIENCE_S = 600.0
"""Longest wait for a step of a run that is to be killed."""


@dataclass(frozen=True)
class Verification:
    """What was compared and what differs."""

    kills: list[int]
    """Newest step in the journal when the process was killed."""
    tensors: int
    differing: list[str]
    """`file: name, largest difference`."""


def verify_resume(
    config: Config, *, store: str, clips: str, folder: Path, steps: int, kills: int, seed: int,
    say: Callable[[str], None] = print,
) -> Verification:  # fmt: skip
    """Train `steps` steps twice, the second time killed `kills` times; both runs are left in `folder`.

    Raises:
        CheckpointError: a process failed by itself; its last words are quoted.
    """
    every = max(1, steps // 7)
    short = config.model_copy(
        update={
            "optim": config.optim.model_copy(update={"steps": steps}),
            "checkpoint": config.checkpoint.model_copy(update={"every": every}),
            "log": config.log.model_copy(update={"every": 1, "tensorboard": False, "tracker": None}),
        }
    )
    make_folder(folder)
    replace_bytes(folder / CONFIG, short.to_yaml().encode())
    whole, parts = Run(folder / "whole"), Run(folder / "killed")
    say(f"training {steps} steps without a break")
    _finish(_start(folder, whole, store, clips))
    chance = random.Random(seed)
    killed: list[int] = []
    while len(killed) < kills:
        done = newest_step(parts)
        target = chance.randint(done, max(done, steps - 1 - (kills - len(killed)) // 2))
        process = _start(folder, parts, store, clips)
        reached = _kill_after(process, parts, min(target, steps - 1), chance.random() * 0.1)
        if reached is None:
            say(f"finished before kill {len(killed) + 1}")
            break
        killed.append(reached)
        say(f"kill {len(killed)} of {kills}: after step {reached} in the journal, "
            f"{len(checkpoint.published(parts.checkpoints))} checkpoints")  # fmt: skip
    if not parts.finished:
        _finish(_start(folder, parts, store, clips))
    return compare(whole, parts, killed)


def compare(first: Run, second: Run, kills: Sequence[int] = ()) -> Verification:
    """Compare the last checkpoints of two runs, tensor by tensor."""
    folders = [checkpoint.choose(run.checkpoints, "last") for run in (first, second)]
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
    """Last step in a run's journal, 0 where there is none; a line torn by a kill is skipped."""
    if not run.metrics.is_file():
        return 0
    lines = run.metrics.read_text(errors="replace").splitlines()
    steps = [line.partition('"step": ')[2].partition(",")[0] for line in lines]
    return max((int(step) for step in steps if step.isdigit()), default=0)


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
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise CheckpointError(
            "verify-resume", expected="training to end well", got=f"exit code {process.returncode}",
            problems=errors.strip().splitlines()[-8:],
        )  # fmt: skip


def _kill_after(process: subprocess.Popen[str], run: Run, step: int, delay_s: float) -> int | None:
    """SIGKILL once the journal has come to `step`; returns the step reached, or None where it ended before."""
    deadline = time.monotonic() + PATIENCE_S
    began = newest_step(run)
    while process.poll() is None and time.monotonic() < deadline:
        reached = newest_step(run)
        if reached >= step and (reached > began or step <= began):
            break
        time.sleep(POLL_S)
    time.sleep(delay_s)
    if process.poll() is not None:
        _finish(process)
        return None
    process.kill()
    process.communicate()
    return newest_step(run)


if __name__ == "__main__":
    from fusion_train.training.train import train

    config_file, store, clips, out = sys.argv[1:]
    settings = validate(yaml.safe_load(Path(config_file).read_text()), config_file)
    train(settings, store=store, clips=clips, run=Run(out))
