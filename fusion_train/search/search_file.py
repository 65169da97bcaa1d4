"""The search file: features, heads, hyperparameters and how they are drawn, divided, trained and compared.

    task: emotion                  a label task of the clip list
    main: UAR                      or WAR, weighted F1, macro F1: the figure by which trials are compared
    split: train                   the searched clips; default: all clips with a label, but those of `submission`
    features:                      modality -> features of the store; each is averaged to one vector per clip
      audio: [hubert, wavlm]
      video: [clip]
    combine: [alone, together]     each feature by itself; one feature of every modality, drawn at random
    heads: [mer-attention]         or concatenation, or any fusion variant
    draws: 50                      of hyperparameters, for each feature by itself and head; and together, for each head
    hyperparameters:               a value, or {choice: […]}, {uniform: [low, high]}, {log_uniform: [low, high]}
      hidden: {choice: [64, 128, 256]}
    folds: 5
    group: speaker                 or dialogue: its clips are in one fold; default: none
    seeds: [0]                     of the trials that reach the last rung; the rungs before use the first
    epochs: 32                     of the last rung
    patience: 8                    epochs without a better inner score after which a model stops
    halving: {first: 2, keep: 0.25}     epochs of the first rung; share of the trials that goes on
    standardise: true              features to mean 0 and deviation 1 over the training clips of each fit
    precision: float32             or bfloat16: factors of products are rounded; sums and weights stay float32
    ensemble: 5                    number of trials whose probabilities are averaged
    budget: {minutes: 10}          of this search, over all runs of its command; default: none
    submission: test               a split without labels, for --submission
    columns: [name, discrete]      of the submission; default: id and the task

Only `features` is required.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from featurecache.errors import suggest
from fusion_train.errors import ConfigError, refuse_unknown
from fusion_train.models.fusions import fusion_variant
from fusion_train.models.utterance_heads import HEADS
from fusion_train.presets import read_yaml
from fusion_train.prompts.prompt import find_task
from fusion_train.search.figures import FIGURES
from fusion_train.yaml_settings import merge, parse_override

ALONE, TOGETHER = "alone", "together"
Number = int | float


class Distribution(BaseModel):
    """How one hyperparameter is drawn: exactly one of the three."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    choice: tuple[Number, ...] | None = Field(None, min_length=1)
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one(self) -> Distribution:
        kinds = [name for name in ("choice", "uniform", "log_uniform") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError("write one of choice, uniform, log_uniform")
        low, high = self.uniform or self.log_uniform or (1.0, 2.0)
        if not low < high or (self.log_uniform and low <= 0):
            raise ValueError("the lower bound must be below the upper one, and of log_uniform above 0")
        return self


class Hyperparameters(BaseModel):
    """Every hyperparameter of a trial: a fixed value, or a distribution. The challenge's ranges are the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hidden: int | Distribution = Distribution(choice=(64, 128, 256))
    dropout: float | Distribution = Distribution(uniform=(0.2, 0.5))
    lr: float | Distribution = Distribution(log_uniform=(1e-4, 1e-3))
    weight_decay: float | Distribution = Distribution(log_uniform=(1e-5, 1e-2))
    balance: float | Distribution = Distribution(uniform=(0.0, 1.0))
    """Exponent of the class weights: 0 counts every clip alike, 1 every class."""
    batch_size: int | Distribution = 128


class Halving(BaseModel):
    """Successive halving: each rung trains longer by 1 / keep, and the better share `keep` reaches the next one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    first: int = Field(2, ge=1)
    keep: float = Field(0.25, gt=0, lt=1)


class SearchBudget(BaseModel):
    """Limits of a search."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    minutes: float | None = Field(None, gt=0)


class SearchFile(BaseModel):
    """The keys of a search file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: dict[str, tuple[str, ...]] = Field(min_length=1)
    task: str = "emotion"
    main: str = "UAR"
    split: str | None = None
    combine: tuple[Literal["alone", "together"], ...] = Field(("alone", "together"), min_length=1)
    heads: tuple[str, ...] = Field(("mer-attention", "concatenation"), min_length=1)
    draws: int = Field(50, ge=1)
    hyperparameters: Hyperparameters = Hyperparameters()
    folds: int = Field(5, ge=3)
    group: Literal["speaker", "dialogue"] | None = None
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    seed: int = 0
    """Of the draws, the folds and the resamples."""
    epochs: int = Field(32, ge=1)
    patience: int = Field(8, ge=1)
    halving: Halving | None = Halving()
    standardise: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    ensemble: int = Field(5, ge=1)
    budget: SearchBudget = SearchBudget()
    submission: str | None = None
    columns: tuple[str, str] | None = None

    @property
    def rungs(self) -> list[int]:
        """Epochs of every rung, ascending; the last is `epochs`."""
        epochs = [self.epochs]
        while self.halving and epochs[0] * self.halving.keep >= self.halving.first:
            epochs.insert(0, round(epochs[0] * self.halving.keep))
        return epochs

    @property
    def feature_names(self) -> list[str]:
        return list(dict.fromkeys(name for names in self.features.values() for name in names))


def load_search(file: str, overrides: tuple[str, ...] = ()) -> SearchFile:
    """Read a search file, with settings `a.b=c` laid over it.

    Raises:
        ConfigError: unknown keys or values; a task, a head or a figure that does not exist.
    """
    if not Path(file).is_file():
        raise ConfigError(file, expected="a search file", got="no such file", next_step="See docs/guides/search.md.")
    values = read_yaml(file)
    for override in overrides:
        merge(values, parse_override(override))
    search = _parse(file, values)
    task = find_task(search.task)
    if task.answer != "label":
        raise ConfigError(f"{file}: task", expected="a task with one label per clip", got=search.task)
    refuse_unknown("main", search.main, FIGURES)
    for head in search.heads:
        if head not in HEADS and hasattr(fusion_variant(head), "with_loss"):
            raise ConfigError(
                f"{file}: heads",
                expected="heads without losses of their own, which a search does not train",
                got=head,
                next_step=f"Train it as a probe: --stage probe --set model.fusion.name={head}.",
            )
    if "none" in search.heads:
        raise ConfigError(f"{file}: heads", expected="heads that read features", got="none")
    empty = [modality for modality, names in search.features.items() if not names]
    if empty:
        raise ConfigError(f"{file}: features.{empty[0]}", expected="names of features", got="none")
    return search


def _parse(file: str, values: Mapping[str, Any]) -> SearchFile:
    try:
        return SearchFile.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"] if part not in ("int", "float") and "[" not in str(part))
            known = Hyperparameters.model_fields if "hyperparameters" in item["loc"] else SearchFile.model_fields
            near = suggest(str(item["loc"][-1]), known) if item["type"] == "extra_forbidden" else ""
            problems.append(f"{key}: {item['msg'][0].lower()}{item['msg'][1:]}.{near}")
        raise ConfigError(
            file,
            expected="a search: features, and besides only " + ", ".join(SearchFile.model_fields),
            got=f"{len(problems)} problem{'s' if len(problems) > 1 else ''}",
            problems=problems,
        ) from error
