"""Contract of every fusion variant, and the published sizes."""

from __future__ import annotations

import copy
import functools
from importlib.metadata import entry_points

import pytest
import torch
from toy import make_config
from transformers import LlamaForCausalLM

from fusion_train.errors import ConfigError
from fusion_train.llm.loading import build_model
from fusion_train.models.conv_attention import ConvAttention
from fusion_train.models.fusion_inputs import resample
from fusion_train.models.fusions import ENTRY_POINTS, build_fusion
from fusion_train.models.token_streams import FeatureShapes
from fusion_train.testing import FusionContract

DIMS = (20, 12, 12)
VARIANTS = sorted(point.name for point in entry_points(group=ENTRY_POINTS) if point.name != "none")


def test_the_published_variants_are_registered():
    assert {"attention", "conv", "conv-attention", "q-former"} <= set(VARIANTS)


def test_conv_attention_has_the_published_number_of_parameters():
    with torch.device("meta"):
        module = ConvAttention()
    assert sum(parameter.numel() for parameter in module.parameters()) == 2_838_275


def test_conv_attention_computes_the_published_formula():
    """Restated from the paper's equations with plain tensors."""
    torch.manual_seed(0)
    module = ConvAttention(DIMS, hidden=(16, 8), out_dim=5).eval()
    features = [torch.randn(2, 6, dim) for dim in DIMS]
    linear = lambda x, layer: x @ layer.weight.T + layer.bias  # noqa: E731
    hidden = [linear(linear(x, net[0]).relu(), net[3]).relu() for x, net in zip(features, module.prepare, strict=True)]
    joined = torch.cat(hidden, dim=-1)
    mixed = linear(
        linear(linear(joined, module.attention_mlp[0]).relu(), module.attention_mlp[3]).relu(), module.attention_weights
    )
    attended = sum(mixed[..., m, None] * hidden[m] for m in range(3))
    x = linear(
        joined,
        type("entry", (), {"weight": module.conv_branch.entry.weight[..., 0], "bias": module.conv_branch.entry.bias}),
    )
    for conv in module.conv_branch.blocks:
        padded = torch.nn.functional.pad(x, (0, 0, 1, 1))
        y = sum(padded[:, k : k + 6] @ conv.weight[..., k].T for k in range(3)) + conv.bias
        x = x + y * torch.sigmoid(y)
    torch.testing.assert_close(module(features), linear(attended + x, module.output))


class TestEveryRegisteredVariant(FusionContract):
    @pytest.fixture(params=VARIANTS)
    def build(self, request):
        return functools.partial(build_fusion, request.param)


def test_an_unknown_variant_is_refused_with_the_near_name():
    with pytest.raises(ConfigError, match='Did you mean "conv-attention"'):
        build_fusion("conv-atention", DIMS)


def test_token_counts_may_differ_between_modalities(llama):
    """The ablations of audio tokens, frames and spatial pooling are a matter of what was cached."""
    llm = LlamaForCausalLM.from_pretrained(llama)
    for shapes, tokens in (
        (FeatureShapes(audio=(1, 12), image=(17, 10), video=(16, 10)), 64),
        (FeatureShapes(audio=(8, 12), image=(17, 10), video=(8, 10)), 8),
        (FeatureShapes(audio=(8, 12), image=(1, 10), video=None), 8),
    ):
        for variant in ("conv-attention", "q-former", "attention"):
            model = build_model(make_config(llama, f"model.fusion.name={variant}"), copy.deepcopy(llm), shapes)
            features = {name: torch.randn(2, *getattr(shapes, name)) for name in shapes.used}
            soft, mask = model.soft_tokens(features, torch.ones(2, len(shapes.used), dtype=torch.bool))
            assert model.soft_counts["fusion"] == tokens
            assert soft.shape[1] == mask.shape[1] == sum(model.soft_counts.values())


def test_resampling_is_the_adaptive_average_over_time():
    tokens = torch.arange(6.0).view(1, 6, 1)
    assert resample(tokens, 3).flatten().tolist() == [0.5, 2.5, 4.5]
    assert resample(tokens[:, :2], 4).flatten().tolist() == [0, 0, 1, 1]
    assert resample(tokens, 6) is tokens
