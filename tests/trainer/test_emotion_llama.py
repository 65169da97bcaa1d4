"""The whole model: published counts, splicing, loss, absence, scoring."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from toy import forward_packed, make_config
from transformers import LlamaConfig, LlamaForCausalLM

from fusion_train.data.packing import Encoded, pack
from fusion_train.errors import ConfigError
from fusion_train.llm.loading import build_model
from fusion_train.models.answering import greedy_text, label_log_probabilities
from fusion_train.models.parts import count_by_part, trained_parameters
from fusion_train.models.token_streams import IGNORED_LABEL, SOFT_TOKEN, FeatureShapes
from fusion_train.presets import load_config

SHAPES = FeatureShapes(audio=(4, 12), image=(17, 10), video=(4, 10))


@pytest.fixture
def model(llama):
    config = make_config(llama)
    built = build_model(config, LlamaForCausalLM.from_pretrained(llama), SHAPES)
    return built.eval()


def features(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, *getattr(SHAPES, name), generator=made) for name in ("audio", "image", "video")}


def all_present(batch: int) -> torch.Tensor:
    return torch.ones(batch, 3, dtype=torch.bool)


def test_the_published_configuration_trains_71_536_387_parameters():
    llama2_7b = LlamaConfig(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    with torch.device("meta"):
        model = build_model(load_config("emotion_llama_v2"), LlamaForCausalLM(llama2_7b), FeatureShapes())
    assert count_by_part(model) == {
        "projectors.image": 23_072_768,
        "projectors.video": 5_771_264,
        "projectors.audio": 5_246_976,
        "projectors.fusion": 1_052_672,
        "fusion": 2_838_275,
        "lora": 33_554_432,
    }
    trained = sum(parameter.numel() for parameter in trained_parameters(model).values())
    assert trained == 71_536_387
    assert model.soft_counts == {"fusion": 64, "image": 256, "video": 64, "audio": 64}
    assert sum(model.soft_counts.values()) == 448


def test_soft_tokens_stand_in_the_published_order(model):
    soft, mask = model.soft_tokens(features(2), all_present(2))
    counts = model.soft_counts
    assert list(counts) == ["fusion", "image", "video", "audio"]
    assert soft.shape == (2, sum(counts.values()), 32)
    assert mask.all()
    patches = features(2)["image"][:, 1:5].flatten(1)
    torch.testing.assert_close(soft[:, counts["fusion"]], model.projectors["image"](patches))
    torch.testing.assert_close(soft[:, -1], model.projectors["audio"](features(2)["audio"][:, -1]))


def test_soft_tokens_of_the_mask_go_to_the_places_in_order_and_the_others_get_no_gradient(model):
    soft = torch.randn(2, 5, 32, requires_grad=True)
    mask = torch.tensor([[True, False, True, True, False], [False, False, True, False, True]])
    ids = torch.tensor([[3, SOFT_TOKEN, SOFT_TOKEN, 4, SOFT_TOKEN, 5], [SOFT_TOKEN, 6, 7, 8, 9, SOFT_TOKEN]])
    spliced = model.splice(ids, soft, mask)
    words = model.llm.get_input_embeddings()(ids.clamp(min=0))
    expected = words.detach().masked_scatter((ids == SOFT_TOKEN).unsqueeze(-1), soft[mask])
    assert torch.equal(spliced, expected)
    upstream = torch.randn_like(spliced)
    (found,) = torch.autograd.grad(spliced, soft, upstream)
    (wanted,) = torch.autograd.grad(expected, soft, upstream)
    assert torch.equal(found, wanted)
    assert not found[~mask].any()


@pytest.mark.parametrize("places", [1, 3])
def test_as_many_places_as_soft_tokens_are_demanded(model, places):
    ids = torch.tensor([[SOFT_TOKEN] * places + [5] * 4])
    with pytest.raises(RuntimeError, match="as many places"):
        model.splice(ids, torch.zeros(1, 2, 32), torch.ones(1, 2, dtype=torch.bool))


def test_a_stream_can_be_zeroed_or_left_out_of_a_trained_model(model):
    counts = model.soft_counts
    whole, _ = model.soft_tokens(features(2), all_present(2))
    start = counts["fusion"]
    model.ablated = {"image": "zero"}
    zeroed, mask = model.soft_tokens(features(2), all_present(2))
    assert not zeroed[:, start : start + counts["image"]].any()
    assert torch.equal(zeroed[:, :start], whole[:, :start])  # the fusion still sees the picture
    assert mask.all()
    model.ablated = {"fusion": "omit", "audio": "omit"}
    soft, mask = model.soft_tokens(features(2), all_present(2))
    assert model.soft_counts == {name: count for name, count in counts.items() if name in ("image", "video")}
    assert torch.equal(soft[mask], whole[:, start : -counts["audio"]].flatten(0, 1))


def test_loss_equals_the_loss_of_transformers_over_all_positions(model):
    n = sum(model.soft_counts.values())
    samples = [([1, *[SOFT_TOKEN] * n, 5], [6, 7, 2]), ([1, *[SOFT_TOKEN] * n, 8], [9, 2])]
    packed = pack([Encoded(prompt, answer, row) for row, (prompt, answer) in enumerate(samples)])
    ours = forward_packed(model, packed, features(2), all_present(2))
    losses = []
    for row, (prompt, answer) in enumerate(samples):
        one = {name: tensor[row : row + 1] for name, tensor in features(2).items()}
        labels = torch.tensor([[IGNORED_LABEL] * len(prompt) + answer])
        embedded = model.embed(torch.tensor([prompt + answer]), one, all_present(1))
        losses.append(model.llm(inputs_embeds=embedded, labels=labels).loss * len(answer))
    torch.testing.assert_close(ours.loss_sum, sum(losses))
    torch.testing.assert_close(ours.sample_losses, torch.stack(losses).detach())


def test_an_absent_modality_leaves_no_trace(model):
    """Not in the loss, whatever its row of the feature tensor holds, NaN included; nor in any gradient."""
    counts = model.soft_counts
    n = sum(counts.values()) - counts["audio"]
    packed = pack([Encoded([1, *[SOFT_TOKEN] * n, 5], [6, 2], 0)])
    present = torch.tensor([[False, True, True]])
    losses = []
    for value in (0.0, float("nan"), 5.0):
        given = features(1) | {"audio": torch.full((1, 4, 12), value)}
        out = forward_packed(model, packed, given, present)
        model.zero_grad()
        out.loss_sum.backward()
        losses.append(out.loss_sum.item())
        assert all(p.grad.isfinite().all() for p in trained_parameters(model).values() if p.grad is not None)
    assert losses[0] == losses[1] == losses[2]


def test_label_scores_equal_one_forward_pass_a_label(model):
    n = sum(model.soft_counts.values())
    prompts = [[1, *[SOFT_TOKEN] * n, 5], [1, *[SOFT_TOKEN] * n, 5, 6, 7, 8]]
    labels = [[9, 10, 2], [11, 2], [2]]
    scores = label_log_probabilities(model, prompts, features(2), all_present(2), labels)
    for row, prompt in enumerate(prompts):
        one = {name: tensor[row : row + 1] for name, tensor in features(2).items()}
        for column, label in enumerate(labels):
            ids = torch.tensor([prompt + label])
            logits = model.llm(inputs_embeds=model.embed(ids, one, all_present(1))).logits.log_softmax(-1)[0]
            expected = sum(logits[len(prompt) - 1 + k, token] for k, token in enumerate(label))
            torch.testing.assert_close(scores[row, column], expected, atol=1e-4, rtol=1e-4)


def test_greedy_text_does_not_depend_on_the_neighbours_length(model):
    n = sum(model.soft_counts.values())
    prompts = [[1, *[SOFT_TOKEN] * n, 5], [1, *[SOFT_TOKEN] * n, *range(5, 30)]]
    both = greedy_text(model, prompts, features(2), all_present(2), max_new_tokens=5, eos_token_id=2)
    for row, prompt in enumerate(prompts):
        one = {name: tensor[row : row + 1] for name, tensor in features(2).items()}
        assert greedy_text(model, [prompt], one, all_present(1), max_new_tokens=5, eos_token_id=2) == [both[row]]


def test_lora_reaches_the_language_model_alone(model):
    names = [name for name in trained_parameters(model) if "lora" in name]
    assert names
    assert all(".self_attn.q_proj." in name or ".self_attn.v_proj." in name for name in names)
    assert not [name for name in trained_parameters(model) if name.startswith("llm.") and "lora" not in name]


def test_the_same_seed_gives_the_same_first_weights(llama):
    first, second, other = (
        build_model(make_config(llama, f"seed={seed}"), LlamaForCausalLM.from_pretrained(llama), SHAPES)
        for seed in (1, 1, 2)
    )
    same = [
        torch.equal(a, b)
        for a, b in zip(trained_parameters(first).values(), trained_parameters(second).values(), strict=True)
    ]
    assert all(same)
    assert not torch.equal(first.projectors["audio"].weight, other.projectors["audio"].weight)


@pytest.mark.parametrize(
    ("tokens", "fits"), [(1, True), (5, True), (197, True), (2, False), (4, False), (16, False), (196, False)]
)
def test_a_picture_whose_patches_do_not_group_is_refused_before_training(llama, tokens, fits):
    shapes = FeatureShapes(audio=None, image=(tokens, 8), video=None)
    with nullcontext() if fits else pytest.raises(ConfigError, match=f"got {tokens} tokens per picture.*pool=all"):
        build_model(make_config(llama), LlamaForCausalLM.from_pretrained(llama), shapes)
