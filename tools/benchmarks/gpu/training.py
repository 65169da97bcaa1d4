"""Training steps of LLaMA2-7B on cached features, by the product's own loader, packing, model and step.

`released` restates the released set-up: one sample at a time in fp16 autocast, eager attention, every position through
the head, and the image encoder (EVA-ViT-g at 448 px, 39 blocks) run live in every step. Utilisation is the arithmetic
that the samples need (`planning/costs`), without recomputation, over the bf16 matrix peak measured in the same process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator
from extract_material import forward_tflop
from torch import nn
from torch.nn import functional as F

from benchmarks.gpu.cases import Skipped
from benchmarks.gpu.material import TINY_LLAMA, Material, default_dtype, random_llm
from fusion_train.config import Config
from fusion_train.data.batches import Batch
from fusion_train.data.loader import PrefetchingLoader
from fusion_train.llm.loading import llm_config
from fusion_train.models.model_group import OneModel
from fusion_train.planning.memory_budget import choose_budget
from fusion_train.planning.sizes import measured_peak_flops, work_of
from fusion_train.presets import load_config
from fusion_train.run_context import RunContext, build_context
from fusion_train.training.devices import make_accelerator, place
from fusion_train.training.optimizer import make_optimizer
from fusion_train.training.sample_stream import make_stream
from fusion_train.training.step import Learner, train_step
from fusion_train.training.step_metrics import MetricsAccumulator

LLM = "meta-llama/Llama-2-7b-chat-hf"
WARM_STEPS = 2
BF16 = ["optim.precision=bf16", "model.llm_dtype=bfloat16"]
AUTO = ["optim.micro_batch_size=auto", "optim.batch_size=48"]
SETTINGS: dict[str, list[str]] = {
    "packed": [*BF16, *AUTO],
    "released": ["optim.precision=fp16", "model.llm_dtype=float16", "optim.batch_size=4", "optim.micro_batch_size=1"],
    "shared_by_4": [*BF16, *AUTO, "data.questions_per_clip=4"],
    "one_at_a_time": [*BF16, "optim.batch_size=8", "optim.micro_batch_size=1"],
    "packed_operators": [*BF16, *AUTO, "optim.compile=false"],
    "packed_fp8": [*BF16, *AUTO, "model.quantised=fp8"],
    "four_bit": [*BF16, *AUTO, "model.quantised=nf4"],
}
TINY_SETTINGS = {
    "released": ["optim.precision=bf16", "model.llm_dtype=bfloat16"],
    "four_bit": ["optim.batch_size=4"],
}
TINY_FOR_ALL = ["optim.batch_size=4", "optim.micro_batch_tokens=1024", "model.fusion.hidden=[32, 16]"]
EVA_HEAD_WIDTH, EVA_PATCH, EVA_BLOCKS = 88, 14, 39


def measure(material: Material, case: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield samples and tokens per second, utilisation and peak memory of one case."""
    if case == "four_bit" and find_spec("bitsandbytes") is None:
        raise Skipped("bitsandbytes is not installed")
    config = configuration(material, *SETTINGS[case], *(TINY_SETTINGS.get(case, []) if material.tiny else []))
    accelerator = make_accelerator(config.optim)
    attention = "eager" if case == "released" else "sdpa"
    context = open_context(material, config, lambda name, dtype: published_llm(material, dtype, attention))
    budget = choose_budget(config, context.model, accelerator.device)
    place(context.model.train(), config, accelerator, budget)
    optimizer = accelerator.prepare(make_optimizer(context.model, config.optim))
    stream = make_stream(context, lambda text: None)
    loader = PrefetchingLoader(config, stream, context.collator, num_processes=1, process=0, budget=budget)
    work = work_of(context.model)
    if case == "released":
        step: Callable[[list[Batch]], None] = ReleasedStep(context, optimizer, accelerator)
        of_encoder = 0.0 if material.tiny else forward_tflop("full")["eva-global"] * 1e12
    else:
        step, of_encoder = own_step(config, context.model, optimizer, accelerator), 0.0
    figures = timed(material, step, loader, lambda sample: work(sample) + of_encoder, config.optim.batch_size)
    yield "", figures | {"row_tokens": budget.tokens, "checkpointing": budget.checkpointing}


def configuration(material: Material, *settings: str) -> Config:
    """The published recipe on the material, with these settings."""
    return load_config(
        None,
        "joint",
        [
            f"model.llm={material.training / 'llm'}",
            "model.lora.dropout=0.05",
            "data.mixture=null",
            "data.eval_split=null",
            "data.tasks=[emotion, reason, think]",
            "optim.steps=1000000",
            *settings,
            *(TINY_FOR_ALL if material.tiny else []),
        ],
    )


def published_llm(material: Material, dtype: str, attention: str = "sdpa") -> nn.Module:
    """LLaMA2-7B's shapes with random weights, on the device; a small Llama if the material is tiny."""
    return random_llm(
        TINY_LLAMA if material.tiny else llm_config(LLM), getattr(torch, dtype), material.device, attention
    )


def open_context(material: Material, config: Config, load: Callable[[str, str], nn.Module]) -> RunContext:
    """Clips, features and the model around the language model that `load` gives for a name and a dtype."""
    folder = material.training
    return build_context(config, str(folder / "features.zarr"), str(folder / "clips.jsonl"), load=load)


def own_step(
    config: Config, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator
) -> Callable[[list[Batch]], None]:
    """The product's step of one model."""
    learner = Learner(config, model, optimizer, accelerator, MetricsAccumulator(lambda sample: 0.0))

    def step(batches: list[Batch]) -> None:
        train_step(OneModel(model), [learner], [0], batches, 0)
        learner.metrics.take()

    return step


def timed(
    material: Material,
    step: Callable[[list[Batch]], None],
    loader: PrefetchingLoader,
    work: Callable[[Any], float],
    batch_size: int,
) -> dict[str, Any]:
    """Train for `measured_s` after steps that warm up."""
    device = material.device
    batches = loader.steps(0, 1_000_000)
    began = time.perf_counter()
    for _ in range(WARM_STEPS):
        step(next(batches))
    material.settle()
    warm_s = time.perf_counter() - began
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began, waited_s, samples, steps, tokens, flops = time.perf_counter(), 0.0, 0, 0, 0, 0.0
    while time.perf_counter() - began < material.measured_s:
        since = time.perf_counter()
        given = next(batches)
        waited_s += time.perf_counter() - since
        step(given)
        steps += 1
        samples += batch_size
        tokens += sum(batch.num_tokens for batch in given)
        flops += sum(work(sample) for batch in given for sample in batch.sample_stats)
    material.settle()
    seconds = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    figures: dict[str, Any] = {
        "samples_per_s": round(samples / seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1),
        "tokens_per_sample": round(tokens / samples, 1),
        "tflops": round(flops / seconds / 1e12, 2),
        "step_s": round(seconds / steps, 4),
        "steps": steps,
        "wait_share": round(waited_s / seconds, 5),
        "warm_up_s": round(warm_s, 2),
    }
    if device.type == "cuda":
        figures["peak_memory_GiB"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        figures["reserved_memory_GiB"] = round(torch.cuda.max_memory_reserved(device) / 2**30, 2)
        torch.cuda.empty_cache()  # for the products that measure the peak
    peak = measured_peak_flops(device, torch.bfloat16)
    return figures | {
        "peak_matrix_tflops": round(peak / 1e12, 2),
        "utilisation": round(flops / seconds / peak, 3),
    }


class ReleasedStep:
    """One sample at a time, the picture encoded live, every position through the head."""

    def __init__(self, context: RunContext, optimizer: Any, accelerator: Accelerator) -> None:
        self.context, self.optimizer, self.accelerator = context, optimizer, accelerator
        device = accelerator.device
        shape = context.reader.shapes.image  # (1025, 1408)
        assert shape is not None
        from transformers import Blip2VisionConfig, Blip2VisionModel

        self.tokens, width = shape
        side = round((self.tokens - 1) ** 0.5) * EVA_PATCH
        config = Blip2VisionConfig(
            hidden_size=width,
            intermediate_size=width * 48 // 11,
            num_attention_heads=width // EVA_HEAD_WIDTH,
            num_hidden_layers=1 if device.type == "cpu" else EVA_BLOCKS,
            image_size=side,
            patch_size=EVA_PATCH,
            attn_implementation="eager",
        )
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        with default_dtype(dtype), torch.device(device):
            self.eva = Blip2VisionModel(config).eval()
        self.picture = torch.randn(1, 3, side, side, device=device, dtype=dtype)

    def __call__(self, batches: list[Batch]) -> None:
        model = self.context.model
        for batch in batches:
            inputs = batch.to(self.accelerator.device).tensors()
            with self.accelerator.autocast():
                with torch.no_grad():
                    image = self.eva(self.picture).last_hidden_state  # [1, 1025, d]
                features = {**inputs["features"], "image": image.to(inputs["features"]["image"].dtype)}
                embedded = model.embed(inputs["token_ids"], features, inputs["present"])
                logits = model.llm(
                    inputs_embeds=embedded, attention_mask=torch.ones_like(inputs["token_ids"]), use_cache=False
                ).logits[0]
                loss = F.cross_entropy(logits[inputs["kept"]].float(), inputs["targets"])
            self.accelerator.backward(loss / len(batches))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
