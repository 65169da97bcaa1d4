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
from fusion_train.models import fp8_linear
from fusion_train.models.fp8_linear import Fp8Linear, SharedInput, quantise_rows
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


def test_layers_that_read_one_tensor_quantise_it_once_and_compute_the_same(llama, monkeypatch):
    config = make_config(llama, "model.lora.dropout=0")
    calls: list[torch.Size] = []
    found = []
    plain = fp8_linear.quantise_rows
    for shares in (True, False):
        model = build_model(config, LlamaForCausalLM.from_pretrained(llama), SHAPES).train()
        quantise_base(model.llm, "fp8", torch.device("cpu"), torch.float32)
        layers = [module for module in model.llm.modules() if isinstance(module, Fp8Linear)]
        if not shares:
            for layer in layers:
                layer.share_input(SharedInput(1))
        calls.clear()
        monkeypatch.setattr(fp8_linear, "quantise_rows", lambda x: (calls.append(x.shape), plain(x))[1])
        embedded = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        logits = model.llm(inputs_embeds=embedded).logits
        # Two decoder layers: queries, keys and values; output; gate and up; down.
        assert len(calls) == 2 * (4 if shares else 7)
        logits.square().sum().backward()
        assert len(calls) == 2 * (4 if shares else 7) + 2 * 7  # each gradient is another one
        monkeypatch.setattr(fp8_linear, "quantise_rows", plain)
        assert all(layer._shared._last is None for layer in layers), "no copy outlives its last reader"
        found.append((logits.detach(), embedded.grad))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_shared_input_is_quantised_anew_where_it_changed():
    shared = SharedInput(3)
    x = torch.randn(2, 16)
    first = shared.quantise(x, torch.float32)
    assert shared.quantise(x, torch.float32) is first
    x[0] = 5
    changed = shared.quantise(x, torch.float32)
    assert torch.equal(changed[1], quantise_rows(x)[1])
    assert shared.quantise(x.clone(), torch.float32) is not changed
    with torch.inference_mode():
        answer = torch.ones(1, 16)
        assert shared.quantise(answer, torch.float32) is shared.quantise(answer, torch.float32)


def test_native_products_accumulate_fast_forward_and_exactly_backward(monkeypatch):
    """`torch._scaled_mm` as a Hopper card computes it, but for its rounding of sums."""
    calls = []

    def scaled_mm(a, b, scale_a, scale_b, *, out_dtype, use_fast_accum):
        assert (a.dtype, b.dtype) == (fp8_linear.FP8, fp8_linear.FP8)
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert (scale_a.shape, scale_b.shape) == ((a.shape[0], 1), (1, b.shape[1]))
        calls.append(use_fast_accum)
        return (a.float() @ b.float() * scale_a * scale_b).to(out_dtype)

    torch.manual_seed(0)
    layer = Fp8Linear(nn.Linear(64, 48, bias=False))
    x = torch.randn(2, 5, 64, requires_grad=True)
    expected = layer(x)
    expected.sum().backward()
    gradient, x.grad = x.grad, None
    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    layer.native = True
    found = layer(x)
    found.sum().backward()
    assert calls == [True, False]
    assert relative_error(found.detach(), expected.detach()) < 2**-8  # rounded to bfloat16
    assert relative_error(x.grad, gradient) < 2**-8


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, about itself
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_kernel_quantises_as_the_operators_do(dtype):
    """The kernel of a GPU, made for a CPU; rows of any number share it."""
    compiled = torch.compile(quantise_rows, dynamic=True)
    for rows in (3, 70):
        x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(rows)).to(dtype)
        for one, other in zip(compiled(x), quantise_rows(x), strict=True):
            assert torch.equal(one.float(), other.float())


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
