"""Scores of closed labels: rows, caches and texts give the same, and none holds more than it must."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_packing import FAMILIES, build
from toy import make_config

from fusion_train.models import answering
from fusion_train.models.answering import label_log_probabilities, label_row
from fusion_train.models.emotion_llama import Abilities
from fusion_train.models.model_group import GroupAnswering, ModelGroup, shared_copy
from fusion_train.models.token_streams import SOFT_TOKEN, FeatureShapes

SHAPES = FeatureShapes(audio=(4, 12), image=(17, 10), video=(4, 10))
LABELS = [[9, 10, 2], [11, 2], [2], [12, 13, 14, 2]]
WAYS = {
    "segments": Abilities(),
    "cache": Abilities(packing=False),
    "text": Abilities(packing=False, batching=False),
}


@pytest.fixture
def model(llama):
    return build(llama, FAMILIES["llama"]).eval()


def clips(model, count: int):
    """Prompts of different lengths, features, presence."""
    n = sum(model.soft_counts.values())
    made = torch.Generator().manual_seed(count)
    prompts = [[1, *[SOFT_TOKEN] * n, 5, *[6 + clip] * (clip % 3 + 1)] for clip in range(count)]
    features = {name: torch.randn(count, *getattr(SHAPES, name), generator=made) for name in SHAPES.used}
    return prompts, features, torch.ones(count, 3, dtype=torch.bool)


def one_by_one(model, prompts, features, present, labels):
    """Scores by transformers alone, one text per clip and label."""
    scores = torch.zeros(len(prompts), len(labels))
    with torch.no_grad():
        for row, prompt in enumerate(prompts):
            own = {name: tensor[row : row + 1] for name, tensor in features.items()}
            for column, label in enumerate(labels):
                embedded = model.embed(torch.tensor([[*prompt, *label]]), own, present[row : row + 1])
                logits = model.llm(inputs_embeds=embedded, use_cache=False).logits[0, len(prompt) - 1 : -1]
                scores[row, column] = logits.log_softmax(-1).gather(1, torch.tensor(label)[:, None]).sum()
    return scores


@pytest.mark.parametrize("labels", [LABELS, [[9], [10]], [[9, 2]]])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_scores_labels_as_one_text_each(model, way, labels):
    model.abilities = WAYS[way]
    inputs = clips(model, 5)
    torch.testing.assert_close(
        label_log_probabilities(model, *inputs, labels), one_by_one(model, *inputs, labels), rtol=1e-5, atol=2e-5
    )


@pytest.mark.parametrize("way", ["segments", "cache"])
@pytest.mark.parametrize("limit", [1, 40, 120])
def test_pieces_of_any_size_give_the_same_scores(model, monkeypatch, way, limit):
    model.abilities = WAYS[way]
    inputs = clips(model, 7)
    whole = label_log_probabilities(model, *inputs, LABELS)
    monkeypatch.setattr(answering, "ROW_TOKENS", limit)
    monkeypatch.setattr(answering, "CACHED_TOKENS", limit)
    torch.testing.assert_close(label_log_probabilities(model, *inputs, LABELS), whole, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("way", ["segments", "cache"])
def test_memory_does_not_grow_with_clips_and_labels(model, monkeypatch, way):
    """Tokens of each pass over the layers, and of the cache that it reads."""
    model.abilities = WAYS[way]
    monkeypatch.setattr(answering, "ROW_TOKENS", 100)
    monkeypatch.setattr(answering, "CACHED_TOKENS", 200)
    sizes = []

    def count(module, args, kwargs):
        cache = kwargs.get("past_key_values") or kwargs.get("cache")
        rows, tokens = kwargs["hidden_states"].shape[:2] if "hidden_states" in kwargs else args[0].shape[:2]
        sizes.append(rows * (tokens + (cache.get_seq_length() if cache is not None else 0)))

    model.llm.get_base_model().model.layers[0].register_forward_pre_hook(count, with_kwargs=True)
    label_log_probabilities(model, *clips(model, 12), LABELS * 5)
    assert len(sizes) > 3
    assert max(sizes) <= (100 if way == "segments" else 240)


def test_a_row_holds_each_prompt_once_and_no_last_token_of_a_label():
    ids, layout, kept, predicting = label_row([[1, 3], [1, 4, 5]], [[7, 8, 2], [9, 2]])
    assert ids == [1, 3, 7, 8, 9, 1, 4, 5, 7, 8, 9]
    spans = [(s.start, s.stop, s.prefix) for s in layout.segments]
    assert spans == [(0, 2, None), (2, 4, (0, 2)), (4, 5, (0, 2)), (5, 8, None), (8, 10, (5, 8)), (10, 11, (5, 8))]
    assert kept == [1, 2, 3, 4, 7, 8, 9, 10]
    assert predicting.tolist() == [[[0, 1, 2], [0, 3, 0]], [[4, 5, 6], [4, 7, 0]]]
    assert layout.two_ranges(1, torch.device("cpu")) is not None


@pytest.mark.parametrize("way", ["segments", "cache"])
@pytest.mark.parametrize("limit", [60, 4096])
def test_models_of_a_group_score_as_each_alone(llama, monkeypatch, way, limit):
    from transformers import AutoModelForCausalLM

    from fusion_train.llm.loading import build_model

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(FAMILIES["llama"])
    members = []
    for seed in (1, 2):
        member = build_model(make_config(llama, f"seed={seed}"), shared_copy(base), SHAPES).eval()
        for name, parameter in member.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        member.abilities = replace(WAYS[way])
        members.append(member)
    group = ModelGroup(base, members, stacked=True)
    group.train(False)
    monkeypatch.setattr(answering, "ROW_TOKENS", limit)
    monkeypatch.setattr(answering, "CACHED_TOKENS", limit)
    prompts, features, present = clips(members[0], 5)
    together = label_log_probabilities(
        GroupAnswering(group, members),
        prompts * 2,
        {name: tensor.repeat(2, 1, 1) for name, tensor in features.items()},
        present.repeat(2, 1),
        LABELS,
    )
    alone = [label_log_probabilities(member, prompts, features, present, LABELS) for member in members]
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=2e-5)
