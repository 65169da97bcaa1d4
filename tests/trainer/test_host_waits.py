"""The host waits for the device once per step: nothing else in a step asks for a value."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from test_probe import make_probe
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from toy import make_config

from fusion_train.data.loader import PrefetchingLoader
from fusion_train.llm.loading import build_model, load_llm
from fusion_train.models.model_group import ModelGroup, OneModel, shared_copy
from fusion_train.run_context import build_context
from fusion_train.training import step as steps
from fusion_train.training.averaging import Averaged
from fusion_train.training.devices import make_accelerator, place
from fusion_train.training.optimizer import make_optimizer
from fusion_train.training.sample_stream import make_stream
from fusion_train.training.step import Learner, train_step
from fusion_train.training.step_metrics import MetricsAccumulator

QUESTIONS = ("data.tasks=[emotion, reason]", "data.questions_per_clip=2", "data.hide_modality_p=0.5")
PACKED = ("optim.micro_batch_size=auto", "optim.micro_batch_tokens=120", "optim.batch_size=8")
SET_UPS = {
    "as published": ("optim.loss_per=sample",),
    "packed, with shared prefixes": (*QUESTIONS, *PACKED, "optim.loss_per=sample"),
    "clipped and averaged": ("optim.max_grad_norm=0.1", "optim.ema_decay=0.99"),
    "recomputed": ("optim.activation_checkpointing=true",),
    "FP8": ("model.quantised=fp8",),
}
WAITING_METHODS = ("tolist", "item", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")
WAITING_OPERATORS = (
    "_local_scalar_dense", "nonzero", "masked_select", "masked_scatter_backward", "_unique2", "unique_dim",
    "repeat_interleave",
)  # fmt: skip


class WaitingOperators(TorchDispatchMode):
    """Counts operators whose result, or its shape, the host must read from the device; also those of backward."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_", "_index_put_impl_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        # With an output size, or with repeats as a number, no device is asked.
        sized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is not None
        if by_mask or (name in WAITING_OPERATORS and not sized):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class WaitingMethods(TorchFunctionMode):
    """Counts the calls by which Python reads a tensor's values; on a CPU `tolist` runs no operator."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in WAITING_METHODS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def test_the_counters_see_what_they_are_for():
    x = torch.tensor([1.0, 0.0])
    with WaitingMethods() as methods, WaitingOperators() as operators:
        x.tolist()
        float(x[0])
        bool(x[0] > 0)
        x[x > 0]
        x.nonzero()
        torch.zeros(2).masked_scatter(x > 0, x.requires_grad_()).sum().backward()
    assert methods.found == {"tolist": 1, "__float__": 1, "__bool__": 1}
    assert operators.found == {"_local_scalar_dense": 2, "index": 1, "nonzero": 1, "masked_scatter_backward": 1}


def prepared(config, material, device_type: str):
    """A context with its model on the device, its accelerator, and the batches of three steps."""
    context = build_context(config, str(material / "features.zarr"), str(material / "clips.jsonl"))
    accelerator = make_accelerator(config.optim)
    assert accelerator.device.type == device_type
    checkpointing = config.optim.activation_checkpointing is True
    place(context.model, config, accelerator, SimpleNamespace(checkpointing=checkpointing))
    stream = make_stream(context, lambda line: None)
    budget = config.optim.micro_batch_tokens or 4096
    loader = PrefetchingLoader(config, stream, context.collator, num_processes=1, process=0, budget=budget)
    return context, accelerator, list(loader.steps(0, 3))


def learner_of(config, model, accelerator) -> Learner:
    optimizer = accelerator.prepare(make_optimizer(model, config.optim))
    averaged = Averaged(model, config.optim.ema_decay) if config.optim.ema_decay else None
    return Learner(config, model, optimizer, accelerator, MetricsAccumulator(None), averaged)


def assert_one_wait(models, learners, batches, device: torch.device, monkeypatch) -> None:
    """Take a step to warm up, then two under watch."""
    places = list(range(len(learners)))
    train_step(models, learners, places, batches[0], 0)
    if device.type == "cuda":
        plainly, calls = steps.read, []

        def read(tensors):
            calls.append(1)
            torch.cuda.set_sync_debug_mode("default")
            try:
                return plainly(tensors)
            finally:
                torch.cuda.set_sync_debug_mode("error")

        monkeypatch.setattr(steps, "read", read)
        try:
            torch.cuda.set_sync_debug_mode("error")
            for number in (1, 2):
                train_step(models, learners, places, batches[number], number)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len(calls) == 2
        return
    for learner in learners:  # AdamW counts its steps on the CPU there, and reads them; see `make_optimizer`
        monkeypatch.setattr(learner.optimizer, "step", lambda: None)
    for number in (1, 2):
        with WaitingMethods() as methods, WaitingOperators() as operators:
            train_step(models, learners, places, batches[number], number)
        assert operators.found == {}
        assert methods.found == {"tolist": 1}


@pytest.mark.parametrize("set_up", SET_UPS)
def test_the_host_waits_once_in_a_step(set_up, llama, material, device, monkeypatch):
    config = make_config(llama, *SET_UPS[set_up])
    context, accelerator, batches = prepared(config, material, device.type)
    assert_one_wait(
        OneModel(context.model), [learner_of(config, context.model, accelerator)], batches, device, monkeypatch
    )


@pytest.mark.parametrize("stacked", [True, False])
def test_the_host_waits_once_for_all_models_of_a_group(stacked, llama, material, device, monkeypatch):
    config = make_config(llama, *QUESTIONS, *PACKED)
    context, accelerator, batches = prepared(config, material, device.type)
    plain = load_llm(str(llama), "float32").to(device)
    configs = [make_config(llama, *QUESTIONS, *PACKED, f"model.lora.r={r}") for r in (4, 8)]
    members = [build_model(each, shared_copy(plain), context.reader.shapes).to(device).train() for each in configs]
    learners = [learner_of(*pair, accelerator) for pair in zip(configs, members, strict=True)]
    assert_one_wait(ModelGroup(plain, members, stacked=stacked), learners, batches, device, monkeypatch)


def test_the_host_waits_once_in_a_step_of_a_probe(llama, material, device, monkeypatch):
    config = make_probe(llama)
    context, accelerator, batches = prepared(config, material, device.type)
    assert_one_wait(
        OneModel(context.model), [learner_of(config, context.model, accelerator)], batches, device, monkeypatch
    )
