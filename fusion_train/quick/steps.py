"""The command lines of a quick run: import, plan, extract, train, score, export, predict, and what comes next."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import featurecache
from featurecache.errors import StoreNotFoundError
from featurecache.files.publish import replace_bytes
from fusion_train.errors import ConfigError
from fusion_train.evaluation.append_only import read_lines
from fusion_train.quick.encoder_choice import MODALITIES
from fusion_train.quick.request import LISTING, QuickRun
from fusion_train.remote.configuration_emotion_llama import CERTIFICATE
from fusion_train.run import Run
from fusion_train.sweeps.results import Results, read_results

FUSIONS = ("conv-attention", "attention", "conv", "q-former")
PROBE_STEPS = 150
MAX_BATCH = 128
LORA_BATCH = 16
LORA_EPOCHS = 20
NUM_CHECKED = 8
"""Raw clips on which the exported model is compared with the run."""


@dataclass(frozen=True)
class Step:
    """One command."""

    title: str
    words: Sequence[str]
    output: Path
    """A step that was done is done again only if this is missing."""
    accepted: Collection[int] = (0,)
    """Exit codes after which the next step follows."""

    @property
    def command(self) -> str:
        return shlex.join(self.words)


def import_step(run: QuickRun, *, overwrite: bool) -> Step:
    request = run.request
    words = ["fcache", "import", "folder", request.source, "--out", str(run.clips), "--split", request.split]
    words += ["--labels", request.labels] if request.labels else []
    words += ["--group", request.group] if request.group else []
    words += ["--seed", str(request.seed)] + (["--option", f"task={request.task}"] if request.task != "emotion" else [])
    return Step(LISTING, [*words, *(["--overwrite"] if overwrite else [])], run.clips)


def _extraction(run: QuickRun) -> list[str]:
    words = ["--clips", str(run.clips), "--store", str(run.store), "--media-root", run.media_root]
    for choice in run.encoders:
        words += ["--encoder", choice.encoder, "--weights", f"{choice.encoder}={choice.weights}"]
    return words


def plan_step(run: QuickRun) -> Step:
    return Step("plan", ["fcache", "plan", *_extraction(run), "--calibrate", "4", "--headers", "0"], run.store)


def extract_step(run: QuickRun) -> Step:
    return Step("extract features", ["fcache", "extract", *_extraction(run)], run.store, (0, 1))


def undecided(run: QuickRun) -> int:
    """Return how many clips the extraction has left in some feature: it was stopped."""
    try:
        store = featurecache.open_store(str(run.store))
    except StoreNotFoundError:
        return len(run.load_clips())
    ids = run.load_clips().ids
    names = [choice.encoder for choice in run.encoders]
    if any(name not in store for name in names):
        return len(ids)
    return max(int((store[name].statuses(ids) < 0).sum()) for name in names)


def _settings(run: QuickRun) -> dict[str, Any]:
    """Return the settings that training needs beyond its stage: features, task, steps."""
    used = {MODALITIES[choice.reads]: choice.encoder for choice in run.encoders}
    train = run.load_clips().in_split("train")
    count = sum(isinstance(clip.labels.get(run.request.task), str) for clip in train)
    if run.has_llm:
        optim: dict[str, Any] = {"batch_size": LORA_BATCH, "micro_batch_size": "auto"}
        optim["steps"] = max(50, LORA_EPOCHS * count // LORA_BATCH)
    else:
        batch = min(MAX_BATCH, count)
        optim = {
            "batch_size": batch,
            "micro_batch_size": batch,
            "steps": PROBE_STEPS,
            "warmup_steps": PROBE_STEPS // 10,
        }
    return {
        "features": {"audio": None, "image": None, "video": None} | used,
        "data": {"tasks": [run.request.task], "failed_clips": "skip"},
        "optim": optim,
        "log": {"eval_every": max(1, optim["steps"] // 5)},
        "seed": run.request.seed,
    }


def train_step(run: QuickRun) -> Step:
    """Return the command that trains; for probes, write the sweep file that it names."""
    data = ["--store", str(run.store), "--clips", str(run.clips)]
    if run.has_llm:
        words = ["fusion-train", "--stage", "perception", *data, "--out", str(run.folder / "perception")]
        for key, value in _flat(_settings(run) | {"model": {"llm": run.request.model}}).items():
            words += ["--set", f"{key}={value}"]
        return Step("train with LoRA", words, run.folder / "perception" / "finished.json")
    sweep = {
        "stage": "probe",
        "task": run.request.task,
        "split": "val",
        "seeds": [run.request.seed],
        "settings": {key: value for key, value in _settings(run).items() if key != "seed"},
        "reference": FUSIONS[0],
        "variants": {name: {"model": {"fusion": {"name": name}}} for name in FUSIONS},
    }
    path = run.folder / "sweep.yaml"
    content = yaml.safe_dump(sweep, sort_keys=False).encode()
    if not path.is_file() or path.read_bytes() != content:
        replace_bytes(path, content)
    return Step(
        "compare fusions",
        ["fusion-train", "sweep", str(path), *data, "--out", str(run.fusions), "--engine", "here"],
        run.fusions / "report.html",
    )


def _flat(settings: dict[str, Any]) -> dict[str, str]:
    """Return the settings by dotted key, as `--set` takes them."""
    flat = {}
    for section, values in settings.items():
        for key, value in values.items() if isinstance(values, dict) else [("", values)]:
            text = "[" + ", ".join(value) + "]" if isinstance(value, list) else "null" if value is None else str(value)
            flat[f"{section}.{key}".rstrip(".")] = text
    return flat


def best_variant(results: Results) -> str:
    """Return the variant with the highest score; of equal ones the first."""
    scores = {name: results.mean_and_spread(name, results.measure.main) for name in results.about["variants"]}
    accuracies = {name: score[0] for name, score in scores.items() if score is not None}
    if not accuracies:
        raise ConfigError(
            str(results.folder), expected="a finished variant", got="none", next_step="The lines above say why."
        )
    return max(accuracies, key=accuracies.__getitem__)


def trained_run(run: QuickRun) -> Run:
    """Return the run that is scored: the best fusion, or the one with LoRA."""
    if run.has_llm:
        return Run(run.folder / "perception")
    return Run(run.fusions / f"{best_variant(read_results(run.fusions))}-seed{run.request.seed}")


def score_step(run: QuickRun) -> Step:
    folder = trained_run(run).folder
    words = ["fusion-train", "eval", "--run", str(folder), "--split", "test", "--task", run.request.task]
    return Step("score test clips", [*words, "--out", str(run.predictions)], run.predictions)


def export_step(run: QuickRun) -> Step:
    """Return the command that exports the scored run; a folder that a killed command left complete is verified."""
    words = ["fusion-train", "export", "--run", str(trained_run(run).folder), "--out", str(run.model)]
    words += ["--media-root", run.media_root, "--split", "test", "--check", str(NUM_CHECKED)]
    for choice in run.encoders:
        words += ["--weights", f"{choice.encoder}={choice.weights}"]
    if run.model.exists():
        words = ["fusion-train", "export", "--verify", str(run.model)]
    return Step("export", words, run.model / CERTIFICATE)


def predict_step(run: QuickRun) -> Step:
    words = ["fusion-train", "predict", "--model", str(run.model), str(run.clips), "--media-root", run.media_root]
    words += ["--split", "test", "--task", run.request.task, "--out", str(run.answers)]
    return Step("predict test clips", words, run.answers, (0, 1))


def unanswered(run: QuickRun) -> int:
    """Return how many test clips have neither an answer of the exported model nor the reason why not."""
    answered = {row["id"] for row in read_lines(run.answers)} if run.answers.is_file() else set()
    return len(set(run.load_clips().in_split("test").ids) - answered)


def next_commands(run: QuickRun) -> list[str]:
    """Return the three commands that one would type next."""
    data = ["--clips", str(run.clips), "--store", str(run.store)]
    clip = run.load_clips().in_split("test")[0]
    predict = ["fusion-train", "predict", "--model", str(run.model), str(clip.video or clip.audio or clip.image)]
    audit = ["fcache", "audit", *data, "--media-root", run.media_root]
    if run.has_llm:
        last = ["fusion-train", "report", str(trained_run(run).folder)]
    else:
        last = ["fusion-train", "plan", "--stage", "perception", *data]
    return [shlex.join(words) for words in (predict, audit, last)]
