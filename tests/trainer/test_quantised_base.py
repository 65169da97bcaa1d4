"""A frozen base in 8 and 4 bits: what is quantised, how far it is off, and that it still trains."""

from __future__ import annotations

import json

import pytest
import torch
from test_train import run_training, weights
from torch import nn
from toy import make_config
from transformers import LlamaForCausalLM

from fusion_train.llm.loading import build_model
from fusion_train.llm.quantised_base import quantise_base
from fusion_train.models.fp8_linear import Fp8Linear, quantise_rows
from fusion_train.models.parts import learning_parameters
from fusion_train.models.token_streams import FeatureShapes

SHAPES = FeatureShapes(audio=(4, 12), image=(17, 10), video=(4, 10))


def relative_error(x: torch.Tensor, reference: torch.Tensor) -> float:
    return float((x - reference).norm() / reference.norm())


def test_fp8_rows_keep_three_bits_of_mantissa_and_zeros():
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    x[4] *= 1e4
    rounded, scale = quantise_rows(x)
    restored = rounded.float() * scale
    assert not restored[3].any()
    for row in (0, 4):
        assert relative_error(restored[row], x[row]) < 0.04
    transposed, _ = quantise_rows(x.t())
    assert rounded.is_contiguous()
    assert transposed.is_contiguous()  # `torch._scaled_mm` takes nothing else


def test_an_fp8_layer_is_close_forward_and_backward_and_exact_in_what_it_multiplies():
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    layer = Fp8Linear(linear)
    x = torch.randn(2, 5, 64, requires_grad=True)
    y = layer(x)
    assert relative_error(y.detach(), linear(x).detach()) < 0.06
    rounded, scale = quantise_rows(x.detach().reshape(-1, 64))
    exact = (rounded.float() * scale) @ layer.weight.t() + linear.bias
    torch.testing.assert_close(y.detach().flatten(0, 1), exact.detach(), rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    assert relative_error(x.grad, upstream @ linear.weight.detach()) < 0.06
    assert not list(learning_parameters(layer))


def test_an_fp8_layer_is_the_same_operation_where_it_is_compiled(monkeypatch):
    torch.manual_seed(0)
    layer = Fp8Linear(nn.Linear(64, 48))
    found = []
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        x = torch.linspace(-2, 3, 2 * 5 * 64).reshape(2, 5, 64).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        found.append((y.detach(), x.grad))
    for eager, compiled in zip(*found, strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize(("kind", "bound"), [("fp8", 0.2), ("int8", 0.05), ("nf4", 0.8)])
def test_layers_are_quantised_and_head_and_adapters_are_not(llama, kind, bound):
    if kind != "fp8":
        pytest.importorskip("bitsandbytes")
    config = make_config(llama)
    plain = build_model(config, LlamaForCausalLM.from_pretrained(llama), SHAPES).eval()
    model = build_model(config, LlamaForCausalLM.from_pretrained(llama), SHAPES).eval()
    quantise_base(model.llm, kind, torch.device("cpu"), torch.float32)
    kinds = {type(module).__name__ for name, module in model.llm.named_modules() if name.endswith("gate_proj")}
    assert kinds == {{"fp8": "Fp8Linear", "int8": "Linear8bitLt", "nf4": "Linear4bit"}[kind]}
    assert type(model.llm.get_output_embeddings()) is nn.Linear
    assert learning_parameters(model).keys() == learning_parameters(plain).keys()
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        assert relative_error(model.llm(ids).logits, plain.llm(ids).logits) < bound


@pytest.mark.parametrize("kind", ["fp8", "int8", "nf4"])
def test_training_on_a_quantised_base_learns_and_keeps_trained_parts_alone(llama, material, tmp_path, kind):
    if kind != "fp8":
        pytest.importorskip("bitsandbytes")
    config = make_config(
        llama,
        f"model.quantised={kind}",
        "optim.steps=30",
        "optim.lr=1e-2",
        "checkpoint.every=30",
        "data.eval_split=null",
    )
    run = run_training(config, material, tmp_path / "run")
    losses = [row["loss"] for row in map(json.loads, run.metrics.read_text().splitlines())]
    assert losses[-1] < 0.6 * losses[0]
    assert all(name.startswith(("fusion.", "projectors.")) or ".lora_" in name for name in weights(run))
