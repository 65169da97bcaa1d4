"""How the questions of a benchmark set are put, and what is said of it beside the scores.

Laid over each other, the later first: `prompt` of the configuration, its `evaluation.prompt`, its
`evaluation.datasets`, the set's own `prompt` and `instruction`. A label is chosen among the closed set or generated.
What was asked stands in every row of the answers (`by`), so that scores formed from files alone can say it too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from featurecache.spec import canonical_json
from fusion_train.config import Config, load_config, validate
from fusion_train.errors import ConfigError
from fusion_train.evaluation.benchmarks import BenchmarkSet
from fusion_train.prompts.prompt import PromptFormat, find_task
from fusion_train.yaml_settings import merge, parse_override

Answer = Literal["choose", "generate"]
Source = Literal["own", "configuration", "benchmark"]
SOURCES: dict[Source, str] = {
    "own": "own wording",
    "configuration": "wording of the configuration",
    "benchmark": "wording of the benchmark",
}
SECTIONS = ("prompt", "evaluation")
NOT_STATED = "not stated"


@dataclass(frozen=True)
class Wording:
    """How one set is asked."""

    answer: Answer
    source: Source
    """Whose instruction is asked."""
    instructions: Mapping[str, str]
    """Dataset ("" for none) -> the instruction."""
    prompts: Mapping[str, PromptFormat]
    """Dataset -> everything around it."""

    def by(self) -> dict[str, Any]:
        """What the rows of the answers say of it."""
        texts = set(self.instructions.values())
        formats = canonical_json({name: asdict(prompt) for name, prompt in self.prompts.items()})
        return {
            "from": self.source,
            "instruction": texts.pop() if len(texts) == 1 else dict(self.instructions),
            "format": hashlib.sha256(formats.encode()).hexdigest()[:12],
        }


def wording_of(
    config: Config, asked: BenchmarkSet, datasets: Iterable[str | None], answer: Answer | None = None
) -> Wording:
    """How `asked` is put to the clips of `datasets`.

    Args:
        answer: how one label is answered, whatever the benchmark and the configuration say.
    """
    task, evaluation = asked.question, config.evaluation
    stated = asked.answer if "answer" in asked.model_fields_set else evaluation.answer or asked.answer
    chosen: Answer = (answer or stated) if task.answer == "label" else "generate"
    prompts, instructions, sources = {}, {}, set[Source]()
    for name in sorted({dataset or "" for dataset in datasets}):
        prompt = config.prompt.changed(evaluation.prompt, evaluation.datasets.get(name, {}))
        before = prompt.format().wordings(task, name)
        prompt = prompt.changed(asked.prompt)
        if asked.instruction is not None:
            prompt = prompt.changed({"instructions": {f"{name}/{task.full_name}": asked.instruction}})
        prompts[name] = prompt.format()
        instructions[name] = prompts[name].worded(task, name).instruction
        changed = prompts[name].wordings(task, name) != before
        sources.add("benchmark" if changed else "own" if before == (task.instruction,) else "configuration")
    source = next(name for name in ("benchmark", "configuration", "own") if name in sources)
    return Wording(chosen, source, instructions, prompts)


def asked_in_training(config: Config, task_name: str) -> str:
    """How held-out clips are asked while training and in sweeps: in the prompt of training, labels chosen."""
    task = find_task(task_name)
    way = "labels chosen among the closed set" if task.answer == "label" else "answers generated"
    if config.model.llm is None:
        return f"{way}, by a probe, which is asked in no words"
    keys = {key.rpartition("/")[2] for key in config.prompt.instructions}
    return f"{way}, {SOURCES['configuration' if task.name in keys else 'own']}"


def asking_as(config: Config, name: str | None, overrides: Sequence[str]) -> Config:
    """The configuration of a run with `prompt` and `evaluation` of another one, and with overrides of these.

    Raises:
        ConfigError: no such configuration, or an override of anything else.
    """
    taken = config if name is None else load_config(name, config.stage)
    values = {section: getattr(taken, section).model_dump() for section in SECTIONS}
    for text in overrides:
        changed = parse_override(text)
        others = [section for section in changed if section not in SECTIONS]
        if others:
            raise ConfigError(
                f"--set {text}",
                expected=f"a setting of {' or '.join(SECTIONS)}",
                got=f"one of {others[0]}",
                next_step="What the run was trained with cannot be changed by asking it.",
            )
        merge(values, changed)
    return validate({**config.model_dump(), **values}, "--set")


def said_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """How answers came about and whose wording was asked, as the rows say it."""
    ways = {_of(row, "answer") for row in rows}
    sources = {SOURCES.get((_of(row, "wording") or {}).get("from"), NOT_STATED) for row in rows}
    return ", ".join(sorted(way or NOT_STATED for way in ways)), "; ".join(sorted(sources))


def instructions_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The instructions that the rows name, each once."""
    found: dict[str, None] = {}
    for row in rows:
        said = (_of(row, "wording") or {}).get("instruction")
        found |= dict.fromkeys(said.values() if isinstance(said, Mapping) else [said] if said else [])
    return list(found)


def _of(row: Mapping[str, Any], key: str) -> Any:
    by = row.get("by")
    return by.get(key) if isinstance(by, Mapping) else None
