"""Models that train together on one frozen base equal themselves alone."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from toy import make_config

from fusion_train.llm.loading import build_model, load_llm
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.model_group import ModelGroup, evaluating, shared_copy
from fusion_train.models.parts import learning_parameters
from fusion_train.models.token_streams import FeatureShapes

SHAPES = FeatureShapes(audio=(8, 12), image=(17, 10), video=(8, 10))
VARIANTS = [
    ("fusion.name=conv-attention", "lora.r=4", "lora.alpha=16", "lora.dropout=0.05"),
    ("fusion.name=conv", "lora.r=4", "lora.alpha=8", "lora.dropout=0.2"),
    ("fusion.name=attention", "lora.r=8", "lora.dropout=0", "lora.targets=[q_proj,k_proj]"),
    ("fusion.name=q-former", "lora.r=0", "fusion.dropout=0.3"),
]


@pytest.fixture
def base(llama):
    return load_llm(str(llama), "float32")


def build(llama, base) -> list[EmotionLlama]:
    settings = [[f"model.{text}" for text in variant] for variant in VARIANTS]
    return [build_model(make_config(llama, *overrides), shared_copy(base), SHAPES) for overrides in settings]


@pytest.fixture
def batches(llama, material, base):
    """Two real batches, as the collator of the first variant makes them."""
    from fusion_train.run_context import build_context
    from fusion_train.training.sample_stream import make_stream

    config = make_config(llama)
    context = build_context(config, str(material / "features.zarr"), str(material / "clips.jsonl"))
    stream = make_stream(context)
    models = [
        build_model(
            make_config(llama, *[f"model.{text}" for text in variant]), shared_copy(base), context.reader.shapes
        )
        for variant in VARIANTS
        for _ in range(2)
    ]
    together, alone = models[::2], models[1::2]
    made = [context.collator([stream.draw(step * 3 + n) for n in range(3)]).tensors() for step in range(3)]
    return made, together, alone


def optimizers(models):
    return [torch.optim.AdamW(learning_parameters(model).values(), lr=3e-3) for model in models]


def step_together(group, optimizers, tensors, seed, scale=0.1):
    for place in range(len(optimizers)):
        group.seed(place, seed)
    outputs = group.learn(tensors, lambda place, output: output.loss_sum * scale, nullcontext)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return [output.loss_sum.item() for output in outputs]


def step_alone(model, optimizer, tensors, seed, scale=0.1):
    torch.manual_seed(seed)
    loss = model(**tensors).loss_sum
    (loss * scale).backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_a_member_of_a_group_equals_itself_alone_to_the_bit(batches, base):
    made, together, alone = batches
    group, own, others = ModelGroup(base, together), optimizers(together), optimizers(alone)
    for number, tensors in enumerate(made):
        losses = step_together(group, own, tensors, seed=number)
        assert losses == [step_alone(*pair, tensors, seed=number) for pair in zip(alone, others, strict=True)]
    for mine, same in zip(together, alone, strict=True):
        parameters = learning_parameters(same)
        assert all(torch.equal(value, parameters[name]) for name, value in learning_parameters(mine).items())


def test_a_stacked_group_agrees_up_to_rounding(batches, base):
    """The path of the GPU, on a CPU: one pass of the base, adapters by `bmm`, the same dropout."""
    made, together, alone = batches
    own, others = optimizers(together), optimizers(alone)
    group = ModelGroup(base, together, stacked=True)
    assert group.stacked
    for number, tensors in enumerate(made):
        step_together(group, own, tensors, seed=number)
        for pair in zip(alone, others, strict=True):
            step_alone(*pair, tensors, seed=number)
    for mine, same in zip(together, alone, strict=True):
        parameters = learning_parameters(same)
        for name, value in learning_parameters(mine).items():
            torch.testing.assert_close(value, parameters[name], rtol=1e-3, atol=1e-4)


def test_who_leaves_does_not_change_the_others(batches, base):
    made, together, alone = batches
    group, own = ModelGroup(base, together), optimizers(together)
    assert group.stacked is False  # the default on a CPU
    group.keep([0, 2])
    losses = step_together(group, own, made[0], seed=1)
    assert losses == [step_alone(alone[n], optimizers(alone)[n], made[0], seed=1) for n in (0, 2)]


def test_a_member_that_diverges_leaves_the_others_finite(batches, base):
    made, together, _ = batches
    with torch.no_grad():
        next(iter(learning_parameters(together[1]).values())).fill_(float("nan"))
    group = ModelGroup(base, together, stacked=True)
    outputs = group.forward(made[0])
    torch.stack([o.loss_sum for n, o in enumerate(outputs) if n != 1]).sum().backward()
    assert not outputs[1].loss_sum.isfinite()
    for n in (0, 2, 3):
        assert all(p.grad is None or p.grad.isfinite().all() for p in learning_parameters(together[n]).values())


def test_the_base_is_in_memory_once(llama, base):
    models = build(llama, base)
    pointers = [{p.data_ptr() for name, p in model.named_parameters() if not p.requires_grad} for model in models]
    assert all(each == pointers[0] for each in pointers[1:])


def test_without_dropout_inside_evaluating_and_with_it_after(batches, base):
    made, together, _ = batches
    group = ModelGroup(base, together)
    with evaluating(group), torch.no_grad():
        first, again = (group.forward(made[0])[0].loss_sum for _ in range(2))
    assert first == again
    assert together[0].training
