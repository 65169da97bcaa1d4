"""Write the model card of an exported folder: use, parts, training data, scores, and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurecache.files.publish import replace_bytes
from featurecache.outside_text import markdown_text
from fusion_train.config import Config
from fusion_train.evaluation.wording import asked_in_training
from fusion_train.models.parts import count_by_part
from fusion_train.prompts.prompt import find_task
from fusion_train.run import Run
from fusion_train.run_context import RunContext

USE = """\
```python
from transformers import AutoModelForCausalLM, AutoProcessor

processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True{arguments})

inputs = processor(video="clip.mp4", text="what the person says", task="{task}").to(model.device)
print(processor.answers(model.generate(**inputs))[0])
```

`text` may be left out; `audio=` and `image=` take separate files; `question=` replaces the instruction of the task.
Lists make a batch. Needed: torch, transformers, av, numpy, pillow{needed}."""

PROBE_USE = """\
```python
from transformers import AutoModel, AutoProcessor

processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)

inputs = processor(video="clip.mp4", task="{task}"{dataset}).to(model.device)
labels = processor.labels("{task}"{dataset})
print(dict(zip(labels, model.label_probabilities(**inputs)[0].tolist())))
```

`audio=` and `image=` take separate files. Lists make a batch. It reads no text and answers no open question.
Needed: torch, transformers, av, numpy, pillow{needed}."""

ADAPTER_ARGUMENTS = ', base="BASE", encoder_weights={"whisper": "WHISPER"}'
ADAPTER = """
This folder holds only the trained parts: LoRA (peft's `adapter_config.json`), fusion and projectors
(`fusion.safetensors`). `base` and `encoder_weights` are paths or hub ids of base model and encoders, needed unless they
are found by their hub names. Both are checked by sha256, and others are refused.
`PeftModel.from_pretrained(base_model, FOLDER)` gives the language model with its adapters, without encoders and fusion.
"""

LABELS = """
For a closed set of labels, without generation:

```python
labels = processor.labels("{task}")
print(dict(zip(labels, model.label_probabilities(processor.label_ids(labels), **inputs)[0].tolist())))
```"""


ACCURACY = "accuracy/"
"""Prefix of the accuracies among the metrics of a run."""


def write_card(
    folder: Path,
    run: Run,
    context: RunContext,
    tasks: Sequence[str],
    parts: Mapping[str, int],
    about: Mapping[str, Any],
) -> None:
    """Write README.md; all its statements come from the run.

    Args:
        tasks: tasks that the run was trained on.
        parts: trained parameters by part, of `trained_parts`.
        about: of `export_run.describe`, with `num_clips` of the parity check.
    """
    replace_bytes(folder / "README.md", card(run, context, tasks, parts, about).encode())


def trained_parts(context: RunContext) -> dict[str, int]:
    """Return the trained parameters by part; call it before adapters are merged."""
    return count_by_part(context.model)


def card(
    run: Run, context: RunContext, tasks: Sequence[str], parts: Mapping[str, int], about: Mapping[str, Any]
) -> str:
    """Return the text of the card; arguments as of `write_card`."""
    config, record = context.config, run.record()
    base = config.model.llm
    adapter = about["form"] == "adapter"
    closed = next((name for name in tasks if name in ("emotion", "sentiment", "intent")), None)
    lines = [
        "---",
        f"library_name: {'peft' if adapter else 'transformers'}",
        f"pipeline_tag: {'video-text-to-text' if base else 'video-classification'}",
        *([] if base is None or Path(base).exists() else [f"base_model: {base}"]),
        "license: other",
        "tags: [emotion-recognition, multimodal, custom_code]",
        "---",
        "",
        f"# {markdown_text(run.name)}",
        "",
        "A multimodal language model that names and explains the emotion of a person in a short clip, from face, voice "
        "and words. Frozen encoders, a fusion module, linear projectors and a language model with LoRA, "
        "after Emotion-LLaMAv2 (arXiv 2601.16449)."
        if base
        else "A probe without a language model: frozen encoders, a fusion module and one linear layer give a "
        "probability for each label of a person's emotion in a short clip. It measures what the features reveal.",
        "",
        "## Use",
        "",
        USE.format(task=tasks[0], arguments=ADAPTER_ARGUMENTS if adapter else "", needed=_needed(adapter, about))
        if base
        else PROBE_USE.format(task=tasks[0], dataset=_dataset(context), needed=_needed(adapter, about)),
        *([ADAPTER] if adapter else []),
        LABELS.format(task=closed) if closed and base else "",
        "",
        "## Parts",
        "",
        "| part | what | trained parameters |",
        "|---|---|---:|",
        f"| language model | {markdown_text(Path(base).name)}, {about['dtype']}, LoRA "
        f"{'beside it' if adapter else 'merged'} | {parts.get('lora', 0):,} |"
        if base
        else f"| head | linear, float32 | {parts.get('head', 0):,} |",
        f"| fusion | {config.model.fusion.name} | {parts.get('fusion', 0):,} |",
        *(f"| {name.replace('.', ' ')} | linear | {count:,} |" for name, count in parts.items() if "." in name),
        *(
            f"| {modality} encoder | {spec.encoder}, {spec.shape[0]} × {spec.shape[1]} | 0 |"
            for modality, spec in context.reader.specs.items()
        ),
        "",
        "## Training",
        "",
        f"Stage {config.stage}, step {about['run']['step']} of {config.optim.steps}, batch {config.optim.batch_size}, "
        f"learning rate {config.optim.lr:g}, seed {config.seed}; tasks {', '.join(tasks)}.",
        *_unanswered_tasks(config.data.tasks, tasks),
        f"Started from the run {markdown_text(Path(record.initial['run']).name)}, step {record.initial['step']}."
        if record.initial
        else "Trained parts started from their seed.",
        f"Weights: {markdown_text(about['run']['weights'])}.",
        "",
        *_data(context),
        "",
        "| feature | fingerprint of its spec |",
        "|---|---|",
        *(f"| {modality} | `{value}` |" for modality, value in context.reader.fingerprints.items()),
        "",
        "## Scores",
        "",
        scores_of(run, about["run"]["step"]),
        *_asked(config),
        "",
        "## Proof",
        "",
        f"`CERTIFICATE.md`: this folder was loaded in a fresh process and compared with the trained model on "
        f"{about['num_clips']} raw clips.",
        "",
        "## Intended use and limits",
        "",
        "Research on affective computing. What a face or a voice shows is not what a person feels: do not decide about "
        "people by this model's answers. It knows the datasets, languages and label sets above and no others; scores "
        "on other material are unknown. Sound beyond what the audio encoder takes (30 s for Whisper) is not heard. "
        "Licences of the base models and of the data apply; the code beside the weights is Apache-2.0 (featurecache "
        f"{about['versions']['featurecache']}).",
    ]
    return "\n".join(lines) + "\n"


def _dataset(context: RunContext) -> str:
    """Return the argument that names a dataset of training, if there are several."""
    names = [name for name, sets in context.label_sets.items() if any(sets.values())]
    return "" if len(names) < 2 else f", dataset={names[0]!r}"


def _needed(adapter: bool, about: Mapping[str, Any]) -> str:
    """Return the packages that a folder needs beside the usual ones, each after a comma."""
    packages = [*(["peft"] if adapter else []), *about.get("packages", ())]
    return "".join(f", {name}" for name in packages)


def _unanswered_tasks(configured: Sequence[str], tasks: Sequence[str]) -> list[str]:
    unanswered = [name for name in configured if name not in tasks]
    if not unanswered:
        return []
    return [f"Tasks of the configuration that no training clip answers: {', '.join(unanswered)}."]


def _data(context: RunContext) -> list[str]:
    split = context.config.data.train_split
    counts: dict[str, int] = {}
    for clip in context.clips.in_split(split):
        counts[clip.dataset or "(unnamed)"] = counts.get(clip.dataset or "(unnamed)", 0) + 1
    lines = [f"| dataset | clips in the split {markdown_text(split)} | labels |", "|---|---:|---|"]
    for dataset, count in counts.items():
        sets = context.label_sets.get("" if dataset == "(unnamed)" else dataset, {})
        label_text = "; ".join(f"{task}: {', '.join(labels)}" for task, labels in sets.items())
        lines.append(f"| {markdown_text(dataset)} | {count} | {markdown_text(label_text)} |")
    return lines


def _asked(config: Config) -> list[str]:
    """Describe how clips were asked for the scores; empty if no task has labels."""
    closed = [name for name in config.data.tasks if find_task(name).answer == "label"]
    return [f"How clips were asked: {asked_in_training(config, closed[0])}."] if closed else []


def scores_of(run: Run, step: int) -> str:
    """Return the scores of the weights of a step during training, in one sentence."""
    rows = [row for row in run.metric_rows() if row["step"] == step and "eval_loss" in row]
    if not rows:
        return f"The weights of step {step} were not scored while the run trained."
    accuracies = [
        f"accuracy {markdown_text(name.removeprefix(ACCURACY))} {value:.4f}"
        for name, value in rows[-1].items()
        if name.startswith(ACCURACY)
    ]
    figures = ", ".join([*accuracies, f"loss per supervised token {rows[-1]['eval_loss']:.4f}"])
    return f"Of these weights (step {step}), on the split {markdown_text(run.config().data.eval_split)}: {figures}."
