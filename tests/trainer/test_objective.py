"""What a step minimises: the mean over tokens, or over samples, however the samples are divided."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from test_train import run_training, weights
from toy import make_config

from fusion_train.data.loader import PrefetchingLoader
from fusion_train.models.emotion_llama import ModelOutput
from fusion_train.models.model_group import OneModel
from fusion_train.presets import load_config
from fusion_train.run_context import build_context
from fusion_train.training.devices import make_accelerator
from fusion_train.training.loss import loss_of, total_of
from fusion_train.training.optimizer import make_optimizer
from fusion_train.training.sample_stream import make_stream
from fusion_train.training.step import Learner, train_step
from fusion_train.training.step_metrics import MetricsAccumulator

QUIET = ("model.fusion.dropout=0", "model.lora.dropout=0", "data.tasks=[emotion, reason, think]", "optim.steps=4")


@pytest.mark.parametrize(("per", "share"), [("token", 2 / (2 + 2 * 40)), ("sample", 1 / 3)])
def test_a_label_among_two_texts_carries_this_share_of_the_loss(per, share):
    lengths = torch.tensor([2.0, 40.0, 40.0])
    token_loss = torch.ones(3, requires_grad=True)
    by_sample = token_loss * lengths
    batch = SimpleNamespace(sample_stats=[SimpleNamespace(num_supervised=int(n)) for n in lengths], num_supervised=82)
    (loss_of(ModelOutput(by_sample.sum(), by_sample), batch, per) / total_of(batch, per)).backward()
    assert token_loss.grad.sum() == pytest.approx(1.0)
    assert float(token_loss.grad[0]) == pytest.approx(share)


@pytest.mark.parametrize("micro", [1, 2, 4])
@pytest.mark.parametrize("per", ["token", "sample"])
def test_a_step_returns_the_mean_that_was_chosen(llama, material, per, micro):
    config = make_config(
        llama, *QUIET, f"optim.micro_batch_size={micro}", "optim.batch_size=4", f"optim.loss_per={per}"
    )
    context = build_context(config, str(material / "features.zarr"), str(material / "clips.jsonl"))
    stream = make_stream(context, lambda line: None)
    means, sums, counts = [], 0.0, 0
    with torch.no_grad():
        for index in range(4):
            batch = context.collator([stream.draw(index)])
            loss = float(context.model(**batch.tensors()).loss_sum)
            means.append(loss / batch.num_supervised)
            sums, counts = sums + loss, counts + batch.num_supervised
    assert len({round(mean, 6) for mean in means}) > 1
    loader = PrefetchingLoader(config, stream, context.collator, num_processes=1, process=0, budget=4096)
    optimizer = make_optimizer(context.model, config.optim)
    accelerator = make_accelerator(config.optim)
    learner = Learner(config, context.model, optimizer, accelerator, MetricsAccumulator(None))
    train_step(OneModel(context.model), [learner], [0], next(iter(loader.steps(0, 1))), 0)
    assert learner.loss == pytest.approx(sum(means) / 4 if per == "sample" else sums / counts, rel=1e-5)


def test_a_mean_over_samples_does_not_depend_on_packing_or_shared_prefixes(llama, material, tmp_path):
    chosen = (*QUIET, "optim.loss_per=sample", "data.questions_per_clip=2")
    expected = weights(run_training(make_config(llama, *chosen, "data.share_prefix=false"), material, tmp_path / "one"))
    by_token = make_config(llama, *QUIET, "data.questions_per_clip=2", "optim.loss_per=token")
    per_token = weights(run_training(by_token, material, tmp_path / "t"))
    assert any(not torch.allclose(per_token[key], tensor, rtol=1e-3) for key, tensor in expected.items())
    for name, more in (("shared", ["optim.micro_batch_size=4"]), ("auto", ["optim.micro_batch_size=auto"])):
        found = weights(run_training(make_config(llama, *chosen, *more), material, tmp_path / name))
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-5, msg=f"{name}: {key}")


@pytest.mark.parametrize("name", ["emotion_llama_v2", "released"])
def test_the_published_configurations_weigh_samples_alike(name):
    assert load_config(name, "perception", ()).optim.loss_per == "sample"
