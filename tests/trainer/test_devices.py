"""What a GPU computes is what a CPU computes, within stated rounding; by default the same tests run on a CPU.

`python -m pytest -m gpu` runs them on a GPU. References are computed on a CPU, in float64 where a kernel is tested.
Bounds are relative in the Euclidean norm: a few units in the last place of the dtype, more after several layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from test_host_waits import learner_of, prepared
from test_model_group import VARIANTS, batches
from test_packing import FAMILIES, build, gradients, questions
from test_quantised_base import relative_error
from test_train import run_training
from torch import nn
from toy import forward_packed, make_config

from featurecache.interrupt import Interrupted
from fusion_train import checkpoint
from fusion_train.data.feature_reader import BatchBuffer
from fusion_train.data.packing import pack
from fusion_train.llm.loading import load_llm
from fusion_train.models import packed_attention
from fusion_train.models.answering import greedy_text, label_log_probabilities
from fusion_train.models.fp8_linear import Fp8Linear, quantise, quantise_rows
from fusion_train.models.host_copies import to_device
from fusion_train.models.model_group import ModelGroup, OneModel
from fusion_train.models.packed_attention import Layout, RowSegment
from fusion_train.models.parts import learning_parameters
from fusion_train.run import Run
from fusion_train.training.step import train_step

__all__ = ["base", "batches"]

HALF = (torch.bfloat16, torch.float16)
KERNEL_BOUND = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Relative error of one kernel."""
MODEL_BOUND = {"fp32": 1e-3, "bf16": 0.1, "fp16": 2e-2}
"""Relative error of the gradients of a model of two layers under autocast."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
SHARED = Layout(
    (RowSegment(0, 37), RowSegment(37, 61, prefix=(0, 37)), RowSegment(61, 64, prefix=(0, 37)), RowSegment(64, 193))
)


@pytest.fixture
def base(llama):
    return load_llm(str(llama), "float32")


@pytest.fixture
def accelerate_anew() -> Iterator[None]:
    """accelerate keeps the precision of the first accelerator of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def any_kernels() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def dense(query, key, value, seen, scaling):
    """Attention in float64 by a mask (L, L)."""
    heads = query.shape[1] // key.shape[1]
    q, k, v = query.double(), key.double().repeat_interleave(heads, 1), value.double().repeat_interleave(heads, 1)
    scores = (q @ k.transpose(2, 3) * scaling).masked_fill(~seen, -math.inf)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2)


def seen_by(layout: Layout, window: int | None) -> torch.Tensor:
    """(L, L) bool: what each token sees; a window counts along the prefix and the segment, not along the row."""
    seen = layout.mask()[0, 0]
    if window is not None:
        positions = layout.position_ids()[0]
        seen &= positions[:, None] - positions[None] < window
    return seen


def refuse_segments(*arguments, **named):
    raise AssertionError("attention ran segment by segment")


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("dtype", KERNEL_BOUND)
def test_packed_attention_and_its_gradients_are_those_of_a_mask(dtype, heads, window, device, monkeypatch):
    torch.manual_seed(0)
    width, scaling = 32, 0.2
    made = [torch.randn(2, count, SHARED.length, width).to(dtype) for count in (heads[0], heads[1], heads[1])]
    reference = [tensor.double().requires_grad_() for tensor in made]
    expected = dense(*reference, seen_by(SHARED, window), scaling)
    upstream = torch.randn(expected.shape)
    expected.backward(upstream.double())
    if device.type == "cuda" and dtype in HALF and packed_attention._varlen() is not None:
        monkeypatch.setattr(packed_attention, "_attend_by_segment", refuse_segments)
    own = [tensor.clone().to(device).requires_grad_() for tensor in made]
    out, _ = packed_attention.packed_attention(
        nn.Module(), *own, None, layout=SHARED, scaling=scaling, sliding_window=window
    )
    out.backward(upstream.to(device, dtype))
    assert relative_error(out.detach().cpu().double(), expected.detach()) < KERNEL_BOUND[dtype]
    for one, other in zip(own, reference, strict=True):
        assert one.grad.dtype == dtype
        assert relative_error(one.grad.cpu().double(), other.grad) < KERNEL_BOUND[dtype]


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("dtype", KERNEL_BOUND)
def test_a_token_reads_what_its_layout_shows_and_nothing_else(dtype, window, device):
    """Of the first, a middle and the last token of every segment: gradients reach the seen values only."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, SHARED.length, 32).to(device, dtype) for _ in range(3))
    value.requires_grad_()
    out, _ = packed_attention.packed_attention(
        nn.Module(), query, key, value, None, layout=SHARED, scaling=0.2, sliding_window=window
    )
    seen = seen_by(SHARED, window)
    for segment in SHARED.segments:
        for place in {segment.start, (segment.start + segment.stop) // 2, segment.stop - 1}:
            (gradient,) = torch.autograd.grad(out[0, place].sum(), value, retain_graph=True)
            assert torch.equal(gradient[0, 0].abs().sum(dim=-1).cpu() > 0, seen[place]), place


@pytest.mark.parametrize("precision", MODEL_BOUND)
@pytest.mark.parametrize("family", ["llama", "mistral, window shorter than a sample"])
def test_a_row_has_the_losses_and_gradients_of_float32_on_a_cpu(llama, family, precision, device):
    """Soft tokens, splice, packed attention, LoRA and loss; under autocast as training runs them."""
    model = build(llama, FAMILIES[family])
    samples, features, present = questions(model)
    packed = pack(samples)
    expected = forward_packed(model, packed, features, present)
    expected.loss_sum.backward()
    wanted = gradients(model)
    moved = copy.deepcopy(model).to(device)
    tensors = {
        "token_ids": packed.token_ids, "position_ids": packed.layout.position_ids(), "kept": packed.kept,
        "targets": packed.targets, "owners": packed.owners, "present": present,
    }  # fmt: skip
    on_device = {name: to_device(tensor, device) for name, tensor in tensors.items()}
    own = {name: to_device(tensor, device) for name, tensor in features.items()}
    with torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST):
        found = moved(**on_device, layout=packed.layout, num_samples=len(samples), features=own)
    found.loss_sum.backward()
    bound = MODEL_BOUND[precision]
    assert relative_error(found.sample_losses.detach().cpu(), expected.sample_losses.detach()) < bound / 2
    for part in ("fusion", "projectors", "lora"):
        of_part = [name for name in wanted if part in name]
        one, other = (
            torch.cat([each[name].flatten().cpu() for name in of_part]) for each in (gradients_of(moved), wanted)
        )
        assert relative_error(one, other) < bound, part


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in learning_parameters(model).items() if p.grad is not None}


def test_under_autocast_adapters_read_what_the_base_wrote(batches, base, device):
    """No float32 copy of the input, alone and stacked; without autocast adapters in float32 get float32."""
    made, together, alone = batches
    read: list[torch.dtype] = []
    base.to(device, torch.bfloat16)
    for model in (*together, *alone):
        model.to(device).train()
        for name, module in model.named_modules():
            if name.endswith("lora_dropout.default"):
                module.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].dtype))
    tensors = on_device_of(made[0], device)
    stacked = ModelGroup(base, together, stacked=True)
    stacked.train()
    for models in (stacked, OneModel(alone[0])):
        read.clear()
        with torch.autocast(device.type, torch.bfloat16):
            models.forward(tensors)
        assert set(read) == {torch.bfloat16}
    read.clear()
    alone[0](**tensors)
    assert set(read) == {torch.float32}


def on_device_of(tensors, device: torch.device):
    moved = {name: tensor.to(device) for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    return tensors | moved | {"features": {name: tensor.to(device) for name, tensor in tensors["features"].items()}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stacked_models_have_the_gradients_that_each_has_alone(batches, base, precision, device):
    """Adapters of several ranks and targets by `bmm`, with the dropout that each draws alone."""
    made, together, alone = batches
    for model in (base, *together, *alone):
        model.to(device)
    for pair in zip(together, alone, strict=True):
        pair[1].load_state_dict(pair[0].state_dict())
        for model in pair:
            model.train()
            with torch.no_grad():
                for number, (name, parameter) in enumerate(learning_parameters(model).items()):
                    if "lora_B" in name:
                        parameter.copy_(torch.full_like(parameter, 0.01 * (1 + number % 3)))
    group = ModelGroup(base, together, stacked=True)
    group.train()
    tensors = on_device_of(made[0], device)

    def autocast():
        return torch.autocast(device.type, AUTOCAST.get(precision), enabled=precision in AUTOCAST)

    for place in range(len(together)):
        group.seed(place, 7)
    outputs = group.learn(tensors, lambda place, output: output.loss_sum, autocast)
    for one, other, output in zip(together, alone, outputs, strict=True):
        torch.manual_seed(7)
        (expected,) = OneModel(other).learn(tensors, lambda place, output: output.loss_sum, autocast)
        assert relative_error(output.sample_losses, expected.sample_losses) < MODEL_BOUND[precision] / 2
        own, wanted = (
            torch.cat([gradient.flatten() for gradient in gradients_of(model).values()]) for model in (one, other)
        )
        assert relative_error(own, wanted) < MODEL_BOUND[precision]


assert len(VARIANTS) == 4, "the members of `batches`"


@pytest.mark.parametrize("rows", [1, 5, 200])
@pytest.mark.parametrize("dtype", KERNEL_BOUND)
def test_rows_are_quantised_as_on_a_cpu(dtype, rows, device):
    """In one kernel on a GPU: scales agree to the last places, FP8 numbers but for ties that fall otherwise."""
    x = (torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)) * 30).to(dtype)
    x[0, :5] = 0
    expected, expected_scale = quantise_rows(x)
    rounded, scale = quantise(x.to(device))
    assert (rounded.dtype, rounded.is_contiguous()) == (expected.dtype, True)
    torch.testing.assert_close(scale.cpu(), expected_scale, rtol=1e-6, atol=0)
    differing = rounded.cpu().float() != expected.float()
    assert differing.float().mean() < 0.01
    assert relative_error(rounded.cpu().float() * scale.cpu(), expected.float() * expected_scale) < 0.01


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (40, 24)])
@pytest.mark.parametrize("dtype", KERNEL_BOUND)
def test_an_fp8_layer_multiplies_what_it_emulates(dtype, inputs, outputs, device):
    """Native products where sizes are multiples of 16; their results are rounded to bfloat16."""
    torch.manual_seed(0)
    linear = nn.Linear(inputs, outputs).to(dtype)
    emulated, layer = Fp8Linear(linear), Fp8Linear(copy.deepcopy(linear).to(device))
    x = torch.randn(3, 33, inputs).to(dtype)
    upstream = torch.randn(3, 33, outputs).to(dtype)
    results = []
    for each, place in ((emulated, torch.device("cpu")), (layer, device)):
        own = x.clone().to(place).requires_grad_()
        y = each(own)
        y.backward(upstream.to(place))
        results.append((y.detach().cpu().float(), own.grad.cpu().float()))
    for one, other in zip(*results, strict=True):
        assert relative_error(other, one) < 2e-2


def test_copies_arrive_whole_where_the_host_drops_its_buffers_at_once(device):
    """Pinned memory is given back while copies wait behind other work, and is filled anew."""
    spec = {"features": ((64, 1024), torch.float16), "ids": ((7,), torch.int64)}
    busy = torch.randn(2048 if device.type == "cuda" else 64, 2048 if device.type == "cuda" else 64, device=device)
    arrived = []
    for number in range(100):
        busy = busy @ busy / busy.norm()
        buffer = BatchBuffer(spec)
        buffer["features"].fill_(number)
        buffer["ids"].fill_(number)
        moved = buffer.to(device)
        small = to_device(torch.full((5,), number), device)
        arrived.append((moved["features"], moved["ids"], small))
        del buffer, moved
    for number, tensors in enumerate(arrived):
        for tensor in tensors:
            assert tensor.device.type == device.type
            assert (tensor == number).all(), number


def scaled(config, material, device, monkeypatch):
    """Everything that a step takes, with a gradient scaler; accelerate has one on a GPU only."""
    context, accelerator, batches_of_steps = prepared(config, material, device.type)
    if accelerator.scaler is None:
        assert device.type == "cpu"
        accelerator.scaler = torch.amp.GradScaler("cpu")
        monkeypatch.setattr(accelerator, "unscale_gradients", unscale(accelerator))
    return context, accelerator, learner_of(config, context.model, accelerator), batches_of_steps


def unscale(accelerator):
    return lambda optimizer: accelerator.scaler.unscale_(optimizer.optimizer)


@pytest.mark.usefixtures("accelerate_anew")
def test_a_scaled_step_equals_an_unscaled_one_and_an_overflow_is_skipped(llama, material, device, monkeypatch):
    precision = "fp16" if device.type == "cuda" else "fp32"
    quiet = ("model.fusion.dropout=0", "model.lora.dropout=0", "optim.max_grad_norm=0.5")
    config = make_config(llama, *quiet, f"optim.precision={precision}")
    context, accelerator, learner, steps = scaled(config, material, device, monkeypatch)
    scaler, models = accelerator.scaler, OneModel(context.model)
    train_step(models, [learner], [0], steps[0], 0)
    assert learner.problem is None
    loss = torch.stack([context.model(**batch.to(device).tensors()).loss_sum.detach() for batch in steps[1]]).sum()
    supervised = sum(batch.num_supervised for batch in steps[1])
    before = {name: p.detach().clone() for name, p in learning_parameters(context.model).items()}
    train_step(models, [learner], [0], steps[1], 1)
    assert learner.loss == pytest.approx(float(loss) / supervised, rel=1e-2)
    assert any(not torch.equal(p, before[name]) for name, p in learning_parameters(context.model).items())

    after = {name: p.detach().clone() for name, p in learning_parameters(context.model).items()}
    moments = [state["exp_avg"].clone() for state in learner.optimizer.optimizer.state.values()]
    scale = scaler.get_scale()
    next(iter(learning_parameters(context.model).values())).register_hook(lambda gradient: gradient * math.inf)
    train_step(models, [learner], [0], steps[2], 2)
    assert (learner.problem, math.isfinite(learner.loss)) == (None, True)
    assert not math.isfinite(learner.norms["all"])
    assert scaler.get_scale() == scale / 2
    assert all(torch.equal(p, after[name]) for name, p in learning_parameters(context.model).items())
    kept = [state["exp_avg"] for state in learner.optimizer.optimizer.state.values()]
    assert all(torch.equal(one, other) for one, other in zip(kept, moments, strict=True))


@pytest.mark.usefixtures("accelerate_anew", "any_kernels")
@pytest.mark.filterwarnings("ignore:.*deterministic")  # the comparison to the bit says more
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_stopped_deterministic_run_ends_with_the_same_bits(llama, material, tmp_path, precision, device):
    if precision == "fp16" and device.type == "cpu":
        pytest.skip("accelerate trains in float16 on GPUs only")
    config = make_config(
        llama,
        f"optim.precision={precision}",
        "optim.deterministic=true",
        "optim.ema_decay=0.9",
        "optim.micro_batch_size=auto",
        "optim.micro_batch_tokens=120",
        "optim.batch_size=8",
        "data.tasks=[emotion, reason, think]",
        "data.questions_per_clip=2",
        "data.hide_modality_p=0.3",
        "data.eval_split=null",
        "checkpoint.every=100",
    )
    whole, cut = run_training(config, material, tmp_path / "whole"), Run(tmp_path / "cut")
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        run_training(config, material, cut.folder, stop=lambda: next(asked, True))
    assert checkpoint.read_state(checkpoint.choose(cut.checkpoints, "last")).step < config.optim.steps
    run_training(config, material, cut.folder)
    one, two = (checkpoint.choose(run.checkpoints, "last") for run in (whole, cut))
    for file in ("model.safetensors", "optimizer.safetensors", "averaged.safetensors"):
        expected, found = load_file(one / file), load_file(two / file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items()), file


def test_label_scores_and_generated_texts_are_those_of_each_clip_alone_on_a_cpu(llama, device):
    """A batch of prompts of different lengths, one clip without sound."""
    model = build(llama, FAMILIES["llama"]).eval()
    samples, features, present = questions(model)
    prompts = [samples[0].prompt, samples[1].prompt]
    labels = [[10, 2], [12, 13, 14, 2], [15, 2]]
    scores, texts = [], []
    for row, prompt in enumerate(prompts):
        own = {name: tensor[row : row + 1] for name, tensor in features.items()}
        scores.append(label_log_probabilities(model, [prompt], own, present[row : row + 1], labels))
        texts += greedy_text(model, [prompt], own, present[row : row + 1], max_new_tokens=8, eos_token_id=2)
    moved = copy.deepcopy(model).to(device)
    on_device = {name: tensor.to(device) for name, tensor in features.items()}
    found = label_log_probabilities(moved, prompts, on_device, present.to(device), labels)
    torch.testing.assert_close(found.cpu(), torch.cat(scores), rtol=1e-3, atol=1e-3)
    given = greedy_text(moved, prompts, on_device, present.to(device), max_new_tokens=8, eos_token_id=2)
    assert given == texts
