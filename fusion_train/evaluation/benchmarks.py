"""Benchmarks as YAML files: their sets, the questions, the metrics, the means, and published results.

    title: My benchmark
    sets:
      dfew: {title: DFEW, dataset: dfew, split: test, task: emotion, metric: classification, main: WAR,
             vocabulary: [happy, sad, neutral, angry, surprise, disgust, fear]}
    means: {Mean: [dfew]}
    published:
      - {name: Baseline, source: "paper, table 2", scores: {dfew: 71.2}}

Published figures are in per cent, as printed. The shipped benchmarks are in `configs/benches`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.clips.clip_rows import SCORE_SUFFIX
from featurecache.clips.responses import response_texts
from featurecache.errors import suggest
from fusion_train.config import PromptConfig, Section
from fusion_train.errors import ConfigError, DataError
from fusion_train.metrics.labels import label_list
from fusion_train.metrics.registry import find_metric
from fusion_train.presets import preset_dir, read_yaml
from fusion_train.prompts.prompt import Task, find_task

BY_TASK = {
    "emotion": "classification",
    "sentiment": "classification",
    "intent": "classification",
    "multi-label": "multi-label",
    "openset": "open-vocabulary",
    "think": "classification",
    "reason": "overlap",
}
"""Task -> metric used if a set names none; other tasks have answers but no score."""


def metric_of(task: Task) -> str | None:
    """Return the metric of a task that names none; None for a task without a score."""
    return "regression" if task.answer == "number" else BY_TASK.get(task.name)


class BenchmarkSet(Section):
    """One set of clips with one question: a row of the score table."""

    title: str = ""
    dataset: str | None = None
    """Value of `dataset` in the clip list; null uses every clip of the split."""
    split: str | tuple[str, ...] | None = "test"
    """Null uses every clip of the dataset, also of datasets without splits."""
    as_dataset: str | None = None
    """Dataset as whose clips they are asked: its labels are offered, in its wording. For runs that never saw `dataset`;
    a probe has no other classes."""
    task: str = "emotion"
    answer: Literal["choose", "generate"] = "choose"
    """choose: the most probable label of a closed set, without generation. Answers to open tasks are always
    generated."""
    instruction: str | None = None
    """Instruction used instead of the task's own; may contain {labels}."""
    prompt: dict[str, Any] = Field(default_factory=dict)
    """Settings that override `prompt` of the configuration."""
    counts: dict[str, int] = Field(default_factory=dict)
    """Label -> number of clips with it in the published ground truth; a note reports a clip list with other numbers."""
    reference: str | None = None
    """`labels.NAME`, `responses.NAME` or `responses.NAME.LABEL`; null uses the answer of the task itself."""
    metric: str | None = None
    """Null uses the metric of the task."""
    main: str | None = None
    """Figure that represents the set; null uses the main figure of the metric."""
    also: tuple[str, ...] = ()
    """Further metrics of the same answers; means do not include them."""
    vocabulary: tuple[str, ...] | None = None
    """Label space of the dataset; a reference outside it is an error, an answer outside it counts as wrong."""
    relabel: dict[str, str] = Field(default_factory=dict)
    """Label of a reference -> label that replaces it."""
    relabel_answers: dict[str, str] = Field(default_factory=dict)
    """Answered label -> label that replaces it, where a run answers in the words of another dataset."""
    unmapped: tuple[str, ...] = ()
    """Reference labels without a counterpart in `vocabulary`; their clips are not asked, and a note names them."""
    only: tuple[str, ...] = ()
    """Reference labels that are scored; clips with other labels are not asked. Empty: all."""

    @model_validator(mode="after")
    def _check_names(self) -> BenchmarkSet:
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
        outside = [label for label in self.mapped_labels if self.vocabulary and label not in self.vocabulary]
        if outside:
            raise ValueError(f"labels that are mapped to but are not in the vocabulary: {', '.join(outside)}")
        contradictory = sorted(set(self.unmapped) & {*self.relabel, *(self.vocabulary or ())})
        if contradictory:
            raise ValueError(f"labels that are mapped and named as unmapped: {', '.join(contradictory)}")
        if self.reference is not None and self.reference.partition(".")[0] not in ("labels", "responses"):
            raise ValueError(f'reference "{self.reference}" is not of the form labels.NAME or responses.NAME')
        return self

    @property
    def mapped_labels(self) -> list[str]:
        """Labels that take the place of others in references or answers."""
        return sorted({*self.relabel.values(), *self.relabel_answers.values()})

    @property
    def chosen_metric(self) -> str | None:
        """Name of the metric that scores the set; None for a task without one."""
        return self.metric or metric_of(find_task(self.task))

    @property
    def reference_key(self) -> tuple[str, str]:
        """Where a clip has its reference: ("labels" or "responses", name)."""
        if self.reference is not None:
            kind, _, name = self.reference.partition(".")
            return kind, name
        task: Task = find_task(self.task)
        if task.answer == "think":
            return "labels", task.label
        return ("labels" if task.answer in ("label", "labels", "number") else "responses"), task.key

    @property
    def question(self) -> Task:
        """Task that is asked; "think" asks for the rationale of the reference's label task."""
        task, (kind, name) = find_task(self.task), self.reference_key
        return task.about(name.removesuffix(SCORE_SUFFIX)) if task.answer == "think" and kind == "labels" else task

    def chosen(self, clips: ClipList) -> list[Clip]:
        """Return the clips of the set in list order; empty if the list has none of them."""
        splits = (self.split,) if isinstance(self.split, str) else self.split
        return [
            clip for clip in clips if (splits is None or clip.split in splits) and self.dataset in (None, clip.dataset)
        ]

    def references(self, clips: list[Clip]) -> dict[str, Any]:
        """Return clip id -> reference; clips without a reference, or with one that is not scored, are left out.

        Raises:
            DataError: no clip has one.
        """
        kind, name = self.reference_key
        references = {}
        for clip in clips:
            value = clip.labels.get(name) if kind == "labels" else _text(clip, name)
            if value is None and name == "sentiment_score":
                value = clip.labels.get("sentiment")  # WAF uses only the sign of a score
            if isinstance(value, str):
                if value in self.unmapped:
                    continue
                value = self.relabel.get(value, value)
            elif isinstance(value, list | tuple):
                value = [self.relabel.get(str(label), label) for label in value]
            if value is None or (self.only and not set(label_list(str(value))) & set(self.only)):
                continue
            references[clip.id] = value
        if not references:
            raise DataError(
                self.title or self.dataset or self.task,
                expected=f"clips with {kind}.{name}",
                got=f"none of {len(clips)} clips",
                next_step="Add it to the clip list, or name another reference.",
            )
        return references


def _text(clip: Clip, name: str) -> str | None:
    """Return the first text that is not empty of `responses.TASK`, or of `responses.TASK.LABEL`."""
    task, _, label = name.partition(".")
    texts = response_texts(clip.responses.get(task))
    return next((text for label_task, text in texts if text.strip() and (not label or label_task == label)), None)


class Baseline(Section):
    """Published results of another system."""

    name: str
    source: str = ""
    note: str = ""
    """Conditions that a reader needs to compare with it."""
    answer: Literal["choose", "generate"] | None = None
    """How its answers were obtained; null if that is not known."""
    scores: dict[str, float] = Field(default_factory=dict)
    means: dict[str, float] = Field(default_factory=dict)


class Benchmark(Section):
    """A benchmark: sets, means over them, and published results."""

    title: str
    about: str = ""
    sets: dict[str, BenchmarkSet] = Field(min_length=1)
    means: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Name -> sets; the mean is the unweighted mean of their main figures."""
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
    """Return the names of the shipped benchmarks."""
    entries = (preset_dir() / "benches").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_benchmark(benchmark: str) -> Benchmark:
    """Read a shipped benchmark by name, or a benchmark file.

    Raises:
        ConfigError: no such benchmark, unknown keys or wrong values.
    """
    if not Path(benchmark).is_file() and benchmark not in benchmark_names():
        raise ConfigError(
            f'benchmark "{benchmark}"',
            expected="a file, or one of " + ", ".join(benchmark_names()),
            got="no such benchmark",
            next_step=suggest(benchmark, benchmark_names()).strip() or None,
        )
    values = read_yaml(benchmark if Path(benchmark).is_file() else f"benches/{benchmark}")
    try:
        return Benchmark.model_validate(values)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors()]
        raise ConfigError(benchmark, expected="a valid benchmark", got="problems", problems=problems) from error


def _problem(item: Any) -> str:
    place = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        sections: dict[str, type[Section]] = {"sets": BenchmarkSet, "published": Baseline}
        known = sections.get(item["loc"][0], Benchmark).model_fields
        return f"{place}: unknown key.{suggest(str(item['loc'][-1]), known)} Known: {', '.join(known)}"
    return f"{place}: {item['msg'].removeprefix('Value error, ')}"
