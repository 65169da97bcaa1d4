"""How often one variant is called different from itself when only its seeds differ, by real training.

One probe is trained with many seeds on the features of a store and scored on held-out clips. Then two disjoint groups
of seeds are drawn many times and compared as two variants of a sweep are; every verdict is false. Groups share seeds
between draws, so the share is an estimate with a larger error than its number of draws suggests.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml

from benchmarks.sweep import timed
from featurecache.clips.clip_list import load_clips
from fusion_train.evaluation.append_only import read_lines
from fusion_train.statistics.comparison import compare_jackknives
from fusion_train.statistics.intervals import jackknife
from fusion_train.sweeps.compared_metric import ComparedMetric
from fusion_train.sweeps.job import PREDICTIONS
from fusion_train.sweeps.results import clusters_in, read_results

FIGURES = ("accuracy", "UAR", "weighted F1")
GROUPS = (2, 3, 5)

OPTIONS = [
    click.Option(["--store"], required=True, help="Features."),
    click.Option(["--clips"], required=True, help="Clip list with the splits train and test."),
    click.Option(["--feature"], default="whisper", show_default=True, help="Of the store."),
    click.Option(["--seeds"], type=int, default=18, show_default=True),
    click.Option(["--steps"], type=int, default=300, show_default=True, help="Of each probe."),
    click.Option(["--draws"], type=int, default=300, show_default=True, help="Pairs of groups."),
]


def measure(store: str, clips: str, feature: str, seeds: int, steps: int, draws: int) -> dict[str, Any]:
    """Share of draws that give a verdict, by figure, size of the groups and clustering; spread of the scores."""
    with tempfile.TemporaryDirectory(prefix="seed-verdicts-") as folder:
        seconds = timed(command_of(Path(folder), store, clips, feature, seeds, steps))[0]
        results = read_results(Path(folder) / "sweep")
        answers, others = [
            {outcome.seed: read_lines(results.folder / outcome.name / PREDICTIONS) for outcome in results.of(variant)}
            for variant in ("probe", "other")
        ]
    clustered_by, clusters = clusters_in(load_clips(clips))
    figures: dict[str, Any] = {
        "seeds": len(answers),
        "clips": len(answers[0]),
        "clustered by": clustered_by,
        "clusters": len({clusters.get(row["id"], row["id"]) for row in answers[0]}),
        "training_s": round(seconds, 1),
    }
    random = np.random.default_rng(0)
    for figure in FIGURES:
        compared = ComparedMetric("classification", figure)
        scored = [compared.scored(answers[seed]) for seed in answers]
        values = [score.value for score in scored]
        other_values = [compared.scored(others[seed]).value for seed in answers]
        figures[f"{figure}, correlation over seeds with another variant"] = round(
            float(np.corrcoef(values, other_values)[0, 1]), 2
        )
        mean_and_sd = (float(np.mean(values)), float(np.std(values, ddof=1)))
        figures[f"{figure}, mean and sd over seeds, points"] = [round(100 * value, 2) for value in mean_and_sd]
        for name, groups in ((clustered_by, clusters), ("clips alone", {})):
            members = [groups.get(clip, ("clip", clip)) for clip in scored[0].clip_ids]
            knives = [jackknife(score.resample, members, score.per_clip) for score in scored]
            for size in (size for size in GROUPS if 2 * size <= len(knives)):
                verdicts = []
                for _ in range(draws):
                    seeds_drawn = random.permutation(len(knives))[: 2 * size]
                    sides = [[knives[number] for number in side] for side in (seeds_drawn[:size], seeds_drawn[size:])]
                    comparison = compare_jackknives("a", "b", sides, len(members))
                    verdicts += [comparison.distinguishable] if comparison.interval else []
                share = round(float(np.mean(verdicts)), 4) if verdicts else "no verdicts"
                figures[f"{figure}, {size} against {size}, {name}"] = share
    return figures


def command_of(folder: Path, store: str, clips: str, feature: str, seeds: int, steps: int) -> list[str]:
    """Write the sweep file; returns the command that runs it into `folder/sweep`."""
    file = folder / "seeds.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "stage": "probe",
                "seeds": list(range(seeds)),
                "weights": "last",
                "split": "test",
                "task": "emotion",
                "reference": "probe",
                "variants": {"probe": {}, "other": {"optim": {"lr": 5e-4}}},
            }
        )
    )
    settings = {
        "optim.steps": steps,
        "optim.warmup_steps": max(1, steps // 20),
        "log.eval_every": 10**6,
        "log.tensorboard": False,
        "data.tasks": "[emotion]",
        "data.eval_split": "test",
        "features.audio": feature,
        "features.image": "null",
        "features.video": "null",
    }
    return [
        sys.executable,
        "-m",
        "fusion_train.cli",
        "sweep",
        str(file),
        "--engine",
        "here",
        "--store",
        store,
        "--clips",
        clips,
        "--out",
        str(folder / "sweep"),
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    ]
