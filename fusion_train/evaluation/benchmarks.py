"""A bench is a file: its sets, what is asked, how answers are scored, which means are formed, what others got.

    title: My bench
    sets:
      dfew: {title: DFEW, dataset: dfew, split: test, task: emotion, metric: classification, main: WAR,
             vocabulary: [happy, sad, neutral, angry, surprise, disgust, fear]}
    means: {Mean: [dfew]}
    published:
      - {name: Baseline, source: "paper, table 2", scores: {dfew: 71.2}}

Published figures are in per cent, as they were printed. Shipped benches lie under `configs/benches`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.clip_rows import SCORE_SUFFIX
from featurecache.clips.responses import response_texts
from featurecache.errors import suggest
from fusion_train.config import PromptConfig, Section, preset_dir, read_yaml
from fusion_train.errors import ConfigError, DataError
from fusion_train.metrics.labels import label_list
from fusion_train.metrics.registry import find_metric
from fusion_train.prompts.prompt import Task, find_task

BY_TASK = {"emotion": "classification", "sentiment": "classification", "intent": "classification",
           "multi-label": "multi-label", "openset": "open-vocabulary", "think": "classification",
           "reason": "overlap"}  # fmt: skip
"""Metric of a task where none is named; other tasks have answers but no score."""


class BenchmarkSet(Section):
    """One row of the table."""

    title: str = ""
    dataset: str | None = None
    """Value of `dataset` in the clip list; null takes every clip of the split."""
    split: str | tuple[str, ...] = "test"
    task: str = "emotion"
    answer: Literal["choose", "generate"] = "choose"
    """choose: the most probable label of a closed set, without generation. Open tasks are always generated."""
    instruction: str | None = None
    """What is asked in place of the task's own instruction; may hold {labels}."""
    prompt: dict[str, Any] = Field(default_factory=dict)
    """Settings laid over `prompt` of the configuration."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Label -> clips with it in the ground truth that others scored; a note says where the clip list has others."""
    reference: str | None = None
    """`labels.NAME`, `responses.NAME` or `responses.NAME.LABEL`; null for what the task itself is answered by."""
    metric: str | None = None
    """Null for the task's own."""
    main: str | None = None
    """Figure that stands for the set; null for the metric's own."""
    also: tuple[str, ...] = ()
    """Further metrics of the same answers; they enter no mean."""
    vocabulary: tuple[str, ...] | None = None
    """The dataset's label space; a reference outside it is an error, an answer outside it is wrong."""
    relabel: dict[str, str] = Field(default_factory=dict)
    """Labels of the dataset that count as another one, in the references."""
    only: tuple[str, ...] = ()
    """Labels of the references that are scored; clips of others are not asked."""

    @model_validator(mode="after")
    def _known(self) -> BenchmarkSet:
        find_task(self.task)
        PromptConfig().changed(self.prompt)
        if self.instruction is not None and not self.instruction.strip():
            raise ValueError("instruction is empty")
        for name in (self.metric, *self.also):
            if name is not None:
                find_metric(name)
        if self.main is not None and self.chosen_metric and self.main not in find_metric(self.chosen_metric).figures:
            known = ", ".join(find_metric(self.chosen_metric).figures)
            raise ValueError(f'metric "{self.chosen_metric}" has the figures {known}, not "{self.main}"')
        if self.reference is not None and self.reference.partition(".")[0] not in ("labels", "responses"):
            raise ValueError(f'reference "{self.reference}" is not of the form labels.NAME or responses.NAME')
        return self

    @property
    def chosen_metric(self) -> str | None:
        return self.metric or BY_TASK.get(find_task(self.task).name)

    @property
    def reference_key(self) -> tuple[str, str]:
        """("labels" or "responses", name)."""
        if self.reference is not None:
            kind, _, name = self.reference.partition(".")
            return kind, name
        task: Task = find_task(self.task)
        if task.answer == "think":
            return "labels", task.label
        return ("labels" if task.answer in ("label", "labels") else "responses"), task.key

    @property
    def question(self) -> Task:
        """The task; "think" argues for the label task of the reference."""
        task, (kind, name) = find_task(self.task), self.reference_key
        return task.about(name.removesuffix(SCORE_SUFFIX)) if task.answer == "think" and kind == "labels" else task

    def chosen(self, clips: ClipList) -> list[Clip]:
        """Clips of the set, in list order; none where the list has none of them."""
        splits = (self.split,) if isinstance(self.split, str) else self.split
        return [clip for clip in clips if clip.split in splits and self.dataset in (None, clip.dataset)]

    def references(self, clips: list[Clip]) -> dict[str, Any]:
        """Clip id -> reference; clips without one, or with one that is not scored, are left out.

        Raises:
            DataError: no clip has one.
        """
        kind, name = self.reference_key
        found = {}
        for clip in clips:
            value = clip.labels.get(name) if kind == "labels" else _text(clip, name)
            if value is None and name == "sentiment_score":
                value = clip.labels.get("sentiment")  # its sign is all that WAF takes
            if isinstance(value, str):
                value = self.relabel.get(value, value)
            elif isinstance(value, list | tuple):
                value = [self.relabel.get(str(label), label) for label in value]
            if value is None or (self.only and not set(label_list(str(value))) & set(self.only)):
                continue
            found[clip.id] = value
        if not found:
            raise DataError(
                self.title or self.dataset or self.task,
                expected=f"clips with {kind}.{name}",
                got=f"none of {len(clips)} clips",
                next_step="Add it to the clip list, or name another reference.",
            )
        return found


def _text(clip: Clip, name: str) -> str | None:
    """The first text of `responses.TASK`, or of `responses.TASK.LABEL`."""
    task, _, label = name.partition(".")
    texts = response_texts(clip.responses.get(task))
    return next((text for about, text in texts if text.strip() and (not label or about == label)), None)


class Baseline(Section):
    """What somebody published."""

    name: str
    source: str = ""
    note: str = ""
    """What must be known to compare with it."""
    answer: Literal["choose", "generate"] | None = None
    """How its answers came about; null where that is not known."""
    scores: dict[str, float] = Field(default_factory=dict)
    means: dict[str, float] = Field(default_factory=dict)


class Benchmark(Section):
    """A whole bench."""

    title: str
    about: str = ""
    sets: dict[str, BenchmarkSet] = Field(min_length=1)
    means: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Name -> sets whose main figures it is the unweighted mean of."""
    published: tuple[Baseline, ...] = ()

    @model_validator(mode="after")
    def _sets_exist(self) -> Benchmark:
        named = [name for names in self.means.values() for name in names]
        named += [name for baseline in self.published for name in baseline.scores]
        for name in named:
            if name not in self.sets:
                raise ValueError(f'no set "{name}".{suggest(name, self.sets)}')
        for baseline in self.published:
            for name in baseline.means:
                if name not in self.means:
                    raise ValueError(f'no mean "{name}".{suggest(name, self.means)}')
        return self


def benchmark_names() -> list[str]:
    """Shipped benches."""
    return sorted(
        e.name.removesuffix(".yaml") for e in (preset_dir() / "benches").iterdir() if e.name.endswith(".yaml")
    )


def load_benchmark(benchmark: str) -> Benchmark:
    """Read a shipped bench by name, or a file.

    Raises:
        ConfigError: no such bench, unknown keys or wrong values.
    """
    if not Path(benchmark).is_file() and benchmark not in benchmark_names():
        raise ConfigError(
            f'bench "{benchmark}"',
            expected="a file, or one of " + ", ".join(benchmark_names()),
            got="no such bench",
            next_step=suggest(benchmark, benchmark_names()).strip() or None,
        )
    values = read_yaml(benchmark if Path(benchmark).is_file() else f"benches/{benchmark}")
    try:
        return Benchmark.model_validate(values)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        raise ConfigError(benchmark, expected="a valid bench", got="problems", problems=problems) from error


def _problem(item: Any) -> str:
    place = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        section = {"sets": BenchmarkSet, "published": Baseline}.get(item["loc"][0], Benchmark)
        known = section.model_fields
        return f"{place}: unknown key.{suggest(str(item['loc'][-1]), known)} Known: {', '.join(known)}"
    return f"{place}: {item['msg'].removeprefix('Value error, ')}"
