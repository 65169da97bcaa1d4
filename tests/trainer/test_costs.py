"""Costs before anything is loaded: the published figures, and the memory count against what autograd keeps."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode
from toy import make_config
from transformers import AutoModelForCausalLM, LlamaConfig

from fusion_train.cli import main
from fusion_train.errors import ConfigError
from fusion_train.llm.loading import skeleton
from fusion_train.models.lora import add_lora
from fusion_train.models.parts import count_by_part
from fusion_train.models.token_streams import FeatureShapes
from fusion_train.planning import costs
from fusion_train.planning.plan import make_plan
from fusion_train.planning.sizes import llm_shape, lora_shape, model_skeleton
from fusion_train.presets import load_config


@pytest.fixture(scope="module")
def published():
    return model_skeleton(load_config(), FeatureShapes())


def test_the_published_model_has_the_published_counts(published):
    counts = count_by_part(published)
    assert counts == {
        "lora": 33_554_432,
        "fusion": 2_838_275,
        "projectors.fusion": 1_052_672,
        "projectors.image": 23_072_768,
        "projectors.video": 5_771_264,
        "projectors.audio": 5_246_976,
    }
    assert sum(counts.values()) == 71_536_387
    assert all(parameter.is_meta for parameter in published.parameters())


def test_a_sample_of_600_tokens_costs_the_published_arithmetic(published):
    shape = llm_shape(published.llm)
    assert shape.matrix_parameters == pytest.approx(6.607e9, rel=1e-4)
    assert shape.layer_parameters + shape.head_parameters + shape.other_parameters == 6_738_415_616
    assert costs.rule_flops(shape, 600) == pytest.approx(15.9e12, rel=5e-3)
    assert costs.rule_flops(shape, 600, checkpointing=True) == pytest.approx(15.9e12 * 1.5, rel=5e-3)
    counted = costs.sample_flops(shape, lora_shape(published.llm), tokens=600, supervised=600)
    assert counted.layers + counted.head == costs.rule_flops(shape, 600)
    assert counted.recomputed == 0


@pytest.mark.parametrize("key_heads", [2, 4])
def test_the_arithmetic_is_that_which_torch_counts(key_heads):
    """FlopCounterMode counts the products of a forward and backward pass over a small model with LoRA."""
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        vocab_size=96,
        attn_implementation="eager",
    )
    llm = add_lora(AutoModelForCausalLM.from_config(config), r=4, alpha=8, dropout=0.0, targets=("q_proj", "v_proj"))
    tokens, supervised = 48, 11
    embedded = torch.randn(1, tokens, 64, requires_grad=True)  # as soft tokens, whose projectors learn
    with FlopCounterMode(display=False) as counter:
        llm(inputs_embeds=embedded, logits_to_keep=supervised).logits.sum().backward()
    expected = costs.sample_flops(llm_shape(llm), lora_shape(llm), tokens=tokens, supervised=supervised)
    # Eager attention computes both halves of the causal scores, in 6 products. The cost model counts one half, in the 7
    # products of flash attention, which computes the scores again. The rest, below 1e-4, are the rotary frequencies.
    attention = expected.attention * 2 * 6 / 7
    total = expected.layers + expected.head + expected.trained + attention
    assert counter.get_total_flops() == pytest.approx(total, rel=1e-4)


def saved_bytes(llm: torch.nn.Module, tokens: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that a forward pass over the layers keeps for the backward pass, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in [*llm.parameters(), *llm.buffers()]}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in weights:
            kept[pointer] = tensor
        return tensor

    inputs = torch.randn(1, tokens, width, dtype=dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        llm.base_model.model.model(inputs_embeds=inputs, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("key_heads", [4, 2])
def test_activations_are_counted_as_autograd_keeps_them(key_heads):
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
    )
    llm = add_lora(skeleton(config), r=4, alpha=16, dropout=0.0, targets=["q_proj", "v_proj"]).train()
    counted = costs.activation_bytes(
        llm_shape(llm), lora_shape(llm), 512, compute="float32", checkpointing=False, dropout=False
    )
    kept = saved_bytes(llm, 512, 128, torch.float32)
    # In float32 the norms' float32 input is the very tensor that the adapters read, so less is kept than counted.
    assert kept == pytest.approx(counted, rel=0.15)


def test_checkpointing_keeps_less_and_quantising_loads_less(published):
    shape, lora = llm_shape(published.llm), lora_shape(published.llm)
    whole = costs.memory(shape, lora, trained=71_536_387, tokens=600, supervised=32)
    small = costs.memory(shape, lora, trained=71_536_387, tokens=600, supervised=32, base="nf4", checkpointing=True)
    assert small.activations < whole.activations / 5
    assert small.base < whole.base / 3
    assert whole.total == sum(whole.by_kind().values())
    assert small.total < 22 * 2**30


def test_advice_names_what_can_still_shrink(published):
    shape, lora = llm_shape(published.llm), lora_shape(published.llm)
    needed = costs.memory(shape, lora, trained=71_536_387, tokens=9_600, supervised=512)
    smaller = "optim.micro_batch_size=8"
    assert costs.advice(needed, checkpointing=False, base="bfloat16", smaller=smaller).endswith(
        f"activations: set {smaller}."
    )
    needed = costs.memory(shape, lora, trained=71_536_387, tokens=600, supervised=32)
    said = costs.advice(needed, checkpointing=False, base="bfloat16", smaller=None)
    assert said.endswith("are base: set model.quantised=nf4.")


def test_an_unknown_card_names_the_near_one():
    with pytest.raises(ConfigError, match='Did you mean "h200"'):
        costs.find_gpu("h20")


def test_the_published_plan_needs_no_network_and_no_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["plan", "--gpu", "rtx-4090"])
    assert result.exit_code == 0, result.output
    assert "71,536,387" in result.output
    assert "200,000 samples" in result.output
    assert "memory of scoring, 64 clips at once" not in result.output  # 24 GiB hold fewer
    assert "memory of scoring" in result.output
    assert "layers: norms, rotary positions and activations in one kernel each" in " ".join(result.output.split())
    result = CliRunner().invoke(main, ["plan", "--set", "optim.compile=false"])
    assert "layers: operators of transformers; optim.compile=true computes" in " ".join(result.output.split())
    result = CliRunner().invoke(main, ["plan", "--gpu", "t4", "--set", "optim.activation_checkpointing=false"])
    assert "does not fit the 16 GiB of one T4" in result.output


def test_a_language_model_that_cannot_be_had_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["plan", "--set", "model.llm=nowhere/model"])
    assert result.exit_code == 2
    assert "a local folder or a reachable hub id" in result.output


def test_with_data_at_hand_the_tokens_are_counted(llama, material):
    plan = make_plan(
        make_config(llama),
        str(material / "features.zarr"),
        str(material / "clips.jsonl"),
        gpu="t4",
        utilisation=0.4,
        say=lambda text: None,
    )
    assert "counted" in plan.lengths.source
    assert plan.lengths.soft == 16  # fusion 4, image (17 - 1) / 4, video 4, audio 4
    assert 0 < plan.lengths.answer < plan.lengths.text
    assert plan.advice is None


def test_questions_that_share_a_prefix_cost_less_a_question(llama, material):
    """k(P + T) / (P + kT) of the arithmetic, as far as token counts say."""
    counted = []
    for questions in (1, 2):
        config = make_config(
            llama,
            f"data.questions_per_clip={questions}",
            f"optim.micro_batch_size={questions}",
            "data.tasks=[emotion, reason]",
        )
        counted.append(
            make_plan(
                config,
                str(material / "features.zarr"),
                str(material / "clips.jsonl"),
                gpu="t4",
                utilisation=0.4,
                say=lambda text: None,
            ).lengths
        )
    alone, shared = counted
    assert shared.soft == pytest.approx(alone.soft / 2)
    assert shared.answer == pytest.approx(alone.answer, rel=0.2)
    assert shared.total < 0.8 * alone.total
    assert "prefixes shared" in shared.source
