"""Eight variants together, against the same eight as separate runs and as a plain loop in one process.

Everything is run as a user runs it, one command after another: `fusion-train sweep` on one seed, by one worker and by
one a core; `fusion-train --stage perception` eight times; `train()` eight times in one process. Their weights are
compared. Memory is the most at once of a command and its workers: pages of their own, and of the shared ones those of
the process that has most. Overhead is wall time of the sweep less that of training, over the trials; of a trial more,
against a sweep of one variant, which leaves out what is paid once. Needs the demo's material (tools/demo.py).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from safetensors.torch import load_file

from featurecache.machine import usable_cores
from fusion_train import checkpoint
from fusion_train.run import Run
from fusion_train.sweeps.results import read_results

VARIANTS: dict[str, dict[str, Any]] = {
    "conv-attention": {},
    "conv": {"model": {"fusion": {"name": "conv"}}},
    "attention": {"model": {"fusion": {"name": "attention"}}},
    "q-former": {"model": {"fusion": {"name": "q-former"}}},
    "r4": {"model": {"lora": {"r": 4}}},
    "r16": {"model": {"lora": {"r": 16}}},
    "slow": {"optim": {"lr": 1e-3}},
    "decay": {"optim": {"weight_decay": 0.2}},
}
SAMPLED_EVERY_S = 0.1
LOOP = """
import sys, yaml
from fusion_train.presets import load_config
from fusion_train.run import Run
from fusion_train.training.trainer import train
_, out, store, clips, *files = sys.argv
for file in files:
    name = file.rsplit("/", 1)[-1].removesuffix(".yaml")
    train(load_config(file, "perception"), store=store, clips=clips, run=Run(f"{out}/{name}"))
"""

OPTIONS = [
    click.Option(["--demo"], default="demo", show_default=True, help="Folder of the demo's material."),
    click.Option(["--steps"], type=int, default=40, show_default=True),
    click.Option(["--batch"], type=int, default=4, show_default=True, help="Clips a step."),
]


def measure(demo: str, steps: int, batch: int) -> dict[str, Any]:
    """Seconds, peak memory and ratios."""
    place = Path(demo).resolve()
    data = ["--store", str(place / "features.zarr"), "--clips", str(place / "clips.jsonl")]
    with tempfile.TemporaryDirectory(prefix="sweep-") as temporary:
        folder = Path(temporary)
        files = write_configs(folder, place, steps, batch)
        command = [sys.executable, "-m", "fusion_train.cli"]

        def swept(name: str, variants: dict[str, Any], *more: str) -> tuple[float, int]:
            asked = {"seeds": [0], "reference": "conv-attention", "variants": variants}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(asked))
            return timed(
                [
                    *command,
                    "sweep",
                    str(folder / f"{name}.yaml"),
                    "--config",
                    str(files["conv-attention"]),
                    *data,
                    "--out",
                    str(folder / name),
                    *more,
                ]
            )

        together = swept("together", VARIANTS)
        spread = swept("spread", VARIANTS, "--devices", ",".join(["cpu"] * usable_cores()))
        one = swept("one", {"conv-attention": {}})
        separate = [
            timed(
                [
                    *command,
                    "--stage",
                    "perception",
                    "--config",
                    str(file),
                    *data,
                    "--out",
                    str(folder / "separate" / name),
                ]
            )
            for name, file in files.items()
        ]
        loop = timed([sys.executable, "-c", LOOP, str(folder / "loop"), data[1], data[3], *map(str, files.values())])
        equal = [
            same(folder / "together" / f"{name}-seed0", other / name)
            for name in files
            for other in (folder / "separate", folder / "loop")
        ]
        trained_s, one_trained_s = (
            sum(outcome.seconds or 0.0 for outcome in read_results(folder / name).outcomes)
            for name in ("together", "one")
        )
    separate_s, separate_bytes = sum(each[0] for each in separate), max(each[1] for each in separate)
    once_s = one[0] - one_trained_s
    return {
        "variants": len(VARIANTS),
        "steps": steps,
        "clips_a_step": batch,
        "together_s": round(together[0], 1),
        "spread_s": round(spread[0], 1),
        "separate_s": round(separate_s, 1),
        "loop_s": round(loop[0], 1),
        "together_over_separate": round(together[0] / separate_s, 3),
        "spread_over_separate": round(spread[0] / separate_s, 3),
        "together_over_loop": round(together[0] / loop[0], 3),
        "spread_over_loop": round(spread[0] / loop[0], 3),
        "together_peak_mib": together[1] >> 20,
        "spread_peak_mib": spread[1] >> 20,
        "one_run_peak_mib": separate_bytes >> 20,
        "peak_ratio": round(together[1] / separate_bytes, 3),
        "trained_s": round(trained_s, 1),
        "overhead_a_trial_s": round((together[0] - trained_s) / len(VARIANTS), 2),
        "overhead_once_s": round(once_s, 1),
        "overhead_a_trial_more_s": round((together[0] - trained_s - once_s) / (len(VARIANTS) - 1), 2),
        "same_weights": all(equal),
    }


def write_configs(folder: Path, demo: Path, steps: int, batch: int) -> dict[str, Path]:
    """One file a variant, for the runs that know nothing of a sweep."""
    files = {}
    for name, settings in VARIANTS.items():
        values: dict[str, Any] = {
            "extends": "demo",
            "model": {"llm": str(demo / "models" / "llama")},
            "optim": {"steps": steps, "batch_size": batch, "micro_batch_size": batch},
            "log": {"every": 10, "eval_every": 10**6, "tensorboard": False},
            "checkpoint": {"every": 10**6},
        }
        for section, keys in settings.items():
            values[section] = {**values.get(section, {}), **keys}
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(values))
    return files


def timed(command: list[str]) -> tuple[float, int]:
    """Run a command; returns its wall time and the most memory that it and its workers had at once, bytes."""
    began, most = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, memory(family(process.pid)))
        time.sleep(SAMPLED_EVERY_S)
    if process.returncode:
        raise click.ClickException(f"exit code {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - began, most


def family(process: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(each for child in children for each in family(int(child)))]


def memory(processes: list[int]) -> int:
    """Bytes of pages of their own, and of the shared pages of the process that has most of them."""
    own, shared = 0, [0]
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it has ended
            continue
        kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
        own += kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
        shared.append(kilobytes["Shared_Clean"] + kilobytes["Shared_Dirty"])
    return (own + max(shared)) << 10


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights, bit for bit."""
    first, second = (
        load_file(checkpoint.choose(Run(run).checkpoints, "last") / "model.safetensors") for run in (one, other)
    )
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
