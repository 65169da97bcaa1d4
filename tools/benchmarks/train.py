"""What training costs beside what it must, on any machine: feeding, packing, prefix sharing, compiling, resuming.

Feeding: steps whose batches come from the store, against as many on one batch that stays in memory, in turns.
Packing: the same samples padded to the longest of each batch, and packed. Sharing: questions on one clip apart, and
behind a shared prefix. Beside every ratio of samples a second stands the one that token counts predict. Ratios of wall
time want a machine at rest; those of processor time (`_cpu`) hold beside other work too, on one thread.
Resuming: a process that goes on at step 10^6 of an epoch of 10^6 clips, from nothing to its first batch.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import Accelerator
from torch._dynamo.utils import counters
from torch.nn import functional as F
from train_material import LABELS, save_clips, save_llm, save_store

from fusion_train import run_context as assembling
from fusion_train.config import Config
from fusion_train.data.loader import PrefetchingLoader
from fusion_train.data.samples import Sample
from fusion_train.errors import ConfigError
from fusion_train.llm.loading import load_llm
from fusion_train.models.model_group import OneModel
from fusion_train.planning.memory_budget import CPU_TOKENS, TokenBudget
from fusion_train.presets import load_config
from fusion_train.run_context import RunContext, build_context
from fusion_train.training.devices import place
from fusion_train.training.optimizer import make_optimizer, set_learning_rates
from fusion_train.training.sample_stream import keep_pool, make_stream
from fusion_train.training.step import Learner, train_step
from fusion_train.training.step_metrics import MetricsAccumulator

BATCH = 4
PAIRS = 3
"""Of a step from the store and one on a resident batch, for each step asked for."""
WALL, CPU = 0, 1
Taken = tuple[float, float]
"""Seconds of wall time, and of the processor by all threads."""
PARTS = ("feeding", "packing", "sharing", "compiling", "quantising", "resuming")
OPTIONS = [
    click.Option(["--steps"], type=int, default=16, show_default=True, help="Steps of each contestant."),
    click.Option(["--width"], type=int, default=256, show_default=True, help="Width of the language model."),
    click.Option(["--layers"], type=int, default=4, show_default=True),
    click.Option(["--clips", "num_clips"], type=int, default=128, show_default=True, help="Clips in the store."),
    click.Option(["--only"], type=click.Choice(PARTS), multiple=True, help="Parts to measure.  [default: all]"),
]


def measure(steps: int, width: int, layers: int, num_clips: int, only: tuple[str, ...]) -> dict[str, Any]:
    """All figures, or those of some parts."""
    figures: dict[str, Any] = {}
    parts = only or PARTS
    with tempfile.TemporaryDirectory(prefix="bench-train-") as place:
        root = Path(place)
        llm = save_llm(root / "llm", width=width, layers=layers)
        store = save_store(root / "features.zarr", [f"clip_{number:07d}" for number in range(num_clips)])
        mixed = save_clips(root / "mixed.jsonl", num_clips)
        uniform = save_clips(root / "same.jsonl", num_clips, uniform=True)
        if "feeding" in parts:
            figures |= feeding(_open(llm, store, uniform, "data.tasks=[reason]"), steps)
        if "packing" in parts:
            figures |= packing(_open(llm, store, mixed, "data.tasks=[emotion, reason]"), steps)
        for questions in (2, 4) if "sharing" in parts else ():
            figures |= sharing(llm, store, mixed, questions, max(2, steps // 4))
        if "compiling" in parts:
            figures |= compiling(llm, store, mixed, steps)
        for kind in ("plain", "fp8", "int8", "nf4") if "quantising" in parts else ():
            figures |= quantising(llm, store, uniform, kind, steps)
        if "resuming" in parts:
            figures |= resuming(root, llm)
    return figures


def settings(llm: Path, *overrides: str) -> Config:
    """The published structure on a small language model."""
    return load_config(
        None,
        "joint",
        [
            f"model.llm={llm}",
            "model.llm_dtype=float32",
            "model.lora.r=8",
            "model.fusion.dropout=0",
            "model.lora.dropout=0",
            "data.mixture=null",
            "data.eval_split=null",
            f"optim.batch_size={BATCH}",
            f"optim.micro_batch_size={BATCH}",
            "optim.precision=fp32",
            "optim.steps=1000000",
            *overrides,
        ],
    )


def _open(llm: Path, store: Path, clips: Path, *overrides: str) -> RunContext:
    return build_context(settings(llm, *overrides), str(store), str(clips))


class Stepper:
    """Optimizer steps on given batches."""

    def __init__(self, context: RunContext) -> None:
        self.context, self.accelerator = context, Accelerator(mixed_precision="no")
        context.model.train().to(self.accelerator.device)
        self.optimizer = self.accelerator.prepare(make_optimizer(context.model, context.config.optim))
        metrics = MetricsAccumulator(lambda sample: 0.0)
        self.learner = Learner(context.config, context.model, self.optimizer, self.accelerator, metrics)

    def __call__(self, batches: list[Any]) -> float:
        train_step(OneModel(self.context.model), [self.learner], [0], batches, 0)
        self.learner.metrics.take()
        return self.learner.loss


def feeding(context: RunContext, steps: int) -> dict[str, Any]:
    """Steps from the store over steps on one resident batch, in turns; and the share of time spent waiting.

    The steps after the one that is asked for are prepared while it is in work.
    """
    step = Stepper(context)
    loader = PrefetchingLoader(
        context.config, make_stream(context), context.collator, num_processes=1, process=0, budget=CPU_TOKENS
    )
    resident = loader.micro_batches(0)
    batches = loader.steps(0, PAIRS * steps + 2)
    for _ in range(2):
        step(next(batches))
        step(resident)
    fed, kept, waited_s = [], [], 0.0

    def step_from_store() -> None:
        nonlocal waited_s
        since = time.perf_counter()
        given = next(batches)
        waited_s += time.perf_counter() - since
        step(given)

    for _ in range(PAIRS * steps):
        fed.append(_taken(step_from_store))
        kept.append(_taken(lambda: step(resident)))
    ratios = [from_store[WALL] / in_memory[WALL] for from_store, in_memory in zip(fed, kept, strict=True)]
    return {
        "step_from_store_over_resident": round(statistics.median(ratios), 4),
        "step_from_store_over_resident_cpu": _ratio(fed, kept, CPU),
        "step_s": round(statistics.median(taken[WALL] for taken in fed), 3),
        "data_wait_share": round(waited_s / sum(taken[WALL] for taken in fed), 5),
    }


def packing(context: RunContext, steps: int) -> dict[str, Any]:
    """The same samples padded and packed, forward and backward."""
    step = Stepper(context)
    stream = make_stream(context)
    groups = [[stream.draw(BATCH * k + n) for n in range(BATCH)] for k in range(steps)]
    lengths = [[context.collator.encode(sample).length for sample in group] for group in groups]
    predicted = sum(max(group) * len(group) for group in lengths) / sum(map(sum, lengths))
    padded_taken, packed_taken = [], []
    for number, group in enumerate([groups[0], *groups]):
        padded = padded_batch(context, group)
        packed = [context.collator(group)]
        pair = _taken(lambda padded=padded: padded_step(step, padded)), _taken(lambda packed=packed: step(packed))
        if number:  # the first warms up
            padded_taken.append(pair[0])
            packed_taken.append(pair[1])
    return {
        **_beside_predicted("packed", "over_padded", padded_taken, packed_taken, predicted),
        "packed_samples_per_s": round(steps * BATCH / sum(taken[WALL] for taken in packed_taken), 2),
    }


def padded_batch(context: RunContext, samples: list[Sample]) -> dict[str, Any]:
    """Rows padded on the right, as transformers would have them."""
    rows = [context.collator.encode(sample) for sample in samples]
    length = max(row.length for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : row.length] = torch.tensor(row.prompt + row.answer)
        labels[number, len(row.prompt) : row.length] = torch.tensor(row.answer)
        mask[number, : row.length] = 1
    shown = [context.collator.present(sample.clip, sample.hidden) for sample in samples]
    features, present = context.reader.read_visible([sample.clip.id for sample in samples], shown)
    return {"ids": ids, "labels": labels, "mask": mask, "features": features, "present": present}


def padded_step(step: Stepper, batch: dict[str, Any]) -> None:
    """One optimizer step on a padded batch; only supervised positions pass the head here too."""
    model = step.context.model
    targets = F.pad(batch["labels"][:, 1:], (0, 1), value=-100)
    keep = (targets != -100).any(dim=0)
    embedded = model.embed(batch["ids"], batch["features"], batch["present"])
    logits = model.llm(
        inputs_embeds=embedded, attention_mask=batch["mask"], logits_to_keep=keep, use_cache=False
    ).logits
    F.cross_entropy(logits.float().flatten(0, 1), targets[:, keep].flatten()).backward()
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)


def compiling(llm: Path, store: Path, clips: Path, steps: int) -> dict[str, Any]:
    """The same steps, rows of many layouts, with compiled layers and without, in turns."""
    common = (
        "data.tasks=[emotion, reason]",
        "data.questions_per_clip=2",
        "optim.micro_batch_size=auto",
        f"optim.batch_size={2 * BATCH}",
    )
    contexts = [_open(llm, store, clips, *common, f"optim.compile={compiled}") for compiled in ("false", "true")]
    steppers = [Stepper(context) for context in contexts]
    feeds = []
    for context, step in zip(contexts, steppers, strict=True):
        place(context.model, context.config, step.accelerator, TokenBudget(CPU_TOKENS, checkpointing=False))
        feeds.append(
            PrefetchingLoader(
                context.config, make_stream(context), context.collator, num_processes=1, process=0, budget=CPU_TOKENS
            )
        )
    losses: list[list[float]] = [[], []]
    taken: list[list[Taken]] = [[], []]
    for number in range(steps + 1):
        for which, (step, loader) in enumerate(zip(steppers, feeds, strict=True)):
            batches = loader.micro_batches(number)
            taken[which].append(_taken(lambda step=step, to=losses[which], batches=batches: to.append(step(batches))))
    plain, compiled = (each[1:] for each in taken)  # the first compiles
    return {
        "plain_over_compiled": _ratio(plain, compiled, WALL),
        "plain_over_compiled_cpu": _ratio(plain, compiled, CPU),
        "compiling_s": round(taken[1][0][WALL], 1),
        "compiled_graphs": counters["stats"]["unique_graphs"],
        "compiled_largest_loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
    }


def quantising(llm: Path, store: Path, clips: Path, kind: str, steps: int) -> dict[str, Any]:
    """Loss a token over the last third of the same steps, with the frozen layers in another form."""
    form = "null" if kind == "plain" else kind
    try:
        context = _open(llm, store, clips, "data.tasks=[emotion]", f"model.quantised={form}", "optim.lr=1e-3")
    except ConfigError:  # without bitsandbytes
        return {f"loss_{kind}": None}
    step = Stepper(context)
    loader = PrefetchingLoader(
        context.config, make_stream(context), context.collator, num_processes=1, process=0, budget=CPU_TOKENS
    )
    set_learning_rates(step.optimizer, context.config.optim.warmup_steps, context.config.optim)
    losses = [step(batches) for batches in (loader.micro_batches(number) for number in range(steps))]
    return {f"loss_{kind}": round(statistics.mean(losses[-max(1, steps // 3) :]), 4)}


def sharing(llm: Path, store: Path, clips: Path, questions: int, steps: int) -> dict[str, Any]:
    """Questions on one clip apart and behind a shared prefix."""
    tasks = "data.tasks=[emotion, reason, think]"
    common = (
        tasks,
        f"data.questions_per_clip={questions}",
        f"optim.batch_size={2 * questions}",
        f"optim.micro_batch_size={2 * questions}",
    )
    shared = _open(llm, store, clips, *common)
    apart = _open(llm, store, clips, *common, "data.share_prefix=false")
    steppers = Stepper(apart), Stepper(shared)
    stream = make_stream(shared)
    size = 2 * questions
    tokens: list[int] = [0, 0]
    taken: list[list[Taken]] = [[], []]
    for number in range(steps + 1):
        samples = [stream.draw(size * number + k) for k in range(size)]
        for which, stepper in enumerate(steppers):
            batch = stepper.context.collator(samples)
            needed = _taken(lambda stepper=stepper, batch=batch: stepper([batch]))
            if number:
                tokens[which] += batch.num_tokens
                taken[which].append(needed)
    return _beside_predicted(f"shared_by_{questions}", "over_separate", *taken, tokens[0] / tokens[1])


def _beside_predicted(
    name: str, baseline: str, theirs: Sequence[Taken], ours: Sequence[Taken], predicted: float
) -> dict[str, float]:
    """How many times as quick, beside how many times as few tokens."""
    ratio, cpu_ratio = _ratio(theirs, ours, WALL), _ratio(theirs, ours, CPU)
    return {
        f"{name}_{baseline}": ratio,
        f"{name}_{baseline}_cpu": cpu_ratio,
        f"{name}_{baseline}_predicted": round(predicted, 3),
        f"{name}_of_predicted": round(ratio / predicted, 3),
        f"{name}_of_predicted_cpu": round(cpu_ratio / predicted, 3),
    }


def resuming(root: Path, llm: Path) -> dict[str, Any]:
    """A fresh process at step 10^6 of an epoch of 10^6 clips: seconds to the first batch, the model aside."""
    count = 10**6
    clips = save_clips(root / "million.jsonl", count, uniform=True)
    shapes = {"whisper": (1, 8), "eva-global": (5, 8), "eva-temporal": (1, 8)}
    store = save_store(root / "million.zarr", [f"clip_{number:07d}" for number in range(count)], shapes)
    told = []
    for _ in range(2):  # the first start looks every clip up, the second goes on
        done = subprocess.run(
            [sys.executable, __file__, str(llm), str(store), str(clips), str(root / "pool")],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
        told.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "start_1e6_ready_s": told[0]["ready_s"],
        "resume_1e6_ready_s": told[1]["ready_s"],
        "resume_1e6_store_s": told[1]["store_s"],
    }


def _resume_and_tell(llm: str, store: str, clips: str, run: str) -> None:
    """Run in a process of its own: everything but the model, and the first batch of step 10^6, timed."""
    config = settings(Path(llm), "data.tasks=[emotion, reason]")
    model_s: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            since = time.perf_counter()
            result = function(*given, **named)
            model_s.append(time.perf_counter() - since)
            return result

        return run

    for name in ("load_tokenizer", "build_model"):
        setattr(assembling, name, timed(getattr(assembling, name)))
    began = time.perf_counter()
    context = build_context(config, store, clips, sets={"bench": {"emotion": LABELS}}, load=timed(load_llm))
    store_s = time.perf_counter() - began - sum(model_s)
    stream = make_stream(context, kept=Path(run))
    loader = PrefetchingLoader(config, stream, context.collator, num_processes=1, process=0, budget=CPU_TOKENS)
    next(loader.steps(10**6 // BATCH, 10**6))
    ready_s = time.perf_counter() - began - sum(model_s)
    keep_pool(stream, Path(run))
    print(json.dumps({"ready_s": round(ready_s, 2), "store_s": round(store_s, 2)}))


def _taken(function: Callable[[], Any]) -> Taken:
    began, cpu_began = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - began, time.process_time() - cpu_began


def _ratio(first: Sequence[Taken], second: Sequence[Taken], clock: int) -> float:
    return round(sum(taken[clock] for taken in first) / sum(taken[clock] for taken in second), 4)


if __name__ == "__main__":
    _resume_and_tell(*sys.argv[1:])
