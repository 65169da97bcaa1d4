"""Families of transformers: what is measured of them, what training and answering then compute, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from test_packing import SHAPES, TINY, questions, separately
from toy import forward_packed, make_config
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fusion_train.data.packing import pack
from fusion_train.errors import ConfigError, ModelError
from fusion_train.llm.loading import build_model, refuse_foreign_tokens
from fusion_train.models.answering import greedy_text, label_log_probabilities
from fusion_train.models.emotion_llama import Abilities, EmotionLlama
from fusion_train.models.parts import decoder_layers, trained_parameters
from fusion_train.planning.sizes import llm_shape
from fusion_train.prompts.prompt import PromptFormat

PLAIN = {key: value for key, value in TINY.items() if key != "head_dim"}
HEADS = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
LINEAR = ["linear_attention", "full_attention"]
TOGETHER, APART, ONE_BY_ONE = Abilities(), Abilities(packing=False), Abilities(packing=False, batching=False)
FAMILIES = {
    "mamba2": (ONE_BY_ONE, ["in_proj"], {"vocab_size": 64, "hidden_size": 32, "state_size": 8, "num_heads": 8,
        "head_dim": 8, "n_groups": 1, "chunk_size": 8, "num_hidden_layers": 2, "initializer_range": 0.2}),
    "lfm2": (ONE_BY_ONE, ["q_proj", "v_proj"], {**PLAIN, "layer_types": ["conv", "full_attention"]}),
    "qwen3_next": (ONE_BY_ONE, ["q_proj", "v_proj"], {**TINY, **HEADS, "layer_types": LINEAR, "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}),
    "recurrent_gemma": (ONE_BY_ONE, ["q_proj", "v_proj"], {**TINY, "num_hidden_layers": 3, "lru_width": 32,
        "block_types": ["recurrent", "recurrent", "attention"]}),
    "gemma2": (APART, ["q_proj", "v_proj"], {**TINY, "sliding_window": 8}),
    "bloom": (APART, ["query_key_value"], {**GPT, "hidden_size": 32}),
    "llama4_text": (APART, ["q_proj", "v_proj"], {**TINY, "attention_chunk_size": 8, "num_local_experts": 2,
        "intermediate_size_mlp": 48, "layer_types": ["chunked_attention", "full_attention"]}),
    "gpt2": (TOGETHER, ["c_attn"], GPT),
    "gpt_neox": (TOGETHER, ["query_key_value"], {**PLAIN, "num_key_value_heads": 4}),
    "falcon": (TOGETHER, ["query_key_value"], {key: value for key, value in PLAIN.items() if "_key_" not in key}),
    "opt": (TOGETHER, ["q_proj", "v_proj"], {"vocab_size": 64, "hidden_size": 32, "word_embed_proj_dim": 16,
        "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "init_std": 0.2}),
    "gemma3_text": (TOGETHER, ["q_proj", "v_proj"], {**TINY, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"]}),
}  # fmt: skip
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def base(family: str):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **ENDS | FAMILIES[family][2])).eval()


def build(llama, family: str, llm=None) -> EmotionLlama:
    targets = ", ".join(FAMILIES[family][1])
    settings = make_config(llama, "model.lora.dropout=0", "model.fusion.dropout=0", f"model.lora.targets=[{targets}]")
    model = build_model(settings, llm or base(family), SHAPES).eval()
    torch.manual_seed(1)
    for name, parameter in trained_parameters(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model: EmotionLlama) -> dict[str, torch.Tensor]:
    taken = {name: p.grad.clone() for name, p in trained_parameters(model).items() if p.grad is not None}
    model.zero_grad()
    return taken


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_and_answers_as_its_plain_forward_pass(llama, family):
    model = build(llama, family)
    assert model.abilities == FAMILIES[family][0]
    samples, features, present = questions(model)
    losses = separately(model, samples, features, present)
    expected = gradients(model)
    assert any(gradient.abs().max() > 0 for name, gradient in expected.items() if "lora_A" in name)
    for share, rows in ((True, torch.tensor([0, 1])), (False, torch.tensor([0, 1, 0, 0]))):
        out = forward_packed(
            model, pack(samples, share=share), {k: v[rows] for k, v in features.items()}, present[rows]
        )
        out.loss_sum.backward()
        torch.testing.assert_close(out.sample_losses, losses, rtol=1e-5, atol=2e-5)
        for name, gradient in gradients(model).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4, msg=f"{family} {name}")
    prompts, labels = [samples[0].prompt, samples[1].prompt], [[10, 11, 2], [12, 2]]
    scores = label_log_probabilities(model, prompts, features, present, labels)
    for row, prompt in enumerate(prompts):
        for column, label in enumerate(labels):
            told = plain(model, features, present, row, [*prompt, *label])[len(prompt) - 1 : -1].log_softmax(dim=-1)
            wanted = sum(told[place, token] for place, token in enumerate(label))
            torch.testing.assert_close(scores[row, column], wanted, rtol=1e-5, atol=2e-5)
    texts = greedy_text(model, prompts, features, present, max_new_tokens=5, eos_token_id=2)
    assert texts == [greedy(model, features, present, row, prompt) for row, prompt in enumerate(prompts)]


@torch.no_grad()
def plain(model, features, present, row: int, ids: list[int]) -> torch.Tensor:
    """Logits (L, V) of one text by transformers alone."""
    own = {name: tensor[row : row + 1] for name, tensor in features.items()}
    embedded = model.embed(torch.tensor([ids]), own, present[row : row + 1])
    return model.llm(inputs_embeds=embedded, use_cache=False).logits[0]


def greedy(model, features, present, row: int, prompt: list[int]) -> list[int]:
    new: list[int] = []
    while len(new) < 5:
        token = int(plain(model, features, present, row, [*prompt, *new])[-1].argmax())
        if token == 2:
            break
        new.append(token)
    return new


@pytest.mark.parametrize(("family", "config", "said"), [
    ("xlnet", {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}, "later tokens"),
    ("openai-gpt", GPT, "generated text"),
    ("gemma4_text", {**TINY, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8,
                     "num_kv_shared_layers": 0, "global_head_dim": 8}, "embeddings"),
])  # fmt: skip
def test_a_family_that_cannot_be_used_is_refused_before_training(llama, family, config, said):
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    with pytest.raises(ModelError, match=f'model family "{family}".*{said}.*Choose a base of another family'):
        build_model(make_config(llama), llm, SHAPES)


def test_targets_of_a_family_are_named_in_the_refusal_and_then_taken(llama):
    with pytest.raises(ConfigError, match=r"layers of gpt2: c_attn, c_fc, c_proj, got q_proj.*targets=\[c_attn\]"):
        build_model(make_config(llama), base("gpt2"), SHAPES)
    model = build(llama, "gpt2")
    assert sum("lora_A" in name for name in trained_parameters(model)) == 2


def test_a_base_published_with_beams_and_sampling_answers_greedily(llama):
    calm, wild = base("gpt2"), base("gpt2")
    wild.generation_config = GenerationConfig(
        num_beams=3,
        num_return_sequences=2,
        return_dict_in_generate=True,
        output_scores=True,
        do_sample=True,
        temperature=5.0,
        forced_eos_token_id=7,
        forced_bos_token_id=9,
        max_length=3,
        min_new_tokens=4,
        pad_token_id=5,
        eos_token_id=[3, 4],
        cache_implementation="static",
    )
    answers = []
    for llm in (calm, wild):
        model = build(llama, "gpt2", copy.deepcopy(llm))
        samples, features, present = questions(model)
        prompts = [samples[0].prompt, samples[1].prompt]
        answers.append(greedy_text(model, prompts, features, present, max_new_tokens=5, eos_token_id=2))
        assert answers[0] == [greedy(model, features, present, row, prompt) for row, prompt in enumerate(prompts)]
    assert answers[0] == answers[1]


def test_a_tokenizer_of_more_tokens_than_the_embedding_is_refused(llama):
    tokenizer, llm = AutoTokenizer.from_pretrained(llama), AutoModelForCausalLM.from_pretrained(llama)
    count = len(tokenizer)
    refuse_foreign_tokens(tokenizer, llm, PromptFormat(), "llama")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})  # no text and no format writes it
    refuse_foreign_tokens(tokenizer, llm, PromptFormat(), "llama")
    with pytest.raises(ModelError, match="1 beyond them, such as '<picture>'"):
        refuse_foreign_tokens(tokenizer, llm, PromptFormat(template="<picture>{soft}{said}{instruction}"), "llama")
    tokenizer.add_tokens(["Gelächter"])
    with pytest.raises(ModelError, match=rf"at most {count} tokens.*Gelächter.*resize_token_embeddings\({count + 2}\)"):
        refuse_foreign_tokens(tokenizer, llm, PromptFormat(), "llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_read_whatever_a_family_calls_them(family):
    llm = base(family)
    shape = llm_shape(llm)
    assert (shape.width, shape.layers, shape.vocabulary) == (
        16 if family == "opt" else 32,
        len(decoder_layers(llm)[1]),
        64,
    )
    assert shape.intermediate >= 32
    everything = sum(parameter.numel() for parameter in llm.parameters())
    assert shape.matrix_parameters + shape.other_parameters == everything
