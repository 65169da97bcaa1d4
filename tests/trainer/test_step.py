"""One optimizer step: what it reports, and what its dropout depends on."""

from __future__ import annotations

import json

import pytest
import torch
from toy import make_config

from fusion_train.data.loader import PrefetchingLoader
from fusion_train.models.model_group import OneModel
from fusion_train.models.parts import learning_parameters
from fusion_train.run import Run
from fusion_train.run_context import build_context
from fusion_train.training.devices import make_accelerator
from fusion_train.training.optimizer import make_optimizer
from fusion_train.training.sample_stream import make_stream
from fusion_train.training.step import Learner, train_step
from fusion_train.training.step_metrics import MetricsAccumulator
from fusion_train.training.trainer import train


@pytest.mark.parametrize("micro", [1, 2])
def test_the_reported_loss_is_that_of_all_micro_batches(llama, material, tmp_path, micro):
    losses = {}
    for size in (micro, 4):
        config = make_config(
            llama,
            "optim.steps=3",
            f"optim.micro_batch_size={size}",
            "optim.batch_size=4",
            "log.every=1",
            "log.peak_tflops=1",
            "model.fusion.dropout=0",
            "model.lora.dropout=0",
            "data.eval_split=null",
        )
        run = Run(tmp_path / str(size))
        train(
            config,
            store=str(material / "features.zarr"),
            clips=str(material / "clips.jsonl"),
            run=run,
            say=lambda line: None,
        )
        lines = map(json.loads, run.metrics.read_text().splitlines())
        losses[size] = [line["loss"] for line in lines if "loss" in line]
    assert len(losses[4]) == 3
    assert losses[micro] == pytest.approx(losses[4], rel=1e-4)


class OfProcess:
    """An accelerator that says it is of another process."""

    def __init__(self, accelerator, process: int) -> None:
        self._accelerator, self.process_index = accelerator, process

    def __getattr__(self, name):
        return getattr(self._accelerator, name)


def test_dropout_depends_on_seed_step_and_process(llama, material, monkeypatch):
    config = make_config(llama, "model.lora.dropout=0.5", "model.fusion.dropout=0.5", "optim.batch_size=4")
    context = build_context(config, str(material / "features.zarr"), str(material / "clips.jsonl"))
    accelerator = make_accelerator(config.optim)
    loader = PrefetchingLoader(
        config, make_stream(context, lambda line: None), context.collator, num_processes=1, process=0, budget=4096
    )
    batches = next(iter(loader.steps(0, 1)))
    context.model.train()
    optimizer = make_optimizer(context.model, config.optim)
    monkeypatch.setattr(optimizer, "step", lambda: None)  # the weights stay as they are

    def loss(process: int, step: int, seed: int = 0) -> float:
        for parameter in learning_parameters(context.model).values():
            parameter.grad = None
        seeded = config.model_copy(update={"seed": seed})
        accelerator_of_process = OfProcess(accelerator, process)
        learner = Learner(seeded, context.model, optimizer, accelerator_of_process, MetricsAccumulator(None))
        train_step(OneModel(context.model), [learner], [0], batches, step)
        return learner.loss

    first = loss(0, 0)
    assert first == loss(0, 0), "a pure function"
    others = [loss(1, 0), loss(0, 1), loss(0, 0, seed=1)]
    assert len({first, *others}) == 4, (first, others)
    assert torch.isfinite(torch.tensor(others)).all()
