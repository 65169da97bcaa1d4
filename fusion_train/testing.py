"""Contract of a fusion variant: tests that your own variant's test class inherits.

    class TestMyFusion(FusionContract):
        @pytest.fixture
        def build(self):
            return MyFusion

The tests hold what the trainer relies on: one output per token, a gradient for every parameter, no influence of an
absent modality or of another clip of the batch, no randomness in evaluation. `tests/trainer/test_fusions.py` runs them
over every registered variant.

Shapes: B clips, K tokens of each modality, D_m width of modality m, M modalities.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

BuildFusion = Callable[..., nn.Module]
DIMS = (20, 12, 12)
"""Widths of audio, image and video."""
NUM_TOKENS = 64
OUT_DIM = 5


def random_features(num_clips: int) -> list[Tensor]:
    """Return (B, NUM_TOKENS, D_m) of each modality."""
    return [torch.randn(num_clips, NUM_TOKENS, dim) for dim in DIMS]


class FusionContract:
    """Tests of one variant. A subclass has the fixture `build`, a function of `dims` and the variant's options."""

    def built(self, build: BuildFusion) -> nn.Module:
        torch.manual_seed(0)
        return build(DIMS, hidden=(16, 8), out_dim=OUT_DIM, dropout=0.1)

    def test_every_token_is_kept_and_every_parameter_learns(self, build: BuildFusion) -> None:
        module = self.built(build)
        with_loss = getattr(module, "with_loss", None)  # `fusion_train.models.fusions`: losses of a fusion's own
        out, own_loss = (module(random_features(3)), 0.0) if with_loss is None else with_loss(random_features(3))
        assert out.shape == (3, NUM_TOKENS, OUT_DIM)
        (out.square().sum() + own_loss).backward()
        assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []

    def test_the_content_of_an_absent_modality_changes_nothing(self, build: BuildFusion) -> None:
        module = self.built(build).eval()
        features = random_features(2)
        present = torch.tensor([[True, False, True], [True, True, True]])
        other = [features[0], torch.randn_like(features[1]), features[2]]
        assert torch.equal(module(features, present)[0], module(other, present)[0])
        assert not torch.equal(module(features, present)[1], module(other, present)[1])

    def test_a_clip_does_not_depend_on_the_other_clips_of_the_batch(self, build: BuildFusion) -> None:
        module = self.built(build).eval()
        features = random_features(3)
        torch.testing.assert_close(module(features)[1:2], module([tokens[1:2] for tokens in features]))

    def test_evaluation_draws_nothing(self, build: BuildFusion) -> None:
        module = self.built(build).eval()
        features = random_features(2)
        assert torch.equal(module(features), module(features))

    def test_the_weights_load_strictly_into_a_new_module(self, build: BuildFusion) -> None:
        module = self.built(build).eval()
        other = build(DIMS, hidden=(16, 8), out_dim=OUT_DIM, dropout=0.1).eval()
        other.load_state_dict(module.state_dict(), strict=True)
        features = random_features(2)
        assert torch.equal(module(features), other(features))
