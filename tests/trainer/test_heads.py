"""Heads of the field: sizes, formulas restated with plain tensors, and losses of a fusion's own."""

from __future__ import annotations

import math
import tomllib
from importlib.metadata import entry_points
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from toy import make_config
from transformers import LlamaForCausalLM

from fusion_train.errors import ConfigError
from fusion_train.llm.loading import build_model
from fusion_train.models.fusions import ENTRY_POINTS
from fusion_train.models.late_fusion import LateFusion
from fusion_train.models.low_rank_fusion import RANK, LowRankFusion
from fusion_train.models.misa import Misa, central_moment_discrepancy, overlap
from fusion_train.models.mmim import Mmim, contrastive_loss
from fusion_train.models.probe import Probe
from fusion_train.models.softmax_attention import SoftmaxAttention
from fusion_train.models.tensor_fusion import TensorFusion
from fusion_train.models.token_streams import FeatureShapes
from fusion_train.remote.vendor import PROBE_ENTRY_MODULES, vendored_code
from fusion_train.testing import FusionContract

PUBLISHED_DIMS = (1280, 1408, 1408)
DIMS = (20, 12, 12)
SMALL = {"hidden": (16, 8), "out_dim": 5, "dropout": 0.0}
HEADS = (SoftmaxAttention, LateFusion, LowRankFusion, TensorFusion, Misa, Mmim)


def built(head, **options):
    torch.manual_seed(0)
    return head(DIMS, **(SMALL | options)).eval()


def inputs(clips: int = 4, tokens: int = 3):
    torch.manual_seed(1)
    return [torch.randn(clips, tokens, dim) for dim in DIMS]


def prepared(module, features):
    return [F.relu(net[3](F.relu(net[0](x)))) for net, x in zip(module.prepare, features, strict=True)]


class TestEveryHead(FusionContract):
    @pytest.fixture(params=HEADS)
    def build(self, request):
        return request.param


@pytest.mark.parametrize(
    ("head", "count"),
    [
        (SoftmaxAttention, 2_591_875),
        (LateFusion, 2_394_752),
        (LowRankFusion, 2_411_460),
        (TensorFusion, 3_307_456),
        (Misa, 3_448_448),
        (Mmim, 2_642_176),
    ],
)
def test_heads_have_the_sizes_of_their_shapes(head, count):
    """By hand, from the shapes in the header of each module, on the widths of the published features."""
    with torch.device("meta"):
        module = head(PUBLISHED_DIMS)
    assert sum(parameter.numel() for parameter in module.parameters()) == count


def test_weights_of_modalities_sum_to_one_and_are_zero_for_absent_ones():
    module, features = built(SoftmaxAttention), inputs()
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)
    hidden = prepared(module, features)
    scores = module.attention_weights(
        F.relu(module.attention_mlp[3](F.relu(module.attention_mlp[0](torch.cat(hidden, dim=-1)))))
    )
    weights = scores.softmax(dim=-1)
    expected = module.output(sum(weights[..., m, None] * hidden[m] for m in range(3)))
    torch.testing.assert_close(module(features)[0], expected[0])
    weights = module.modality_weights(features, present)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, 3))
    assert not weights[1, :, 1].any()
    assert torch.equal(weights[2, :, 2], torch.ones(3))
    assert module(features, present).isfinite().all()


def test_logits_of_late_fusion_are_the_mean_of_the_logits_of_each_modality():
    fusion = built(LateFusion)
    probe = Probe(fusion, fusion_width=5, fusion_tokens=3, num_classes=4).eval()
    features = dict(zip(("audio", "video", "other"), inputs(), strict=True))
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0]], dtype=torch.bool)
    allowed = torch.ones(4, 4, dtype=torch.bool)
    alone = torch.stack(
        [probe.logits(features, torch.eye(3, dtype=torch.bool)[m].expand(4, 3), allowed) for m in range(3)], dim=1
    )
    mean = (alone * present[:, :, None]).sum(dim=1) / present.sum(dim=1, keepdim=True)
    torch.testing.assert_close(probe.logits(features, present, allowed), mean)


def test_tensor_fusion_multiplies_every_entry_with_every_other():
    module, features = built(TensorFusion), inputs()
    padded = [torch.cat([torch.ones(4, 3, 1), x], dim=-1) for x in prepared(module, features)]
    tensor = torch.einsum("bki,bkj,bkl->bkijl", *padded).flatten(2)
    assert tensor.shape[-1] == 9**3
    expected = module.output(F.relu(module.mixed(F.relu(module.products(tensor)))))
    torch.testing.assert_close(module(features), expected)


def test_a_tensor_that_is_too_wide_is_refused_with_the_width_to_set():
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=r"274,776,192.*Set model.fusion.hidden=\[512, 32\]"),
    ):
        TensorFusion(PUBLISHED_DIMS, hidden=(512, 128))


def test_low_rank_fusion_is_tensor_fusion_with_a_weight_tensor_of_that_rank():
    """The sum over ranks of outer products of the factors, applied to the explicit outer product."""
    module, features = built(LowRankFusion), inputs()
    a, b, c = module.factors
    assert a.shape == (RANK, 9, 4)
    weight = torch.einsum("rio,rjo,rlo,r->ijlo", a, b, c, module.rank_weights)
    padded = [torch.cat([torch.ones(4, 3, 1), x], dim=-1) for x in prepared(module, features)]
    product = torch.einsum("bki,bkj,bkl,ijlo->bko", *padded, weight)
    torch.testing.assert_close(module(features), module.output(product + module.bias), atol=1e-5, rtol=1e-4)


def test_the_losses_of_misa_are_those_of_its_equations():
    module, features = built(Misa), inputs(clips=6)
    present = torch.ones(6, 3, dtype=torch.bool)
    present[4, 1] = False  # counts for no loss of modality 1
    spaces = module._spaces(features, present)
    rows = present.repeat_interleave(3, dim=0)

    def vectors(parts, m, kept):
        return parts[m].flatten(0, 1)[kept].detach().numpy()

    def distance(x, y):
        moments = [np.linalg.norm(x.mean(0) - y.mean(0))]
        x, y = x - x.mean(0), y - y.mean(0)
        return sum(moments + [np.linalg.norm((x**k).mean(0) - (y**k).mean(0)) for k in range(2, 6)])

    def overlapping(x, y):
        x, y = (side - side.mean(0) for side in (x, y))
        x, y = (side / (np.linalg.norm(side, axis=1, keepdims=True) + 1e-6) for side in (x, y))
        return ((x.T @ y) ** 2).mean()

    pairs = [(m, n, (rows[:, m] & rows[:, n])) for m, n in combinations(range(3), 2)]
    similarity = np.mean([distance(*(vectors(spaces.shared, k, kept) for k in (m, n))) for m, n, kept in pairs])
    difference = sum(
        overlapping(vectors(spaces.private, m, rows[:, m]), vectors(spaces.shared, m, rows[:, m])) for m in range(3)
    ) + sum(overlapping(*(vectors(spaces.private, k, kept) for k in (m, n))) for m, n, kept in pairs)
    errors = []
    for m in range(3):
        again = module.reconstruct[m](spaces.private[m] + spaces.shared[m]).flatten(0, 1)[rows[:, m]].detach().numpy()
        errors.append(((again - vectors(spaces.unified, m, rows[:, m])) ** 2).mean())
    tokens, loss = module.with_loss(features, present)
    assert loss.item() == pytest.approx(similarity + 0.3 * difference + np.mean(errors), rel=1e-4)
    torch.testing.assert_close(tokens, module(features, present))


def test_equal_distributions_have_no_discrepancy_and_orthogonal_parts_no_overlap():
    x = torch.randn(64, 8)
    ones = torch.ones(64)
    assert central_moment_discrepancy(x, x, ones).item() < 1e-4
    assert central_moment_discrepancy(x, x + 1, ones).item() == pytest.approx(math.sqrt(8), abs=0.1)
    centred = torch.tensor([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    sine, cosine = centred * torch.tensor([1.0, 0]), centred * torch.tensor([0, 1.0])
    assert overlap(sine, cosine, torch.ones(4)).item() == pytest.approx(0, abs=1e-10)
    assert overlap(sine, sine, torch.ones(4)).item() == pytest.approx(4, rel=1e-4)


def test_the_losses_of_mmim_are_those_of_its_equations():
    module, features = built(Mmim), inputs(clips=6)
    present = torch.ones(6, 3, dtype=torch.bool)
    present[4, 1] = False
    tokens, loss = module.with_loss(features, present)
    torch.testing.assert_close(tokens, module(features, present))
    hidden = [x.masked_fill(~present[:, m, None, None], 0) for m, x in enumerate(prepared(module, features))]
    fused = module.fuse(torch.cat(hidden, dim=-1)).mean(dim=1)
    means = [x.mean(dim=1) for x in hidden]
    expected = 0.0
    for m in range(3):
        kept = present[:, m]
        own, predicted = F.normalize(means[m][kept], dim=1), F.normalize(module.predict[m](fused)[kept], dim=1)
        expected += 0.1 * F.cross_entropy(own @ predicted.T, torch.arange(int(kept.sum())))
    for number, (m, n) in enumerate(combinations(range(3), 2)):
        kept = present[:, m] & present[:, n]
        log_variance = module.log_variances[number](means[m][kept])
        normal = torch.distributions.Normal(module.means[number](means[m][kept]), (log_variance / 2).exp())
        constant = 8 * math.log(2 * math.pi) / 2
        expected -= 0.1 * (normal.log_prob(means[n][kept]).sum(dim=1) + constant).mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)


def test_no_clip_with_a_modality_has_no_contrast():
    assert contrastive_loss(torch.randn(3, 4), torch.randn(3, 4), torch.zeros(3)).item() == 0


@pytest.mark.parametrize("head", [Misa, Mmim])
def test_one_clip_alone_has_finite_losses_and_gradients(head):
    module = built(head).train()
    tokens, loss = module.with_loss(inputs(clips=1, tokens=1), torch.tensor([[True, False, True]]))
    (tokens.sum() + loss).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_a_probe_adds_the_losses_of_its_fusion_in_training_only():
    probe = Probe(built(Misa), fusion_width=5, fusion_tokens=3, num_classes=4)
    features = dict(zip(("audio", "video", "other"), inputs(), strict=True))
    batch = {
        "features": features,
        "present": torch.ones(4, 3, dtype=torch.bool),
        "allowed": torch.ones(4, 4, dtype=torch.bool),
        "targets": torch.arange(4),
    }
    plain = probe.eval()(**batch)
    trained = probe.train()(**batch)
    own = probe.fusion.with_loss(list(features.values()), batch["present"])[1]
    torch.testing.assert_close(trained.loss_sum, plain.loss_sum + 4 * own)
    torch.testing.assert_close(trained.sample_losses.sum(), trained.loss_sum)


def test_a_language_model_refuses_a_fusion_with_losses_of_its_own(llama, monkeypatch):
    monkeypatch.setattr("fusion_train.llm.loading.build_fusion", lambda name, dims, **options: built(Misa))
    llm = LlamaForCausalLM.from_pretrained(llama)
    shapes = FeatureShapes(audio=(8, 12), image=(17, 10), video=(8, 10))
    with pytest.raises(ConfigError, match="without losses of its own"):
        build_model(make_config(llama), llm, shapes)


def test_an_export_carries_the_code_of_every_registered_head():
    """The exporter refuses a module that imports what an exported folder may not."""
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.value.startswith("fusion_train.")]
    for point in points:
        files = vendored_code(point.name, entry_modules=PROBE_ENTRY_MODULES)
        assert f"{point.module.replace('.', '_')}.py" in files


def test_every_head_is_an_entry_point():
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        points = tomllib.load(file)["project"]["entry-points"][ENTRY_POINTS]
    assert {f"{head.__module__}:{head.__qualname__}" for head in HEADS} <= set(points.values())
