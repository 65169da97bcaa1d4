"""Train many small models of one shape at once: their weights are one tensor, and each step is one batched product.

Each model has its own clips, data order, dropout stream, learning rate, weight decay, class weights and early stopping.
All random choices are pure functions of the seed of its fit and of the epoch, so a model alone and the same model in a
stack draw the same clips and the same dropout. Their weights then differ only by rounding, since a product of another
size adds up in another order: within 1e-5 relative after 20 steps in float32 (tests/trainer/test_stacked_training.py).

Any `nn.Module` from a sequence of (B, D_m) to scores (B, C) can be stacked if it works under `torch.vmap` and drops
out by `nn.Dropout` modules only; a call of `functional.dropout` is refused by vmap.
Shapes: N models in the stack, B clips per step, D_m width of modality m, C classes, n clips in all.
Source of the optimizer: AdamW, arXiv 1711.05101; it agrees with `torch.optim.AdamW`. Knows no store and no file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fusion_train.search.figures import confusions, figure
from fusion_train.seeding import derive, generator

BETAS, EPSILON = (0.9, 0.999), 1e-8
BLOCK_VALUES = 1 << 17
"""Weights that the optimizer updates at a time on a CPU: they and their moments stay in the processor's cache."""
PREDICTED_VALUES = 1 << 24
"""Values of the vectors that are predicted at a time."""
_BUILDING = threading.Lock()
"""Initial weights are drawn from torch's global generator, which stacks on other threads draw from too."""


@dataclass(frozen=True, eq=False)
class Standardisation:
    """Mean and inverse deviation (D,) of a feature over the training clips of a fit."""

    mean: Tensor
    scale: Tensor

    @classmethod
    def of(cls, vectors: Tensor) -> Standardisation:
        """Measure (n, D); a constant dimension is only shifted."""
        deviation, mean = torch.std_mean(vectors, dim=0, correction=0)
        return cls(mean, torch.where(deviation > 0, 1 / deviation.clamp_min(1e-12), 1.0))


@dataclass(frozen=True, eq=False)
class Fit:
    """One model to train: what it reads, and how it is trained."""

    vectors: Sequence[Tensor]
    """One (n, D_m) float32 per modality, shared by all fits."""
    train: np.ndarray
    inner: np.ndarray
    outer: np.ndarray
    """Row numbers of the clips: trained on; early stopping and choice; only predicted."""
    seed: int
    lr: float
    weight_decay: float
    balance: float = 0.0
    """Loss of a clip is weighted by (number of clips of its class)^-balance; 1 gives classes equal weight."""
    standardisations: Sequence[Standardisation] = ()


@dataclass
class Fitted:
    """Outcome of one fit: that of its best epoch by the inner clips, the earlier of equal ones."""

    inner_score: float = 0.0
    best_epoch: int = 0
    """Counted from 1; 0 if every epoch diverged."""
    epochs: int = 0
    scores: list[float] = field(default_factory=list)
    """Inner score after each epoch."""
    inner: np.ndarray = field(default_factory=lambda: np.empty(0))
    outer: np.ndarray = field(default_factory=lambda: np.empty(0))
    """(clips, C) float32 probabilities of the inner and of the outer clips."""


@dataclass(frozen=True)
class Schedule:
    """What all fits of a stack share."""

    epochs: int
    batch_size: int
    patience: int
    """Epochs without a better inner score after which a fit stops."""
    main: str
    """The figure on the inner clips, see `figures`."""
    keep_last: bool = False
    """Whether the weights of the last epoch are kept, for fits without inner clips, in place of the best ones."""


class DropoutMask(nn.Module):
    """Stands in for an `nn.Dropout`: multiplies by a mask from outside, or passes its input on."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.mask: Tensor | None = None
        self.shape: torch.Size | None = None
        """Shape of the input of one clip, after the first forward pass."""

    def forward(self, values: Tensor) -> Tensor:
        self.shape = values.shape[1:]
        return values if self.mask is None else values * self.mask


class Optimizer:
    """AdamW over stacked tensors (N, …) with one learning rate and one decay per model."""

    def __init__(self, weights: Sequence[Tensor], lr: Tensor, weight_decay: Tensor) -> None:
        """`lr` and `weight_decay` are (N,)."""
        self.weights = [tensor.detach() for tensor in weights]  # the same memory: the model sees the updates
        self.lr, self.weight_decay = lr, weight_decay
        self.first = [torch.zeros_like(tensor) for tensor in self.weights]
        self.second = [torch.zeros_like(tensor) for tensor in self.weights]
        self.steps = torch.zeros_like(lr)

    def step(self, gradients: Sequence[Tensor], active: Tensor | None = None) -> None:
        """Update the models that are `active` (N,) bool; None: all."""
        rows = None if active is None else active.nonzero().flatten().tolist()
        self.steps += 1 if active is None else active.to(self.steps.dtype)
        steps = self.steps.clamp_min(1)
        rates = -self.lr / (1 - BETAS[0] ** steps)
        roots = (1 - BETAS[1] ** steps).rsqrt()
        decays = 1 - self.lr * self.weight_decay
        for weight, gradient, first, second in zip(self.weights, gradients, self.first, self.second, strict=True):
            each = (-1, *[1] * (weight.ndim - 1))
            rate, root, decay = rates.view(each), roots.view(each), decays.view(each)
            for part in _blocks(weight, rows):
                grads, moment, square = gradient[part], first[part], second[part]
                moment.lerp_(grads, 1 - BETAS[0])
                square.mul_(BETAS[1]).addcmul_(grads, grads, value=1 - BETAS[1])
                divisor = square.sqrt().mul_(root[part]).add_(EPSILON)
                weight[part].mul_(decay[part]).addcdiv_(moment * rate[part], divisor)

    def keep(self, rows: Tensor) -> None:
        """Keep only these models; the stack gives the weights anew."""
        self.first, self.second = (
            [_laid_out(tensor[rows]) for tensor in moments] for moments in (self.first, self.second)
        )
        self.lr, self.weight_decay, self.steps = self.lr[rows], self.weight_decay[rows], self.steps[rows]


def _laid_out(weights: Tensor) -> Tensor:
    """Lay matrices (N, out, in) out in memory as their gradients are, by columns, so that an update reads in order."""
    return weights.transpose(1, 2).contiguous().transpose(1, 2) if weights.ndim == 3 else weights


def _blocks(weight: Tensor, rows: Sequence[int] | None) -> list[slice]:
    """Slices of models that are updated at a time."""
    if rows is not None:
        return [slice(row, row + 1) for row in rows]
    count = len(weight) if weight.device.type != "cpu" else max(1, BLOCK_VALUES // weight[0].numel())
    return [slice(start, start + count) for start in range(0, len(weight), count)]


class Stack:
    """The models of some fits, stacked, while they train."""

    def __init__(self, build: Callable[[int], nn.Module], fits: Sequence[Fit], targets: Tensor) -> None:
        """Build the models.

        Args:
            build: number of a fit -> its head; all heads have the same shapes.
            targets: (n,) class of each clip.
        """
        models = []
        for number, fit in enumerate(fits):
            with _BUILDING, torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(fit.seed, "initial weights"))
                models.append(build(number))
        device = targets.device
        self.network = models[0].to(device)
        rates = [[child.p for _, _, child in _dropouts(model)] for model in models]
        self.rates = torch.tensor(rates, dtype=torch.float64)  # [n, dropouts]
        self.weights, self.buffers = (
            {name: torch.stack([dict(tensors(model))[name].detach() for model in models]).to(device) for name in names}
            for tensors, names in (
                (nn.Module.named_parameters, [name for name, _ in models[0].named_parameters()]),
                (nn.Module.named_buffers, [name for name, _ in models[0].named_buffers()]),
            )
        )
        self.weights = {name: _laid_out(weight).requires_grad_() for name, weight in self.weights.items()}
        self.dropouts = _replace_dropouts(self.network)
        self.network.requires_grad_(False)
        self.fits, self.targets = list(fits), targets
        self.optimizer = Optimizer(
            list(self.weights.values()),
            torch.tensor([fit.lr for fit in fits], device=device),
            torch.tensor([fit.weight_decay for fit in fits], device=device),
        )
        self.class_weights = torch.stack([_class_weights(fit, targets) for fit in fits])

    def __len__(self) -> int:
        return len(self.fits)

    def train_epoch(self, epoch: int, batch_size: int) -> Tensor:
        """Train every model on all of its clips once; returns the mean loss (N,), not finite where one diverged."""
        orders = [generator(fit.seed, "order", epoch).permutation(fit.train) for fit in self.fits]
        streams = [np.random.Philox(key=derive(fit.seed, "dropout", epoch)) for fit in self.fits]
        steps = [-(-len(order) // batch_size) for order in orders]
        total = torch.zeros(len(self), device=self.targets.device)
        for step in range(max(steps)):
            rows = [order[step * batch_size : (step + 1) * batch_size] for order in orders]
            active = None if step < min(steps) else torch.tensor([step < count for count in steps])
            losses = self._losses(rows, streams, batch_size)
            gradients = torch.autograd.grad(losses.sum(), list(self.weights.values()))
            self.optimizer.step(gradients, active)
            total += losses.detach()
        return total / torch.tensor(steps, device=total.device)

    def _losses(self, rows: Sequence[np.ndarray], streams: Sequence[np.random.Philox], batch_size: int) -> Tensor:
        """Mean loss (N,) of each model on its rows; 0 for a model without rows."""
        vectors = stacked_vectors(self.fits, rows, batch_size)
        targets, counted = self._targets(rows, batch_size)
        masks = self._masks(vectors, streams)

        def loss(weights, buffers, vectors, targets, counted, class_weights, masks):
            for number, mask in masks.items():
                self.dropouts[number].mask = mask
            try:
                scores = functional_call(self.network, (weights, buffers), (vectors,))
            finally:
                for module in self.dropouts:
                    module.mask = None
            share = class_weights[targets] * counted
            losses = functional.cross_entropy(scores.float(), targets, reduction="none")
            return (losses * share).sum() / share.sum().clamp_min(1e-12)

        return torch.vmap(loss)(self.weights, self.buffers, vectors, targets, counted, self.class_weights, masks)

    def _targets(self, rows: Sequence[np.ndarray], size: int) -> tuple[Tensor, Tensor]:
        """Classes and which rows count, (N, size) each."""
        index = torch.zeros((len(rows), size), dtype=torch.int64)
        counted = torch.zeros((len(rows), size))
        for number, own in enumerate(rows):
            index[number, : len(own)] = torch.from_numpy(own)
            counted[number, : len(own)] = 1
        return self.targets[index.to(self.targets.device)], counted.to(self.targets.device)

    def _masks(self, vectors: Sequence[Tensor], streams: Sequence[np.random.Philox]) -> dict[int, Tensor]:
        """Number of a dropout -> mask (N, B, …), 0 or 1 / (1 - rate), from 16 random bits per value.

        A model whose rate is 0 draws nothing; a dropout whose rate is 0 in all models has no mask.
        """
        size = vectors[0].shape[1]
        used = self.rates.any(dim=0).nonzero().flatten().tolist()
        if used and self.dropouts[used[0]].shape is None:
            self.predict([np.zeros(1, dtype=np.int64)] * len(self))  # measures the inputs of the dropouts
        masks = {}
        for number in used:
            shape = self.dropouts[number].shape
            assert shape is not None, "a dropout that the forward pass does not use"
            count = size * shape.numel()
            mask = np.empty((len(self), count), dtype=np.float32)
            for row, (stream, rate) in enumerate(zip(streams, self.rates[:, number].tolist(), strict=True)):
                if not rate:
                    mask[row] = 1
                else:
                    drawn = stream.random_raw(-(-count // 4)).view(np.uint16)[:count]
                    kept = drawn >= round(rate * 65536)
                    np.multiply(kept, np.float32(1 / (1 - rate)), out=mask[row], casting="unsafe")
            masks[number] = torch.from_numpy(mask).view(len(self), size, *shape).to(vectors[0].device)
        return masks

    def predict(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Probabilities (clips, C) float32 of each model for its rows."""
        return predict(self.network, self.weights, self.buffers, self.fits, rows)

    def copy_weights(self, into: dict[str, Tensor], here: Tensor, there: Tensor) -> None:
        """Copy the weights and buffers of models `here` of this stack to the rows `there` of other tensors."""
        for name, tensor in (self.weights | self.buffers).items():
            into[name][there] = tensor.detach()[here]

    def keep(self, rows: Tensor) -> None:
        """Keep only these models."""
        self.weights = {
            name: _laid_out(tensor.detach()[rows]).requires_grad_() for name, tensor in self.weights.items()
        }
        self.buffers = {name: tensor[rows] for name, tensor in self.buffers.items()}
        self.optimizer.keep(rows)
        self.optimizer.weights = [tensor.detach() for tensor in self.weights.values()]
        self.class_weights, self.rates = self.class_weights[rows], self.rates[rows.cpu()]
        self.fits = [self.fits[row] for row in rows.tolist()]


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Round the factors of matrix products to bfloat16 inside the block, where the processor is faster with it."""
    backend: Any = torch.backends.mkldnn  # its settings of products are attributes that it makes when it is imported
    before = backend.matmul.fp32_precision
    backend.matmul.fp32_precision = "bf16" if precision == "bfloat16" else "ieee"
    try:
        yield
    finally:
        backend.matmul.fp32_precision = before


def train_stack(
    build: Callable[[int], nn.Module],
    fits: Sequence[Fit],
    targets: Tensor,
    schedule: Schedule,
    stopped: Callable[[], bool] = lambda: False,
) -> list[Fitted]:
    """Train all fits to the end of the schedule, or until their inner score stops rising; one outcome per fit.

    Args:
        build, targets: see `Stack`.
        stopped: asked before each epoch; if it returns True, training ends and the outcomes must not be used.
    """
    stack = Stack(build, fits, targets)
    fitted = [Fitted() for _ in fits]
    best = {name: tensor.detach().clone() for name, tensor in (stack.weights | stack.buffers).items()}
    classes = targets.cpu().numpy()
    num_classes = stack.class_weights.shape[1]
    places = list(range(len(fits)))  # place in the stack -> number of the fit
    for epoch in range(schedule.epochs):
        if stopped():
            return fitted
        losses = stack.train_epoch(epoch, schedule.batch_size)
        finite = losses.isfinite().tolist()
        predicted = stack.predict([fit.inner for fit in stack.fits])
        improved = []
        for place, number in enumerate(places):
            outcome = fitted[number]
            score = 0.0
            if not schedule.keep_last:
                answers = predicted[place].argmax(axis=1)
                score = float(figure(schedule.main, confusions(classes[fits[number].inner], answers, num_classes)))
            outcome.epochs = epoch + 1
            outcome.scores.append(score if finite[place] else 0.0)
            better = not outcome.best_epoch or score > outcome.inner_score or schedule.keep_last
            if finite[place] and better:
                outcome.inner_score, outcome.best_epoch = score, epoch + 1
                improved.append(place)
        if improved:
            here = torch.tensor(improved)
            stack.copy_weights(best, here, torch.tensor([places[place] for place in improved]))
        going_on = [
            place
            for place, number in enumerate(places)
            if finite[place] and fitted[number].epochs - fitted[number].best_epoch < schedule.patience
        ]
        if not going_on:
            break
        if len(going_on) < len(places):
            stack.keep(torch.tensor(going_on))
            places = [places[place] for place in going_on]
    _predict_best(stack.network, fits, best, fitted)
    return fitted


def _predict_best(
    network: nn.Module,
    fits: Sequence[Fit],
    best: Mapping[str, Tensor],
    fitted: Sequence[Fitted],
) -> None:
    """Predict the inner and outer clips of all fits with the weights of their best epochs."""
    names = {name for name, _ in network.named_parameters()}
    weights = {name: tensor for name, tensor in best.items() if name in names}
    buffers = {name: tensor for name, tensor in best.items() if name not in names}
    inner = predict(network, weights, buffers, fits, [fit.inner for fit in fits])
    outer = predict(network, weights, buffers, fits, [fit.outer for fit in fits])
    for outcome, own, others in zip(fitted, inner, outer, strict=True):
        outcome.inner, outcome.outer = own, others


@torch.no_grad()
def predict(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    fits: Sequence[Fit],
    rows: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """Probabilities (clips, C) float32 of each model for its rows."""
    network.eval()

    def scores(weights, buffers, vectors):
        return functional_call(network, (weights, buffers), (vectors,)).float().softmax(dim=1)

    width = sum(matrix.shape[1] for matrix in fits[0].vectors)
    size = max(16, PREDICTED_VALUES // (len(fits) * width))
    parts = []
    for start in range(0, max(map(len, rows)), size):
        own = [clips[start : start + size] for clips in rows]
        vectors = stacked_vectors(fits, own, max(map(len, own)))
        parts.append(torch.vmap(scores)(dict(weights), dict(buffers), vectors).cpu().numpy())
    network.train()
    joined = np.concatenate(parts, axis=1) if parts else np.empty((len(rows), 0, 0), dtype=np.float32)
    return [joined[number, : len(clips)] for number, clips in enumerate(rows)]


def stacked_vectors(fits: Sequence[Fit], rows: Sequence[np.ndarray], size: int) -> list[Tensor]:
    """Return one (N, size, D_m) per modality; rows past the end of a fit's own are zero."""
    taken = []
    for m, example in enumerate(fits[0].vectors):
        out = torch.empty((len(fits), size, example.shape[1]), device=example.device)
        for number, (fit, own) in enumerate(zip(fits, rows, strict=True)):
            filled = out[number, : len(own)]
            torch.index_select(fit.vectors[m], 0, torch.from_numpy(own).to(example.device), out=filled)
            out[number, len(own) :] = 0
            if fit.standardisations:
                standard = fit.standardisations[m]
                filled.sub_(standard.mean).mul_(standard.scale)
        taken.append(out)
    return taken


def _class_weights(fit: Fit, targets: Tensor) -> Tensor:
    """(C,) weights of the classes, 1 on average over the training clips of the fit."""
    counts = torch.bincount(targets[torch.from_numpy(fit.train).to(targets.device)], minlength=int(targets.max()) + 1)
    weights = counts.clamp_min(1).double() ** -fit.balance
    return (weights * counts.sum() / (weights * counts).sum()).float()


def _dropouts(network: nn.Module) -> list[tuple[nn.Module, str, nn.Dropout]]:
    """Every dropout with its parent and its name there, in one order for all heads of a shape."""
    return [
        (module, name, child)
        for module in network.modules()
        for name, child in module.named_children()
        if isinstance(child, nn.Dropout)
    ]


def _replace_dropouts(network: nn.Module) -> list[DropoutMask]:
    """Put a `DropoutMask` in place of every `nn.Dropout`."""
    masks = []
    for module, name, child in _dropouts(network):
        masks.append(DropoutMask(child.p))
        setattr(module, name, masks[-1])
    return masks
