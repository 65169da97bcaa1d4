"""Models trained in a stack: each equals the same model alone, and an ordinary loop with torch's own optimizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fusion_train.metrics.classification import classification_scores
from fusion_train.models.utterance_heads import build_head
from fusion_train.search.figures import FIGURES, confusions, figure
from fusion_train.search.stacked_training import Fit, Schedule, Stack, Standardisation, products_in, train_stack
from fusion_train.seeding import derive, generator

DIMS, CLASSES, CLIPS = (12, 7), 3, 90
DROPOUTS = [0.1, 0.3, 0.5, 0.0]


@pytest.fixture(scope="module")
def material():
    random = torch.Generator().manual_seed(0)
    targets = torch.arange(CLIPS) % CLASSES
    vectors = [torch.randn((CLIPS, dim), generator=random) for dim in DIMS]
    vectors[0][:, 0] += targets
    return vectors, targets


def fits_of(vectors, count=4, sizes=(50, 50, 41, 37)):
    return [
        Fit(
            vectors,
            train=np.arange(sizes[n]),
            inner=np.arange(60, 75),
            outer=np.arange(75, 90 - n),
            seed=100 + n,
            lr=10 ** (-2 - n / 3),
            weight_decay=0.01 * n,
            balance=0.5 * (n % 2),
            standardisations=[Standardisation.of(matrix[: sizes[n]]) for matrix in vectors],
        )
        for n in range(count)
    ]


def builder(head):
    return lambda number: build_head(head, DIMS, num_classes=CLASSES, hidden=8, dropout=DROPOUTS[number])


@pytest.mark.parametrize("head", ["mer-attention", "concatenation", "attention", "conv-attention"])
def test_a_model_alone_equals_the_model_in_the_stack(head, material):
    vectors, targets = material
    fits, schedule = fits_of(vectors), Schedule(epochs=4, batch_size=10, patience=10, main="UAR")
    together = train_stack(builder(head), fits, targets, schedule)
    assert [len(outcome.scores) for outcome in together] == [4] * 4
    for number, fit in enumerate(fits):
        (alone,) = train_stack(lambda _, n=number: builder(head)(n), [fit], targets, schedule)
        np.testing.assert_allclose(alone.outer, together[number].outer, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(alone.inner, together[number].inner, rtol=1e-5, atol=1e-6)
        assert alone.scores == together[number].scores
        assert len(alone.outer) == 15 - number


def test_a_model_in_the_stack_equals_an_ordinary_loop_with_the_optimizer_of_torch(material):
    vectors, targets = material
    fits = fits_of(vectors)
    stack = Stack(builder("mer-attention"), fits, targets)
    for epoch in range(4):
        stack.train_epoch(epoch, 10)
    for number, fit in enumerate(fits):
        weights = ordinary_loop(number, fit, targets, epochs=4, batch_size=10)
        for name, tensor in weights.items():
            torch.testing.assert_close(stack.weights[name][number].detach(), tensor, rtol=1e-5, atol=1e-6)


def ordinary_loop(number, fit, targets, *, epochs, batch_size):
    """One model, one batch after the other, with masks from the same streams."""
    torch.manual_seed(derive(fit.seed, "initial weights"))
    model = builder("mer-attention")(number)
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=fit.lr, weight_decay=fit.weight_decay)
    counts = torch.bincount(targets[fit.train], minlength=CLASSES).double()
    weights = (counts**-fit.balance).float()
    for epoch in range(epochs):
        stream = np.random.Philox(key=derive(fit.seed, "dropout", epoch))
        order = generator(fit.seed, "order", epoch).permutation(fit.train)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            inputs = [
                (matrix[rows] - standard.mean) * standard.scale
                for matrix, standard in zip(fit.vectors, fit.standardisations, strict=True)
            ]
            handles = []
            for module, width in zip(dropouts, (DIMS[0], 8, DIMS[1], 8, 16, 8), strict=True):
                module.eval()
                if not module.p:
                    continue
                drawn = stream.random_raw(-(-batch_size * width // 4)).view(np.uint16)[: batch_size * width]
                mask = torch.from_numpy((drawn >= round(module.p * 65536)).reshape(batch_size, width))[: len(rows)]
                scaled = mask / (1 - module.p)
                handles.append(module.register_forward_hook(lambda _m, _i, out, scaled=scaled: out * scaled))
            loss = functional.cross_entropy(model(inputs), targets[rows], weight=weights)
            for handle in handles:
                handle.remove()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return {name: tensor.detach() for name, tensor in model.named_parameters()}


def test_a_fit_stops_early_and_its_neighbours_go_on_as_if_it_had_not(material):
    vectors, targets = material
    fits = fits_of(vectors)
    patient = train_stack(builder("concatenation"), fits, targets, Schedule(12, 10, 100, "UAR"))
    stopped = train_stack(builder("concatenation"), fits, targets, Schedule(12, 10, 3, "UAR"))
    lengths = [len(outcome.scores) for outcome in stopped]
    assert min(lengths) < 12
    assert len(set(lengths)) > 1
    for early, whole in zip(stopped, patient, strict=True):
        assert early.scores == pytest.approx(whole.scores[: len(early.scores)])
        best = max(early.scores)
        assert early.inner_score == best
        assert early.best_epoch == early.scores.index(best) + 1
        answers = early.inner.argmax(axis=1)
        assert figure("UAR", confusions(np.asarray(targets)[60:75], answers, CLASSES)) == best


def test_a_diverged_fit_ends_and_leaves_the_others_alone(material):
    vectors, targets = material
    fits = fits_of(vectors, count=2)
    diverging = Fit(vectors, fits[0].train, fits[0].inner, fits[0].outer, seed=1, lr=1e30, weight_decay=0.0)
    schedule = Schedule(3, 10, 10, "UAR")
    wrong, right = train_stack(builder("concatenation"), [diverging, fits[1]], targets, schedule)
    assert wrong.epochs < 3
    assert len(right.scores) == 3
    assert np.isfinite(right.outer).all()


def test_planted_classes_are_learnt(material):
    vectors, targets = material
    clean = [vectors[0].clone(), vectors[1]]
    clean[0][:, :CLASSES] += 4 * functional.one_hot(targets, CLASSES)
    fits = [Fit(clean, np.arange(50), np.arange(50, 70), np.arange(70, 90), seed=0, lr=0.01, weight_decay=0.0)]
    (outcome,) = train_stack(builder("mer-attention"), fits, targets, Schedule(20, 10, 20, "UAR"))
    assert (outcome.outer.argmax(axis=1) == np.asarray(targets)[70:]).mean() > 0.9


def test_figures_are_those_of_the_metrics():
    random = np.random.default_rng(0)
    references, answers = random.choice(4, 200, p=[0.5, 0.3, 0.15, 0.05]), random.integers(0, 4, 200)
    expected = classification_scores(
        {str(n): str(label) for n, label in enumerate(references)}, {str(n): str(a) for n, a in enumerate(answers)}
    )
    counts = confusions(references, answers, 4)
    values = dict(zip(FIGURES, (expected.uar, expected.war, expected.weighted_f1, expected.macro_f1), strict=True))
    for name in FIGURES:
        assert float(figure(name, counts)) == pytest.approx(values[name])
        np.testing.assert_allclose(figure(name, np.stack([counts, 3 * counts])), [values[name]] * 2)


def test_products_in_bfloat16_are_close_and_end_with_the_block():
    left, right = (torch.randn((64, 64), generator=torch.Generator().manual_seed(n)) for n in range(2))
    exact = left @ right
    before = torch.backends.mkldnn.matmul.fp32_precision
    with products_in("bfloat16"):
        rounded = torch.bmm(left[None], right[None])[0]
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.2)
