"""Eight trials on one frozen base: their steps stacked into one pass, against eight in turn, by tokens per step.

Both sides take the same samples and the rows that the trainer would make of them within the memory that eight trials
leave: rows of all trials at once, and rows of one. Each trial has fusion, projectors, LoRA and AdamW of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.cases import Skipped
from benchmarks.gpu.conclusions import SIZES
from benchmarks.gpu.material import Material
from benchmarks.gpu.training import BF16, configuration, open_context, published_llm
from fusion_train.config import Config
from fusion_train.data.batches import Batch
from fusion_train.data.loader import PrefetchingLoader
from fusion_train.llm.loading import build_model
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.fused_layers import fuse_layers
from fusion_train.models.kernels import compiles
from fusion_train.models.model_group import ModelGroup, OneModel, shared_copy
from fusion_train.models.parts import learning_parameters
from fusion_train.planning.memory_budget import SAFETY, TokenBudget, choose_budget, within
from fusion_train.training.devices import make_accelerator, place
from fusion_train.training.optimizer import make_optimizer
from fusion_train.training.sample_stream import make_stream
from fusion_train.training.step import Learner, train_step
from fusion_train.training.step_metrics import MetricsAccumulator

NUM_TRIALS = 8
TOKENS = dict(zip(SIZES, (512, 2048, 8192, 32_768), strict=True))
"""Part -> tokens per step and trial."""
TINY_TOKENS = dict(zip(SIZES, (64, 128, 256, 512), strict=True))
SAMPLED = 32
"""Samples whose mean length decides how many a step has."""
STATE_BYTES = 16
"""Of a trained value: itself, its gradient and two moments in float32."""
STEPS_READY = 4
"""Different steps that are prepared; they are used in turn."""
Step = Callable[[list[Batch]], None]


def measure(material: Material, case: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield seconds per step of all trials, stacked and in turn, for each number of tokens per step."""
    config = configuration(material, *BF16, "optim.micro_batch_size=auto")
    accelerator = make_accelerator(config.optim)
    base = published_llm(material, config.model.llm_dtype)
    context = open_context(material, config, lambda name, dtype: shared_copy(base))
    others = [build_model(config, shared_copy(base), context.reader.shapes) for _ in range(NUM_TRIALS - 1)]
    models = [context.model, *others]
    budgets = {
        "stacked": choose_budget(config, context.model, accelerator.device, num_models=NUM_TRIALS),
        "in_turn": budget_beside_others(config, context.model, accelerator.device),
    }
    if budgets["stacked"].checkpointing:
        raise Skipped("this memory needs activation checkpointing, with which the trainer stacks no trials")
    learners = []
    for model in models:
        place(model, config, accelerator, budgets["stacked"])
        optimizer = accelerator.prepare(make_optimizer(model, config.optim))
        learners.append(Learner(config, model, optimizer, accelerator, MetricsAccumulator(lambda sample: 0.0)))
    group, alone = ModelGroup(base, models, stacked=True), [OneModel(model) for model in models]
    if compiles(config.optim.compile, accelerator.device.type):
        fuse_layers(group.llm)

    def stacked(batches: list[Batch]) -> None:
        train_step(group, learners, range(NUM_TRIALS), batches, 0)
        for learner in learners:
            learner.metrics.take()

    def in_turn(batches: list[Batch]) -> None:
        for model, learner in zip(alone, learners, strict=True):
            train_step(model, [learner], [0], batches, 0)
            learner.metrics.take()

    stream = make_stream(context, lambda text: None)
    mean = sum(context.collator.encode(stream.draw(number)).length for number in range(SAMPLED)) / SAMPLED
    sizes = TINY_TOKENS if material.tiny else TOKENS
    seconds = material.measured_s / len(sizes)
    pair_s = 0.0
    for number, (part, tokens) in enumerate(sizes.items()):
        growth = tokens / list(sizes.values())[number - 1] if number else 0.0
        if pair_s * growth > material.left_s:
            yield (
                part,
                {"not_measured": f"a step of both needs about {pair_s * growth:.0f} s, {material.left_s:.0f} left"},
            )
            continue
        samples = max(1, round(tokens / mean))
        batch_config = config.model_copy(update={"optim": config.optim.model_copy(update={"batch_size": samples})})
        steps = {
            side: [
                PrefetchingLoader(
                    batch_config, stream, context.collator, num_processes=1, process=0, budget=budget
                ).micro_batches(step)
                for step in range(STEPS_READY)
            ]
            for side, budget in budgets.items()
        }
        figures = compared(material, {"stacked": stacked, "in_turn": in_turn}, steps, seconds)
        pair_s = figures["stacked_step_s"] + figures["in_turn_step_s"]
        made = [sum(batch.num_tokens for batch in batches) for batches in steps["in_turn"]]
        yield (
            part,
            figures
            | {
                "tokens_per_step": round(sum(made) / len(made)),
                "samples_per_step": samples,
                "rows_stacked": sum(map(len, steps["stacked"])) / STEPS_READY,
                "rows_in_turn": sum(map(len, steps["in_turn"])) / STEPS_READY,
            },
        )


def budget_beside_others(config: Config, model: EmotionLlama, device: torch.device) -> TokenBudget:
    """The tokens of a row that fit beside the trained parts, gradients and moments of the other trials."""
    if device.type != "cuda":
        return choose_budget(config, model, device)
    values = sum(parameter.numel() for parameter in learning_parameters(model).values())
    others = (NUM_TRIALS - 1) * values * STATE_BYTES
    return within(config, model, int(torch.cuda.get_device_properties(device).total_memory * SAFETY) - others)


def compared(
    material: Material, sides: dict[str, Step], steps: dict[str, list[list[Batch]]], seconds: float
) -> dict[str, Any]:
    """Take steps of both sides in turns until each was measured for `seconds`, or the case's time is over."""
    taken: dict[str, list[float]] = {side: [] for side in sides}
    count = 0
    while True:
        for side, step in sides.items():
            material.settle()
            began = time.perf_counter()
            step(steps[side][count % STEPS_READY])
            material.settle()
            taken[side].append(time.perf_counter() - began)
        count += 1
        measured = {side: times[1:] or times for side, times in taken.items()}  # the first one warms up
        spent = [sum(times) for times in measured.values()]
        pair_s = sum(times[-1] for times in taken.values())
        if (count > 1 and min(spent) >= seconds) or pair_s > material.left_s:
            break
    mean = {side: sum(times) / len(times) for side, times in measured.items()}
    figures: dict[str, Any] = {f"{side}_step_s": round(value, 4) for side, value in mean.items()}
    if material.device.type == "cuda":
        figures["peak_memory_GiB"] = round(torch.cuda.max_memory_allocated(material.device) / 2**30, 2)
    return figures | {
        "stacked_over_in_turn": round(mean["in_turn"] / mean["stacked"], 3),
        "steps": len(measured["stacked"]),
    }
