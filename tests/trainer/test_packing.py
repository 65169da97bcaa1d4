"""Packed rows: the same losses and gradients as sample by sample, whatever shares a row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from toy import forward_packed, make_config
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from fusion_train.data.packing import Encoded, pack
from fusion_train.llm.loading import build_model
from fusion_train.models import packed_attention
from fusion_train.models.emotion_llama import EmotionLlama
from fusion_train.models.packed_attention import Layout, RowSegment
from fusion_train.models.parts import trained_parameters
from fusion_train.models.token_streams import SOFT_TOKEN, FeatureShapes

SHAPES = FeatureShapes(audio=(4, 12), image=(17, 10), video=(4, 10))
TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(**TINY, tie_word_embeddings=False),
    "llama tied": LlamaConfig(**TINY, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**TINY, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**TINY),
    "mistral, window shorter than a sample": MistralConfig(**TINY, sliding_window=8),
    "gemma": GemmaConfig(**TINY),
    "gemma2, capped scores": Gemma2Config(**TINY, sliding_window=512, attn_implementation="eager"),
    "gemma3, two kinds of layers": Gemma3TextConfig(
        **TINY, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
}


def build(llama, config) -> EmotionLlama:
    torch.manual_seed(0)
    settings = make_config(llama, "model.lora.dropout=0", "model.fusion.dropout=0")
    model = build_model(settings, AutoModelForCausalLM.from_config(config), SHAPES)
    torch.manual_seed(1)
    for name, parameter in trained_parameters(model).items():
        if "lora_B" in name:  # zero at first: nothing would flow into lora_A
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def questions(model: EmotionLlama) -> tuple[list[Encoded], dict[str, torch.Tensor], torch.Tensor]:
    """Three questions on a first clip, one on a second one without sound; features and presence of both clips."""
    n = sum(model.soft_counts.values())
    fewer = n - model.soft_counts["audio"]
    first = [1, *[SOFT_TOKEN] * n, 5, 6, 7]
    samples = [
        Encoded([*first, 8, 9], [10, 2], "a"),
        Encoded([1, *[SOFT_TOKEN] * fewer, 5, 8, 8], [12, 13, 14, 2], "b"),
        Encoded([*first, 11], [12, 2], "a"),
        Encoded([*first, 11], [15, 16, 2], "a"),
    ]
    made = torch.Generator().manual_seed(3)
    features = {name: torch.randn(2, *getattr(SHAPES, name), generator=made) for name in SHAPES.used}
    return samples, features, torch.tensor([[True, True, True], [False, True, True]])


def separately(
    model: EmotionLlama, samples: Sequence[Encoded], features: dict[str, torch.Tensor], present: torch.Tensor
) -> torch.Tensor:
    """Loss of each sample alone, without any of ours between embedding and logits; gradients are left in the model."""
    losses = []
    for sample in samples:
        row = ["a", "b"].index(str(sample.shared))
        own = {name: tensor[row : row + 1] for name, tensor in features.items()}
        ids = torch.tensor([sample.prompt + sample.answer])
        logits = model.llm(inputs_embeds=model.embed(ids, own, present[row : row + 1]), use_cache=False).logits[0]
        predicted = logits[len(sample.prompt) - 1 : -1].float()
        loss = torch.nn.functional.cross_entropy(predicted, torch.tensor(sample.answer), reduction="sum")
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses)


def gradients(model: EmotionLlama) -> dict[str, torch.Tensor]:
    taken = {name: p.grad.clone() for name, p in trained_parameters(model).items() if p.grad is not None}
    model.zero_grad()
    return taken


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_gives_the_losses_and_gradients_of_its_samples_alone(llama, family):
    model = build(llama, FAMILIES[family])
    samples, features, present = questions(model)
    losses = separately(model, samples, features, present)
    expected = gradients(model)
    assert any(gradient.abs().max() > 0 for name, gradient in expected.items() if "lora_A" in name)
    apart = torch.tensor([0, 1, 0, 0])
    for share, rows in ((True, torch.tensor([0, 1])), (False, apart)):
        packed = pack(samples, share=share)
        out = forward_packed(model, packed, {k: v[rows] for k, v in features.items()}, present[rows])
        out.loss_sum.backward()
        torch.testing.assert_close(out.sample_losses, losses, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5, msg=f"{family} {name}")


def test_a_prefix_stands_once_and_positions_go_on_from_it(llama):
    model = build(llama, FAMILIES["llama"])
    samples, _, _ = questions(model)
    shared, apart = pack(samples), pack(samples, share=False)
    common = len(samples[0].prompt) - 2
    assert apart.layout.length == sum(sample.length for sample in samples)
    # two prompts are equal, so the prefix ends before their last token
    assert shared.layout.length == apart.layout.length - 2 * common
    assert shared.own_tokens == [samples[0].length, samples[1].length, *(s.length - common for s in samples[2:])]
    assert shared.first_of_group == [0, 1]
    for packed in (shared, apart):
        ids, places = packed.token_ids[0].tolist(), packed.layout.position_ids()[0].tolist()
        for segment in packed.layout.segments:
            assert places[segment.start] == segment.first_position
        for number, sample in enumerate(samples):
            mine = packed.kept[packed.owners == number].tolist()
            assert packed.targets[packed.owners == number].tolist() == sample.answer
            assert [places[k] for k in mine] == list(range(len(sample.prompt) - 1, sample.length - 1))
            assert [ids[k] for k in mine] == [sample.prompt[-1], *sample.answer[:-1]]


def test_samples_of_a_row_do_not_see_each_other(llama):
    """To the bit: what a neighbour says changes nothing."""
    model = build(llama, FAMILIES["llama"])
    samples, features, present = questions(model)
    losses = []
    for other in ([12, 13, 14, 2], [20, 21, 22, 23]):
        given = [samples[0], Encoded(samples[1].prompt, other, "b")]
        losses.append(forward_packed(model, pack(given), features, present).sample_losses[0].item())
    assert losses[0] == losses[1]


def test_the_mask_and_the_segments_say_the_same():
    layout = Layout((RowSegment(0, 3), RowSegment(3, 5, (0, 3)), RowSegment(5, 6, (0, 3)), RowSegment(6, 8)))
    seen = layout.mask()[0, 0]
    assert [row.nonzero().flatten().tolist() for row in seen] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 5],
        [6],
        [6, 7],
    ]
    index = layout.varlen(2, torch.device("cpu"))
    assert index.ends_q.tolist() == [0, 3, 5, 6, 8, 11, 13, 14, 16]
    assert index.ends_k.tolist() == [0, 3, 8, 12, 14, 17, 22, 26, 28]
    first, second = index.keys.chunk(2)
    assert first.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7]
    assert torch.equal(second, first + layout.length)


def reference_varlen(
    q, k, v, ends_q, ends_k, longest_q, longest_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """What variable-length attention promises, segment by segment: q (tokens, heads, width); windows end-aligned."""
    outputs = []
    for segment in range(len(ends_q) - 1):
        own, keys = (slice(int(ends[segment]), int(ends[segment + 1])) for ends in (ends_q, ends_k))
        count, total = own.stop - own.start, keys.stop - keys.start
        assert count <= longest_q
        assert total <= longest_k
        ahead = torch.arange(total)[None] - (torch.arange(count)[:, None] + total - count)
        left, right = (float("inf") if side < 0 else side for side in window_size)
        seen = (ahead <= right) & (ahead >= -left)
        heads = (tensor.transpose(0, 1) for tensor in (q[own], k[keys], v[keys]))
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                *heads, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
            ).transpose(0, 1)
        )
    return torch.cat(outputs)


def ungrouped_varlen(q, k, v, ends_q, ends_k, longest_q, longest_k, *, scale=None, window_size=(-1, -1)):
    """That of torch 2.11, which has no grouped heads."""
    assert q.shape[1] == k.shape[1]
    return reference_varlen(q, k, v, ends_q, ends_k, longest_q, longest_k, scale=scale, window_size=window_size)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("varlen", [reference_varlen, ungrouped_varlen])
def test_variable_length_attention_sees_what_segments_see(monkeypatch, window, heads, varlen):
    layout = Layout(
        (RowSegment(0, 5), RowSegment(5, 9, prefix=(0, 5)), RowSegment(9, 12, prefix=(0, 5)), RowSegment(12, 19))
    )
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, count, layout.length, 8) for count in (heads[0], heads[1], heads[1]))
    monkeypatch.setattr(packed_attention, "_varlen", lambda: varlen)
    quick = packed_attention._attend_varlen(query, key, value, layout, 0.3, window)
    slow = packed_attention._attend_by_segment(query, key, value, layout, 0.3, window)
    torch.testing.assert_close(quick, slow)
    seen = layout.mask()[0, 0].clone()
    if window is None:
        dense = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=0.3, enable_gqa=heads[0] != heads[1]
        )
        torch.testing.assert_close(quick, dense.transpose(1, 2))
