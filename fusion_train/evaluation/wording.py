"""Decide the prompt of a benchmark set, and report it beside the scores.

The prompt is resolved in layers, each overriding the ones before: `prompt` of the configuration, its
`evaluation.prompt`, its `evaluation.datasets`, then `prompt` and `instruction` of the set. A label is chosen among a
closed set or generated. Every answer row records its prompt (key `by`), so scores computed only from files can report
it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from featurecache.spec import canonical_json
from fusion_train.config import Config, validate
from fusion_train.errors import ConfigError
from fusion_train.evaluation.benchmarks import BenchmarkSet
from fusion_train.presets import load_config
from fusion_train.prompts.prompt import PromptFormat, find_task
from fusion_train.yaml_settings import merge, parse_override

AnswerMode = Literal["choose", "generate"]
WordingSource = Literal["own", "configuration", "benchmark"]
SOURCE_TEXTS: dict[WordingSource, str] = {
    "own": "own wording",
    "configuration": "wording of the configuration",
    "benchmark": "wording of the benchmark",
}
SECTIONS = ("prompt", "evaluation")
"""Sections of the configuration that may be changed without training again."""
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Wording:
    """How one set is asked: how a label is answered, and the prompt per dataset."""

    answer: AnswerMode
    source: WordingSource
    """Where the instruction comes from."""
    instructions: Mapping[str, str]
    """Dataset ("" for none) -> instruction."""
    prompts: Mapping[str, PromptFormat]
    """Dataset -> the format of the whole prompt."""

    def as_json(self) -> dict[str, Any]:
        """Return the record of the wording that every answer row carries."""
        texts = set(self.instructions.values())
        formats = canonical_json({name: asdict(prompt) for name, prompt in self.prompts.items()})
        return {
            "from": self.source,
            "instruction": texts.pop() if len(texts) == 1 else dict(self.instructions),
            "format": hashlib.sha256(formats.encode()).hexdigest()[:12],
        }


def wording_of(
    config: Config, benchmark_set: BenchmarkSet, datasets: Iterable[str | None], answer: AnswerMode | None = None
) -> Wording:
    """Return how a benchmark set is asked about clips of `datasets`.

    Args:
        answer: how one label is answered; overrides the benchmark and the configuration.
    """
    task, evaluation = benchmark_set.question, config.evaluation
    stated = (
        benchmark_set.answer
        if "answer" in benchmark_set.model_fields_set
        else evaluation.answer or benchmark_set.answer
    )
    mode: AnswerMode = (answer or stated) if task.answer == "label" else "generate"
    prompts, instructions, sources = {}, {}, set[WordingSource]()
    for name in sorted({dataset or "" for dataset in datasets}):
        prompt = config.prompt.changed(evaluation.prompt, evaluation.datasets.get(name, {}))
        configured = prompt.format().wordings(task, name)
        prompt = prompt.changed(benchmark_set.prompt)
        if benchmark_set.instruction is not None:
            prompt = prompt.changed({"instructions": {f"{name}/{task.full_name}": benchmark_set.instruction}})
        prompts[name] = prompt.format()
        instructions[name] = prompts[name].worded(task, name).instruction
        if prompts[name].wordings(task, name) != configured:
            sources.add("benchmark")
        else:
            sources.add("own" if configured == (task.instruction,) else "configuration")
    source = next(name for name in ("benchmark", "configuration", "own") if name in sources)
    return Wording(mode, source, instructions, prompts)


def asked_in_training(config: Config, task_name: str) -> str:
    """Describe how validation clips are asked in training and in sweeps: with the training prompt, labels chosen."""
    task = find_task(task_name)
    mode = "labels chosen among the closed set" if task.answer == "label" else "answers generated"
    if config.model.llm is None:
        return f"{mode}, by a probe, which has no prompt"
    tasks = {key.rpartition("/")[2] for key in config.prompt.instructions}
    return f"{mode}, {SOURCE_TEXTS['configuration' if task.name in tasks else 'own']}"


def asking_as(config: Config, name: str | None, overrides: Sequence[str]) -> Config:
    """Return the configuration of a run with `prompt` and `evaluation` of another one, and with overrides of these two.

    Raises:
        ConfigError: no such configuration, or an override of another section.
    """
    source = config if name is None else load_config(name, config.stage)
    values = {section: getattr(source, section).model_dump() for section in SECTIONS}
    for text in overrides:
        changed = parse_override(text)
        others = [section for section in changed if section not in SECTIONS]
        if others:
            raise ConfigError(
                f"--set {text}",
                expected=f"a setting of {' or '.join(SECTIONS)}",
                got=f"one of {others[0]}",
                next_step="Settings of training cannot be changed when a trained run is asked.",
            )
        merge(values, changed)
    return validate({**config.model_dump(), **values}, "--set")


def wording_in_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return how the answers were obtained, and the source of the wording, as the rows record them."""
    modes = {_source_field(row, "answer") or NOT_STATED for row in rows}
    sources = {SOURCE_TEXTS.get((_source_field(row, "wording") or {}).get("from", ""), NOT_STATED) for row in rows}
    return ", ".join(sorted(modes)), "; ".join(sorted(sources))


def instructions_in_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the distinct instructions that the rows record."""
    distinct: dict[str, None] = {}
    for row in rows:
        recorded = (_source_field(row, "wording") or {}).get("instruction")
        instructions = recorded.values() if isinstance(recorded, Mapping) else [recorded] if recorded else []
        distinct |= dict.fromkeys(instructions)
    return list(distinct)


def _source_field(row: Mapping[str, Any], key: str) -> Any:
    """Return one field of the row's source (`by`); None if the row does not have it."""
    source = row.get("by")
    return source.get(key) if isinstance(source, Mapping) else None
