"""Elementwise chains in one kernel each: the values and gradients of the family's own operators."""

from __future__ import annotations

import copy

import pytest
import torch
from test_prefix_attention import row_of_questions, saved_bytes, small_llm
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from fusion_train.models.fused_layers import fuse_layers, without_compiled_chains
from fusion_train.models.packed_attention import attention_arguments, use_packed_attention
from fusion_train.planning import costs
from fusion_train.planning.sizes import llm_shape, lora_shape

# torch warns of parts of its own when it first compiles.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def make(family: str, device) -> torch.nn.Module:
    torch.manual_seed(3)
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SIZES), dtype=torch.float32).to(device)
    for name, parameter in llm.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    use_packed_attention(llm)
    return llm


def loss_and_gradient(llm, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    layout = row_of_questions(1, tokens=length)
    made = torch.Generator().manual_seed(length)
    device = next(llm.parameters()).device
    inputs = torch.randn(1, layout.length, 64, generator=made).to(device).requires_grad_()
    position_ids = layout.position_ids().to(device)
    arguments = attention_arguments(llm, layout, inputs)
    logits = llm(inputs_embeds=inputs, position_ids=position_ids, use_cache=False, **arguments).logits
    loss = logits.float().log_softmax(dim=-1)[..., 7].sum()
    return loss.detach(), torch.autograd.grad(loss, inputs)[0]


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_fused_layers_compute_what_the_family_computes_in_three_graphs(family, device):
    """Gemma scales by 1 + weight and has another activation, and norms of queries and keys."""
    torch.compiler.reset()
    counters.clear()
    plain = make(family, device)
    fused = copy.deepcopy(plain)
    fuse_layers(fused)
    for length in (5, 9, 17):
        for expected, got in zip(loss_and_gradient(plain, length), loss_and_gradient(fused, length), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    chains = 3 + (family == "gemma3_text")  # its norms of queries and keys read four axes
    assert counters["stats"]["unique_graphs"] == chains
    loss_and_gradient(plain, 12)  # of the same family, and not fused
    with without_compiled_chains():
        loss_and_gradient(fused, 13)
    assert counters["stats"]["unique_graphs"] == chains


def test_fused_layers_keep_what_the_memory_model_counts():
    llm = small_llm(4, torch.bfloat16)
    layout = row_of_questions(1)
    sizes = {
        fused: costs.activation_bytes(
            llm_shape(llm),
            lora_shape(llm),
            layout.length,
            compute="bfloat16",
            checkpointing=False,
            dropout=False,
            fused=fused,
        )
        for fused in (False, True)
    }
    before = saved_bytes(llm, layout, torch.bfloat16)
    fuse_layers(llm)
    kept = saved_bytes(llm, layout, torch.bfloat16)
    assert kept == pytest.approx(sizes[True], rel=0.08)
    assert before - kept == pytest.approx(sizes[False] - sizes[True], rel=0.02)
