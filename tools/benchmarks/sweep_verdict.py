"""Time to verdict: the five fusions of the sweep `pre_fusion` on three seeds, in full and stopped early.

Each way is `fusion-train sweep` as a user runs it, in a folder of its own, one after another: every trial to its end;
halving; probes first, then halving. Told are wall time, steps of the whole models, who won, and how far every rung
agrees with the end of the full grid, where nobody was stopped. Needs the demo's material (tools/demo.py).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import yaml

from benchmarks.sweep import timed
from fusion_train.presets import load_config, read_yaml
from fusion_train.sweeps.early_stopping import rank_correlation
from fusion_train.sweeps.results import Results, read_results

EARLY = ("halving", "probe")
OPTIONS = [
    click.Option(["--demo"], default="demo", show_default=True, help="Folder of the demo's material."),
    click.Option(["--steps"], type=int, default=40, show_default=True, help="Of a whole model."),
    click.Option(["--batch"], type=int, default=4, show_default=True, help="Clips a step."),
    click.Option(["--probe-steps"], type=int, default=30, show_default=True),
    click.Option(["--seeds"], type=int, default=3, show_default=True),
    click.Option(["--way", "ways"], multiple=True, type=click.Choice(EARLY), default=EARLY, show_default=True,
                 help="Of stopping early, besides the full grid."),
]  # fmt: skip


def measure(demo: str, steps: int, batch: int, probe_steps: int, seeds: int, ways: tuple[str, ...]) -> dict[str, Any]:
    """Seconds, steps, winners and rank correlations."""
    halving = {"halving": {"at": [0.25, 0.5], "keep": 0.5}}
    rules: dict[str, dict[str, Any]] = {
        "full": {},
        "halving": halving,
        "probe": {**halving, "probe": {"steps": probe_steps, "keep": 0.5}},
    }
    figures: dict[str, Any] = {"steps": steps, "clips_a_step": batch, "probe_steps": probe_steps, "seeds": seeds}
    found: dict[str, Results] = {}
    with tempfile.TemporaryDirectory(prefix="verdict-") as folder:
        for way in ("full", *ways):
            command = command_of(Path(folder), Path(demo).resolve(), way, rules[way], steps, batch, seeds)
            figures[f"{way}_s"] = round(timed(command)[0], 1)
            found[way] = read_results(Path(folder) / way)
    for way, results in found.items():
        figures[f"{way}_trained_steps"] = sum(outcome.step or 0 for outcome in results.outcomes)
        figures[f"{way}_winner"] = winner(results)
    for way in ways:
        figures[f"{way}_over_full"] = round(figures[f"{way}_s"] / figures["full_s"], 3)
        figures[f"{way}_same_winner"] = figures[f"{way}_winner"] == figures["full_winner"]
    ends = {
        variant: score[0]
        for variant in found["full"].about["variants"]
        if (score := found["full"].mean_and_spread(variant, "accuracy"))
    }
    figures["accuracy_at_the_end"] = {variant: round(score, 3) for variant, score in ends.items()}
    rungs = {rung: early for results in found.values() for rung, early in results.rungs.items()}
    agreement = {rung: rank_correlation(early, ends) for rung, early in rungs.items()}
    figures["rank_correlation_with_full"] = {rung: value and round(value, 2) for rung, value in agreement.items()}
    return figures


def winner(results: Results) -> str:
    """The best of those that finished."""
    finished = {
        variant: score[0]
        for variant in results.about["variants"]
        if (score := results.mean_and_spread(variant, "accuracy"))
    }
    return max(finished, key=finished.__getitem__)


def warmup_of(steps: int) -> int:
    """The demo's share of the steps, so that no rung lies in the warm-up."""
    demo = load_config("demo", "perception").optim
    return round(demo.warmup_steps / demo.steps * steps)


def command_of(
    folder: Path, demo: Path, way: str, rule: dict[str, Any], steps: int, batch: int, seeds: int
) -> list[str]:
    """Write the sweep file of a way; returns the command that runs it into `folder/way`."""
    file = folder / f"{way}.yaml"
    file.write_text(yaml.safe_dump({**read_yaml("sweeps/pre_fusion"), **rule, "seeds": list(range(seeds))}))
    settings = {
        "model.llm": demo / "models" / "llama",
        "optim.steps": steps,
        "optim.warmup_steps": warmup_of(steps),
        "optim.batch_size": batch,
        "optim.micro_batch_size": batch,
        "log.eval_every": 10**6,
        "log.tensorboard": False,
    }
    return [
        sys.executable,
        "-m",
        "fusion_train.cli",
        "sweep",
        str(file),
        "--config",
        "demo",
        "--store",
        str(demo / "features.zarr"),
        "--clips",
        str(demo / "clips.jsonl"),
        "--out",
        str(folder / way),
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    ]
