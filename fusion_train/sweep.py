"""Train the same recipe in several variants and compare them on the same held-out clips.

A sweep file names variants (settings laid over the recipe) and seeds; every variant × seed is a run of its own:

    stage: perception
    task: emotion
    seeds: [0]
    variants:
      conv:           {model: {fusion: {name: conv}}}
      conv-attention: {model: {fusion: {name: conv-attention}}}

Runs lie in OUT/VARIANT-seedN. A killed sweep continues where it was: finished runs are read, the open one resumes.
A variant that fails is kept with its error and does not stop the others.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featurecache.errors import FeatureCacheError, suggest
from featurecache.store.publish import make_folder, replace_bytes
from fusion_train.assemble import reassemble
from fusion_train.config import Config, load_config, merge, read_yaml, validate
from fusion_train.errors import ConfigError
from fusion_train.evaluate import evaluate
from fusion_train.run import Run
from fusion_train.train import train

KEYS = {"stage", "task", "seeds", "variants", "settings"}


@dataclass(frozen=True)
class Trial:
    """One variant with one seed."""

    variant: str
    seed: int
    config: Config

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"


@dataclass(frozen=True)
class Sweep:
    """What a sweep file asks for, validated whole."""

    name: str
    task: str
    trials: tuple[Trial, ...]

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(trial.variant for trial in self.trials))


@dataclass(frozen=True)
class TrialResult:
    """Score of a finished trial, or why there is none."""

    trial: Trial
    accuracy: float | None
    uar: float | None
    num_clips: int
    seconds: float
    error: str = ""


def load_sweep(file: str, config: str | None, overrides: Iterable[str]) -> Sweep:
    """Read a sweep file and build every variant's configuration.

    Raises:
        ConfigError: an unknown key, no variants, or a variant whose settings are wrong; all variants are checked.
    """
    values = read_yaml(file if Path(file).is_file() else f"sweeps/{file}")
    unknown = sorted(values.keys() - KEYS)
    if unknown or not isinstance(values.get("variants"), Mapping) or not values["variants"]:
        raise ConfigError(
            file, expected="variants: a mapping of name to settings, and no keys besides " + ", ".join(sorted(KEYS)),
            got=", ".join(unknown) if unknown else "no variants",
            next_step=suggest(unknown[0], KEYS).strip() or None if unknown else None,
        )  # fmt: skip
    stage = values.get("stage", "perception")
    recipe = load_config(config, stage, overrides).model_dump(mode="json")
    merge(recipe, values.get("settings") or {})
    trials, problems = [], []
    for variant, settings in values["variants"].items():
        for seed in values.get("seeds") or [0]:
            laid = copy.deepcopy(recipe)
            merge(laid, {**(settings or {}), "seed": seed})
            try:
                trials.append(Trial(str(variant), int(seed), validate(laid, f'variant "{variant}"')))
            except ConfigError as error:
                problems.append(str(error))
    if problems:
        raise ConfigError(file, expected="valid settings for every variant", got="problems", problems=problems)
    return Sweep(Path(file).stem, str(values.get("task", "emotion")), tuple(trials))


def run_sweep(
    sweep: Sweep, *, store: str, clips: str, out: Path, initial: Run | None = None, say: Callable[[str], None] = print
) -> list[TrialResult]:
    """Train and score every trial; write `results.json`."""
    make_folder(out)
    results = []
    for number, trial in enumerate(sweep.trials, start=1):
        say(f"[{number}/{len(sweep.trials)}] {trial.name}")
        results.append(_run_trial(sweep, trial, store, clips, out, initial, say))
        rows = [
            {"variant": r.trial.variant, "seed": r.trial.seed, "config": r.trial.config.hash, "accuracy": r.accuracy,
             "uar": r.uar, "num_clips": r.num_clips, "seconds": r.seconds, "error": r.error}
            for r in results
        ]  # fmt: skip
        replace_bytes(out / "results.json", (json.dumps(rows, indent=2) + "\n").encode())
    return results


def _run_trial(
    sweep: Sweep, trial: Trial, store: str, clips: str, out: Path, initial: Run | None, say: Callable[[str], None]
) -> TrialResult:
    run = Run(out / trial.name)
    try:
        trained = train(trial.config, store=store, clips=clips, run=run, initial=initial, say=say)
        kept = run.folder / "score.json"
        if not kept.is_file():
            bench = reassemble(run, store=store, clips=clips)
            split = bench.clips.in_split(trial.config.data.eval_split or "val")
            evaluation = evaluate(bench, bench.reader.usable(split, trial.config.data.failed_clips), sweep.task)
            evaluation.write(run.folder / "predictions.jsonl")
            replace_bytes(kept, (json.dumps(evaluation.summary()) + "\n").encode())
        summary: dict[str, Any] = json.loads(kept.read_text())
    except FeatureCacheError as error:
        say(f"  failed: {error}")
        return TrialResult(trial, None, None, 0, 0.0, str(error))
    return TrialResult(trial, summary.get("accuracy"), summary.get("uar"), summary["num_clips"], trained["seconds"])


def by_variant(sweep: Sweep, results: Sequence[TrialResult]) -> list[dict[str, Any]]:
    """Mean over the seeds of each variant, best first; variants without a score last."""
    rows = []
    for variant in sweep.variants:
        mine = [result for result in results if result.trial.variant == variant]
        scored = [result for result in mine if result.accuracy is not None]
        rows.append(
            {
                "variant": variant,
                "accuracy": sum(r.accuracy for r in scored) / len(scored) if scored else None,
                "uar": sum(r.uar for r in scored) / len(scored) if scored else None,
                "num_clips": max(r.num_clips for r in mine),
                "seeds": len(scored),
                "seconds": sum(r.seconds for r in mine),
                "errors": [r.error for r in mine if r.error],
            }
        )
    return sorted(rows, key=lambda row: -1 if row["accuracy"] is None else row["accuracy"], reverse=True)
