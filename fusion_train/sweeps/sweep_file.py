"""The sweep file: variants of one recipe, seeds, and the compared figure. It is checked whole before any trial runs.

    task: emotion               the question to the held-out clips
    metric: classification      scores the answers; a name as in benchmarks; default: the metric of the task
    main: accuracy              its figure that is compared; default: the main figure of the metric
    split: val                  the scored clips; default: test, or data.eval_split without test clips
    weights: best | last | cross-fitted      of each trial; see scored_weights.py; default: what is not too high
    stage: perception           file under configs/stages; a variant may name another, or a chain of them
    seeds: [0, 1, 2]            every variant is trained with each
    reference: conv-attention   what the others are compared with; default: the last variant
    settings: {...}             laid over the recipe
    probe: {steps: 300, keep: 0.5}           see early_stopping.py; default: none
    halving: {at: [0.25, 0.5], keep: 0.5}    see early_stopping.py; default: none
    budget: {hours: 4}          device time, or {trials: 12}; see budget.py; default: none
    assume: {seed_sd: 1.0, disagreement: 0.2}    see expectation.py; what is said before the run, in points
    pilot: sweeps/earlier       an earlier sweep whose variances are taken instead; default: none
    needs: |                    how to make features that the store may not have yet
      fcache extract ...
    variants:
      conv: {model: {fusion: {name: conv}}}
      both: {stages: [perception, cognition]}

Any key of the configuration may be varied. A trial is a variant with a seed; its run lies in OUT/VARIANT-seedN, those
of the stages before the last in OUT/VARIANT-seedN.STAGE.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from featurecache.errors import suggest
from fusion_train.config import Config, validate
from fusion_train.errors import ConfigError
from fusion_train.presets import (
    PROBE,
    fit_to_length,
    layered_settings,
    load_config,
    own_settings,
    read_yaml,
    refuse_probe_with_llm,
    stage_settings,
)
from fusion_train.prompts.prompt import find_task
from fusion_train.sweeps.compared_metric import ComparedMetric, choose_metric
from fusion_train.yaml_settings import merge

DEFAULT_SEEDS = (0, 1, 2)
PROBED_DATA = ("train_split", "eval_split", "mixture", "mixture_absent", "eval_clips", "failed_clips", "exclude",
               "corrections", "hide_modality_p")  # fmt: skip
"""Settings of the data that a probe reads, its tasks apart."""


class Halving(BaseModel):
    """At which shares of the steps variants are compared, and what share of them goes on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: tuple[float, ...] = (0.25, 0.5)
    keep: float = Field(0.5, gt=0, lt=1)


class Budget(BaseModel):
    """Limits of a sweep, over all runs of its command."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hours: float | None = Field(None, gt=0)
    """Device time, summed over devices."""
    trials: int | None = Field(None, gt=0)


class ProbeTier(BaseModel):
    """Probes before the language model, and what share of the variants goes on after them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int | None = Field(None, ge=1)
    """Steps of a probe; null: the steps of the stage `probe`."""
    keep: float = Field(0.5, gt=0, le=1)
    """1 stops no variant: the probes are only compared with the whole models."""


class Assumptions(BaseModel):
    """Assumed variances of scores, for the least detectable difference."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed_sd: float = Field(1.0, ge=0)
    """Standard deviation of a variant's score over seeds, in points."""
    disagreement: float = Field(0.2, gt=0, le=1)
    """Share of clips that two variants answer differently."""


class SweepFile(BaseModel):
    """The keys of a sweep file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variants: dict[str, dict[str, Any] | None] = Field(min_length=1)
    task: str = "emotion"
    metric: str | None = None
    main: str | None = None
    split: str | None = None
    weights: Literal["best", "last", "cross-fitted"] | None = None
    stage: str = "perception"
    seeds: tuple[int, ...] = Field(DEFAULT_SEEDS, min_length=1)
    reference: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    probe: ProbeTier | None = None
    halving: Halving | None = None
    budget: Budget | None = None
    assume: Assumptions = Assumptions()
    pilot: str | None = None
    needs: str = ""


@dataclass(frozen=True)
class Trial:
    """One variant with one seed: a configuration a stage, each starting from the one before."""

    variant: str
    seed: int
    stages: tuple[Config, ...]
    fresh: bool = False
    """Whether it starts from no run, even where the sweep starts from one."""

    @property
    def name(self) -> str:
        return f"{self.variant}-seed{self.seed}"

    @property
    def config(self) -> Config:
        """The configuration of the last stage, which is scored."""
        return self.stages[-1]

    @property
    def key(self) -> str:
        """Hash of the resolved configurations of all stages."""
        return hashlib.sha256(":".join(config.hash for config in self.stages).encode()).hexdigest()[:16]

    def folder(self, out: Path, stage: int) -> Path:
        last = stage == len(self.stages) - 1
        return out / (self.name if last else f"{self.name}.{self.stages[stage].stage}")


@dataclass(frozen=True)
class Sweep:
    """A sweep file, resolved."""

    name: str
    task: str
    measure: ComparedMetric
    split: str
    """The scored split; empty where the clip list decides (see scored_weights.py)."""
    weights: str
    """`best`, `last` or `cross-fitted`; empty where the scored split decides."""
    reference: str
    probe: ProbeTier | None
    halving: Halving | None
    budget: Budget | None
    assume: Assumptions
    pilot: str | None
    needs: str
    trials: tuple[Trial, ...]
    probes: Mapping[str, tuple[Trial, ...]]
    """Variant -> its probe with every seed, for the variants that have one."""
    why_weights: str = ""
    """Why these weights are scored; empty until `resolve_scoring`."""

    @property
    def variants(self) -> list[str]:
        return list(dict.fromkeys(trial.variant for trial in self.trials))


def load_sweep(
    file: str,
    config: str | None,
    overrides: Iterable[str],
    budget: Mapping[str, Any] | None = None,
    llm: str | None = None,
) -> Sweep:
    """Read a sweep file, or a shipped one by name, and build every trial's configurations.

    Args:
        config, overrides, llm: the recipe that variants are laid over, as for training.
        budget: laid over the file's.

    Raises:
        ConfigError: unknown keys, no variants, or settings that are wrong; all variants are checked.
    """
    values = read_yaml(file if Path(file).is_file() else f"sweeps/{file}")
    if budget:
        values["budget"] = {**(values.get("budget") or {}), **budget}
    sweep_file = _parse(file, values)
    overrides = list(overrides)

    @functools.cache
    def recipe(stage: str, only: bool) -> dict[str, Any]:
        """Settings of a stage; the probe of a chain leaves out the language model that --set names for the others."""
        without = [] if only or stage != PROBE else ["model.llm=null"]
        return layered_settings(config, stage, [*overrides, *without], llm)

    trials: list[Trial] = []
    probes: dict[str, tuple[Trial, ...]] = {}
    problems = []
    for variant, settings in sweep_file.variants.items():
        variant_settings = copy.deepcopy(settings or {})
        stages = variant_settings.pop("stages", None) or [variant_settings.pop("stage", None) or sweep_file.stage]
        for seed in sweep_file.seeds:
            try:
                chain = []
                for stage in stages:
                    values = copy.deepcopy(recipe(str(stage), len(stages) == 1))
                    for layer in (sweep_file.settings, variant_settings, {"seed": seed}):
                        merge(values, copy.deepcopy(layer))
                    own = own_settings(config, str(stage), overrides)
                    for layer in (sweep_file.settings, variant_settings):
                        merge(own, copy.deepcopy(layer))
                    fit_to_length(values, own)
                    if stage == PROBE and len(stages) > 1:
                        merge(values, {"model": {"llm": None}})
                    chain.append(validate(values, f'variant "{variant}"'))
                    refuse_probe_with_llm(chain[-1])
                trials.append(Trial(variant, seed, tuple(chain)))
            except ConfigError as error:
                problems.append(str(error))
                break  # other seeds have the same problem
        if sweep_file.probe and not problems:
            probes[variant] = _probes(sweep_file, config, overrides, variant, variant_settings)
    if problems:
        raise ConfigError(file, expected="valid settings for every variant", got="problems", problems=problems)
    _refuse_equal(file, trials)
    reference = sweep_file.reference or list(sweep_file.variants)[-1]
    if reference not in sweep_file.variants:
        raise ConfigError(
            f"{file}: reference",
            expected="one of " + ", ".join(sweep_file.variants),
            got=reference,
            next_step=suggest(reference, sweep_file.variants).strip() or None,
        )
    measure = choose_metric(sweep_file.task, sweep_file.metric, sweep_file.main)
    if sweep_file.probe and find_task(sweep_file.task).answer != "label":
        raise ConfigError(
            f"{file}: probe",
            expected="a task with one label a clip, since a probe answers no other",
            got=sweep_file.task,
        )
    return Sweep(
        name=Path(file).stem,
        task=sweep_file.task,
        measure=measure,
        split=sweep_file.split or "",
        weights=sweep_file.weights or "",
        reference=reference,
        probe=sweep_file.probe,
        halving=sweep_file.halving,
        budget=sweep_file.budget,
        assume=sweep_file.assume,
        pilot=sweep_file.pilot,
        needs=sweep_file.needs.strip(),
        trials=tuple(trials),
        probes={variant: variant_probes for variant, variant_probes in probes.items() if variant_probes},
    )


def _probes(
    sweep_file: SweepFile,
    config: str | None,
    overrides: Iterable[str],
    variant: str,
    variant_settings: Mapping[str, Any],
) -> tuple[Trial, ...]:
    """The probe of a variant with every seed: its fusion, features and clips in the stage `probe`.

    What a probe does not have, and how the whole model is optimised, is left out, so that variants that differ in
    nothing else have equal probes. There is none without a fusion, which is all that a probe trains.
    """
    values = load_config(config, None, overrides).model_dump(mode="json")
    for layer in (sweep_file.settings, variant_settings):
        merge(values, copy.deepcopy(dict(layer)))
    if values["model"]["fusion"]["name"] == "none":
        return ()
    settings: dict[str, Any] = {
        "model": {"fusion": values["model"]["fusion"]},
        "features": values["features"],
        "data": {name: value for name, value in values["data"].items() if name in PROBED_DATA},
    }
    merge(settings, stage_settings(config, PROBE))
    if sweep_file.task not in settings["data"]["tasks"]:
        settings["data"]["tasks"] = [sweep_file.task]
    if sweep_file.probe and sweep_file.probe.steps:
        merge(settings, {"optim": {"steps": sweep_file.probe.steps}})
    fit_to_length(settings, {})
    name = f"{variant}.{PROBE}"
    configs = [validate({**settings, "seed": seed}, name) for seed in sweep_file.seeds]
    refuse_probe_with_llm(configs[0])
    return tuple(Trial(name, config.seed, (config,), fresh=True) for config in configs)


def _parse(file: str, values: Mapping[str, Any]) -> SweepFile:
    try:
        return SweepFile.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(map(str, item["loc"]))
            near = suggest(str(item["loc"][-1]), SweepFile.model_fields) if item["type"] == "extra_forbidden" else ""
            problems.append(f"{key}: {item['msg'][0].lower()}{item['msg'][1:]}.{near}")
        raise ConfigError(
            file,
            expected="a sweep: variants, and besides only " + ", ".join(SweepFile.model_fields),
            got=f"{len(problems)} problem{'s' if len(problems) > 1 else ''}",
            problems=problems,
        ) from error


def _refuse_equal(file: str, trials: list[Trial]) -> None:
    first: dict[str, Trial] = {}
    twice = [f"{t.name} is {first[t.key].name}" for t in trials if first.setdefault(t.key, t) is not t]
    if twice:
        raise ConfigError(file, expected="variants that differ, and seeds once", got="equal trials", problems=twice)
