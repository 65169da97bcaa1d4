"""Eight variants together, against the same eight as separate runs and as a plain loop in one process.

Everything is run as a user runs it, one process after another: `fusion-train sweep` on one seed; `fusion-train --stage
perception` eight times; `train()` eight times in one process. Peak memory is the largest resident
size of a process of that part. The weights of all three are compared. Needs the demo's material (tools/demo.py).
"""

from __future__ import annotations

import os
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
LOOP = """
import sys, yaml
from fusion_train.config import load_config
from fusion_train.run import Run
from fusion_train.training.train import train
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
    store, clips = str(place / "features.zarr"), str(place / "clips.jsonl")
    with tempfile.TemporaryDirectory(prefix="sweep-") as temporary:
        folder = Path(temporary)
        files = write_configs(folder, place, steps, batch)
        sweep = folder / "eight.yaml"
        sweep.write_text(yaml.safe_dump({"seeds": [0], "reference": "conv-attention", "variants": VARIANTS}))
        command = [sys.executable, "-m", "fusion_train.cli"]
        data = ["--store", store, "--clips", clips]
        together = timed([*command, "sweep", str(sweep), "--config", str(files["conv-attention"]), *data,
                          "--out", str(folder / "together")])  # fmt: skip
        separate = [
            timed([*command, "--stage", "perception", "--config", str(file), *data,
                   "--out", str(folder / "separate" / name)])
            for name, file in files.items()
        ]  # fmt: skip
        loop = timed([sys.executable, "-c", LOOP, str(folder / "loop"), store, clips, *map(str, files.values())])
        equal = [same(folder / "together" / f"{name}-seed0", folder / kind / name)
                 for name in files for kind in ("separate", "loop")]  # fmt: skip
        trained_s = sum(outcome.seconds or 0.0 for outcome in read_results(folder / "together").outcomes)
    separate_s, separate_bytes = sum(each[0] for each in separate), max(each[1] for each in separate)
    return {
        "variants": len(VARIANTS),
        "steps": steps,
        "clips_a_step": batch,
        "together_s": round(together[0], 1),
        "separate_s": round(separate_s, 1),
        "loop_s": round(loop[0], 1),
        "together_over_separate": round(together[0] / separate_s, 3),
        "together_over_loop": round(together[0] / loop[0], 3),
        "together_peak_mib": together[1] >> 20,
        "one_run_peak_mib": separate_bytes >> 20,
        "peak_ratio": round(together[1] / separate_bytes, 3),
        "overhead_a_trial_s": round((together[0] - trained_s) / len(VARIANTS), 2),
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
    """Run a command; returns its wall time and the largest resident size of its process, bytes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    if code:
        raise click.ClickException(f"exit code {code}: {' '.join(command)}")
    return time.perf_counter() - began, usage.ru_maxrss * 1024


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same weights, bit for bit."""
    first, second = (load_file(checkpoint.choose(Run(run).checkpoints, "last") / "model.safetensors")
                     for run in (one, other))  # fmt: skip
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
