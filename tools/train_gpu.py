"""The part `gpu` of `bench.py train`: LLaMA2-7B shapes with random weights, one process a case.

A case says its figures when it has them; one that fails, or takes longer than `CASE_S`, says why, and the others go on.
Every case trains on the same clips from the same store. `released` restates the released set-up: one sample at a time
in fp16 autocast, eager attention, every position through the head, and the image encoder (EVA-ViT-g at 448 px, 39
blocks) run live in every step. Utilisation is the arithmetic that had to be done over the peak of a bf16 matrix
product measured on the same card. Tiny, all of it runs on a CPU with small sizes; its figures mean nothing.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from train_material import SHAPES, save_clips, save_store, save_tokenizer
from transformers import Blip2VisionConfig, Blip2VisionModel, LlamaConfig, LlamaForCausalLM

from fusion_train.data.loader import PrefetchingLoader
from fusion_train.llm.loading import llm_config
from fusion_train.models.model_group import OneModel
from fusion_train.planning.memory_budget import choose_budget
from fusion_train.planning.sizes import measured_peak_flops, work_of
from fusion_train.presets import load_config
from fusion_train.run_context import RunContext, build_context
from fusion_train.training.devices import place
from fusion_train.training.optimizer import make_optimizer
from fusion_train.training.sample_stream import make_stream
from fusion_train.training.step import Learner, train_step
from fusion_train.training.step_metrics import MetricsAccumulator

NUM_CLIPS = 96
CASE_S = {"cuda": 900.0, "cpu": 120.0}
MEASURED_S = {"cuda": 30.0, "cpu": 0.5}
"""How long a case trains after its first two steps."""
DRAWS = 400_000
BF16 = ["optim.precision=bf16", "model.llm_dtype=bfloat16"]
AUTO = ["optim.micro_batch_size=auto", "optim.batch_size=48"]
CASES: dict[str, list[str]] = {
    "one_at_a_time": [*BF16, "optim.batch_size=8", "optim.micro_batch_size=1"],
    "packed": [*BF16, *AUTO],
    "shared_by_2": [*BF16, *AUTO, "data.questions_per_clip=2"],
    "shared_by_4": [*BF16, *AUTO, "data.questions_per_clip=4"],
    "packed_fp8": [*BF16, *AUTO, "model.quantised=fp8"],
    "shared_by_4_fp8": [*BF16, *AUTO, "data.questions_per_clip=4", "model.quantised=fp8"],
    "packed_compiled": [*BF16, *AUTO, "optim.compile=true"],
    "nf4_micro_1": [*BF16, "optim.batch_size=4", "optim.micro_batch_size=1", "model.quantised=nf4"],
    "released": ["optim.precision=fp16", "model.llm_dtype=float16", "optim.batch_size=4"],
}
TINY = LlamaConfig(
    vocab_size=4096,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=4096,
)
TINY_SHAPES = {"whisper": (4, 128), "eva-global": (17, 176), "eva-temporal": (4, 176)}
TINY_SETTINGS = [
    "optim.precision=bf16",
    "optim.batch_size=4",
    "optim.micro_batch_tokens=1024",
    "model.fusion.hidden=[32, 16]",
]
EVA_HEAD_WIDTH, EVA_PATCH = 88, 14


def figures(*, tiny: bool = False) -> dict[str, Any]:
    """Run every case in a process of its own and put the ratios beside them."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as place_:
        root = Path(place_)
        save_tokenizer(root / "llm")
        ids = [f"clip_{number:07d}" for number in range(NUM_CLIPS)]
        save_store(root / "features.zarr", ids, TINY_SHAPES if tiny else SHAPES)
        save_clips(root / "clips.jsonl", NUM_CLIPS)
        for case in CASES:
            made = in_process(root, case, tiny=tiny)
            print(f"{case}: " + ", ".join(f"{key} {value}" for key, value in made.items()), file=sys.stderr, flush=True)
            found |= {f"gpu_{case}_{key}": value for key, value in made.items()}
    ours, theirs = found.get("gpu_one_at_a_time_samples_per_s"), found.get("gpu_released_samples_per_s")
    for case, key in (("one_at_a_time", ours), ("shared_by_4", found.get("gpu_shared_by_4_samples_per_s"))):
        if key and theirs:
            found[f"gpu_{case}_over_released"] = round(key / theirs, 2)
    plain, fp8 = found.get("gpu_packed_samples_per_s"), found.get("gpu_packed_fp8_samples_per_s")
    if plain and fp8:
        found["gpu_fp8_over_bf16"] = round(fp8 / plain, 2)
    return found


def in_process(root: Path, case: str, *, tiny: bool) -> dict[str, Any]:
    """Figures of one case, or why there are none."""
    command = [sys.executable, __file__, str(root), case, *(["tiny"] if tiny else [])]
    limit_s = CASE_S["cpu" if tiny else "cuda"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(), timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {limit_s:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def run_case(root: Path, case: str, *, tiny: bool) -> dict[str, Any]:
    """Figures of one case."""
    settings = [
        f"model.llm={root / 'llm'}",
        "data.mixture=null",
        "data.eval_split=null",
        "data.tasks=[emotion, reason, think]",
        "optim.steps=1000000",
        "model.lora.dropout=0.05",
        *CASES[case],
    ]
    config = load_config(None, "joint", [*settings, *(TINY_SETTINGS if tiny else [])])
    accelerator = Accelerator(mixed_precision=config.optim.precision, cpu=tiny)
    shape = TINY if tiny else llm_config("meta-llama/Llama-2-7b-chat-hf")
    attention = "eager" if case == "released" else "sdpa"

    def load(name: str, dtype: str) -> nn.Module:
        return random_llm(shape, getattr(torch, dtype), accelerator.device, attention)

    context = build_context(config, str(root / "features.zarr"), str(root / "clips.jsonl"), load=load)
    budget = choose_budget(config, context.model, accelerator.device)
    place(context.model.train(), config, accelerator, budget)
    optimizer = accelerator.prepare(make_optimizer(context.model, config.optim))
    loader = PrefetchingLoader(
        config,
        make_stream(context, lambda text: None),
        context.collator,
        num_processes=1,
        process=0,
        budget=budget.tokens,
    )
    if case == "released":
        step = ReleasedStep(context, optimizer, accelerator)
    else:
        learner = Learner(config, context.model, optimizer, accelerator, MetricsAccumulator(lambda sample: 0.0))

        def step(batches: list[Any]) -> None:
            train_step(OneModel(context.model), [learner], [0], batches, 0)
            learner.metrics.take()

    return timed(step, loader, context, accelerator.device, config.optim.batch_size, budget.tokens)


def timed(
    step: Any, loader: PrefetchingLoader, context: RunContext, device: torch.device, size: int, budget: int
) -> dict[str, Any]:
    """Train for `MEASURED_S` after two steps of warming up."""
    work = work_of(context.model)
    batches = loader.steps(0, 10_000)
    for _ in range(2):
        step(next(batches))
    _settle(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began, waited_s, done, flops, tokens = time.perf_counter(), 0.0, 0, 0.0, 0
    while time.perf_counter() - began < MEASURED_S[device.type]:
        since = time.perf_counter()
        given = next(batches)
        waited_s += time.perf_counter() - since
        step(given)
        done += size
        flops += sum(work(one) for batch in given for one in batch.sample_stats)
        tokens += sum(batch.num_tokens for batch in given)
    _settle(device)
    seconds = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    peak = measured_peak_flops(device, torch.bfloat16)
    made = {
        "samples_per_s": round(done / seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1),
        "utilisation": round(flops / seconds / peak, 3),
        "peak_matrix_tflops": round(peak / 1e12, 1),
        "row_tokens": budget,
        "wait_share": round(waited_s / seconds, 5),
        "hours_of_400k_draws": round(DRAWS / (done / seconds) / 3600, 2),
    }
    if device.type == "cuda":
        made["peak_memory_GiB"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
        made["device"] = torch.cuda.get_device_name(device)
    return made


class ReleasedStep:
    """One sample at a time, the picture encoded live, every position through the head."""

    def __init__(self, context: RunContext, optimizer: Any, accelerator: Accelerator) -> None:
        self.context, self.optimizer, self.accelerator = context, optimizer, accelerator
        device = accelerator.device
        tokens, width = context.reader.shapes.image  # (1025, 1408)
        side = math.isqrt(tokens - 1) * EVA_PATCH
        config = Blip2VisionConfig(
            hidden_size=width,
            intermediate_size=width * 48 // 11,
            num_attention_heads=width // EVA_HEAD_WIDTH,
            num_hidden_layers=1 if device.type == "cpu" else 39,
            image_size=side,
            patch_size=EVA_PATCH,
            attn_implementation="eager",
        )
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        with torch.device(device):
            self.eva = Blip2VisionModel(config).to(dtype).eval()
        self.picture = torch.randn(1, 3, side, side, device=device, dtype=dtype)

    def __call__(self, batches: list[Any]) -> None:
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


def random_llm(config: LlamaConfig, dtype: torch.dtype, device: torch.device, attention: str) -> nn.Module:
    """A causal LM of these sizes with random weights, made where it will lie."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        config._attn_implementation = attention
        with torch.device("meta"):
            llm = LlamaForCausalLM(config)
        llm.to_empty(device=device)
        for parameter in llm.parameters():
            nn.init.normal_(parameter, std=0.02)
        with torch.device(device):  # its table of frequencies is computed, not stored
            llm.model.rotary_emb = type(llm.model.rotary_emb)(config)
    finally:
        torch.set_default_dtype(before)
    return llm


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


if __name__ == "__main__":
    place_of_material, chosen, *sizes = sys.argv[1:]
    print(json.dumps(run_case(Path(place_of_material), chosen, tiny=bool(sizes))))
