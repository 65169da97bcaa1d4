"""Schedule, groups, gradient norms and the moving average, on a network worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fusion_train.config import OptimConfig
from fusion_train.errors import ConfigError
from fusion_train.presets import load_config
from fusion_train.training.averaging import Averaged
from fusion_train.training.optimizer import gradient_norms, learning_rate, make_optimizer, set_learning_rates

OPTIM = OptimConfig(
    steps=30,
    lr=1.0,
    warmup_lr=0.2,
    min_lr=0.1,
    warmup_steps=10,
    weight_decay=0.05,
    betas=(0.8, 0.95),
    lr_factors={"fusion": 0.5, "projectors": 2.0},
)


def make_parts() -> nn.ModuleDict:
    """A fusion of a matrix and a bias, a projector without a bias, and a frozen base."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "fusion": nn.Linear(3, 2),
            "projectors": nn.ModuleDict({"audio": nn.Linear(2, 4, bias=False)}),
            "base": nn.Linear(4, 4),
        }
    )
    model["base"].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.2),
        (1, 0.28),
        (9, 0.92),
        (10, 1.0),
        (15, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),
        (20, 0.55),
        (30, 0.1),
        (45, 0.1),
    ],
)
def test_the_rate_climbs_in_a_line_and_falls_in_half_a_cosine(step, rate):
    assert learning_rate(step, OPTIM) == pytest.approx(rate)


@pytest.mark.parametrize(("warmup", "steps", "rate"), [(0, 1, 1.0), (10, 10, 1.0)])
def test_a_run_that_is_all_warm_up_or_one_step_has_a_rate(warmup, steps, rate):
    assert learning_rate(warmup, OPTIM.model_copy(update={"warmup_steps": warmup, "steps": steps})) == rate


def test_the_released_cosine_counts_from_step_0_with_the_warm_up_laid_over_it():
    released = load_config("released", "cognition").optim
    assert learning_rate(500, released) == pytest.approx((1e-6 + 1e-4) / 2)
    assert learning_rate(999, released) == pytest.approx(1e-6 + 99e-6 * 0.999)
    assert learning_rate(1000, released) == pytest.approx(1e-6 + 99e-6 * (1 + math.cos(math.pi / 50)) / 2)
    assert learning_rate(25_000, released) == pytest.approx((1e-6 + 1e-4) / 2)
    assert learning_rate(50_000, released) == pytest.approx(1e-6)
    assert load_config(None, "cognition").optim.cosine_from == "warmup"


def test_matrices_decay_and_vectors_do_not_part_by_part():
    optimizer = make_optimizer(make_parts(), OPTIM)
    assert [
        (group["part"], group["weight_decay"], [tuple(p.shape) for p in group["params"]])
        for group in optimizer.param_groups
    ] == [("fusion", 0.05, [(2, 3)]), ("fusion", 0.0, [(2,)]), ("projectors", 0.05, [(4, 2)])]
    assert {(group["lr"], group["betas"]) for group in optimizer.param_groups} == {(1.0, (0.8, 0.95))}


def test_a_single_number_does_not_decay():
    model = make_parts()
    model["fusion"].register_parameter("gain", nn.Parameter(torch.tensor(1.0)))
    groups = make_optimizer(model, OPTIM).param_groups
    assert [[p.ndim for p in group["params"]] for group in groups] == [[2], [1, 0], [2]]
    assert groups[1]["weight_decay"] == 0.0


def test_groups_take_the_rate_of_the_step_times_their_factor():
    optimizer = make_optimizer(make_parts(), OPTIM)
    assert set_learning_rates(optimizer, 1, OPTIM) == pytest.approx({"fusion": 0.14, "projectors": 0.56})
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.14, 0.14, 0.56])


def test_a_model_whose_parts_are_all_frozen_has_no_optimizer():
    with pytest.raises(ConfigError, match="every part frozen"):
        make_optimizer(make_parts().requires_grad_(False), OPTIM)


@pytest.mark.parametrize(("limit", "factor"), [(None, 1.0), (26.0, 1.0), (13.0, 1.0), (6.5, 0.5)])
def test_norms_are_of_each_part_and_clipping_is_of_all_together(limit, factor):
    model = make_parts()
    model["fusion"].weight.grad = torch.tensor([[3.0, 0, 0], [0, 0, 0]])
    model["fusion"].bias.grad = torch.tensor([0.0, 4.0])
    model["projectors"]["audio"].weight.grad = torch.full((4, 2), 12 / math.sqrt(8))
    norms = {part: norm.item() for part, norm in gradient_norms(model, limit).items()}
    assert norms == pytest.approx({"fusion": 5.0, "projectors": 12.0, "all": 13.0})  # before clipping
    assert model["fusion"].weight.grad[0, 0].item() == pytest.approx(3 * factor, rel=1e-5)
    assert model["fusion"].bias.grad[1].item() == pytest.approx(4 * factor, rel=1e-5)
    assert model["projectors"]["audio"].weight.grad[0, 0].item() == pytest.approx(12 / math.sqrt(8) * factor, rel=1e-5)


def test_a_part_without_a_gradient_has_no_norm():
    model = make_parts()
    assert gradient_norms(model) == {"all": torch.tensor(0.0)}
    model["fusion"].bias.grad = torch.tensor([0.0, 4.0])
    assert gradient_norms(model, 1.0) == {"fusion": torch.tensor(4.0), "all": torch.tensor(4.0)}


def test_the_average_forgets_the_first_steps_soon_and_later_ones_by_its_decay():
    model = make_parts()
    bias = model["fusion"].bias
    with torch.no_grad():
        bias.copy_(torch.tensor([1.0, -1.0]))
    averaged, expected = Averaged(model, decay=0.25), bias.detach().clone()
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 0.25, 0.25]):
        with torch.no_grad():
            bias.add_(step + 1)
        averaged.update(step)
        expected = decay * expected + (1 - decay) * bias.detach()
        torch.testing.assert_close(averaged.tensors()["fusion.bias"], expected)


def test_the_average_holds_every_trained_part_and_frozen_ones_as_they_are():
    model = make_parts()
    model["projectors"].requires_grad_(False)
    averaged = Averaged(model, decay=0.9)
    before = {name: tensor.clone() for name, tensor in averaged.tensors().items()}
    assert set(before) == {"fusion.weight", "fusion.bias", "projectors.audio.weight"}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    after = averaged.tensors()
    assert torch.equal(after["projectors.audio.weight"], model["projectors"]["audio"].weight)
    assert torch.equal(after["fusion.weight"], before["fusion.weight"])


def test_the_average_is_in_the_model_for_a_while_and_the_weights_come_back_after_an_error():
    model = make_parts()
    averaged = Averaged(model, decay=0.9)
    average = averaged.tensors()["fusion.weight"].clone()
    with torch.no_grad():
        model["fusion"].weight.add_(1.0)
    weights = model["fusion"].weight.detach().clone()

    def fail_inside() -> None:
        with averaged.in_place():
            assert torch.equal(model["fusion"].weight, average)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(model["fusion"].weight, weights)
    averaged.load(averaged.tensors() | {"fusion.weight": torch.full((2, 3), 7.0)})
    assert torch.equal(averaged.tensors()["fusion.weight"], torch.full((2, 3), 7.0))


def test_an_average_continued_from_parameters_records_no_graph():
    model = make_parts()
    averaged = Averaged(model, decay=0.9)
    averaged.load(dict(model.named_parameters()))
    averaged.update(0)
    assert not any(tensor.requires_grad for tensor in averaged.tensors().values())
