"""The contract of every fusion variant, and what this variant promises besides."""

from __future__ import annotations

import pytest
import torch
from gated_sum_fusion import GatedSum

from fusion_train.models.fusions import build_fusion
from fusion_train.remote.vendor import vendored_code
from fusion_train.testing import DIMS, FusionContract, random_features


class TestGatedSum(FusionContract):
    @pytest.fixture
    def build(self):
        return GatedSum


def test_the_entry_point_names_the_variant():
    assert isinstance(build_fusion("gated-sum", DIMS), GatedSum)


def test_a_single_present_modality_has_the_whole_weight():
    module = GatedSum(DIMS, hidden=(16, 8), out_dim=5).eval()
    features = random_features(1)
    present = torch.tensor([[False, True, False]])
    only = module.output(module.prepare(features, present)[1])
    torch.testing.assert_close(module(features, present), only)


def test_a_clip_without_any_modality_is_finite():
    module = GatedSum(DIMS, hidden=(16, 8), out_dim=5).eval()
    assert module(random_features(1), torch.zeros(1, 3, dtype=torch.bool)).isfinite().all()


def test_an_export_can_copy_the_variant():
    assert "class GatedSum" in vendored_code("gated-sum")["gated_sum_fusion.py"]
