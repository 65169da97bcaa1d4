"""Several models on one frozen language model: its layers run once for all, everything trained is each one's own.

    member 0: fusion, projectors -> embeddings (b, L, H) ─┐            ┌─ logits -> loss of member 0
    member 1: fusion, projectors -> embeddings (b, L, H) ─┼─ base ─────┼─ …
    member n-1: …                                        ─┘ + LoRA     └─ …

On a GPU the base sees n·b rows, and LoRA layers of one rank are stacked, A (n, r, in) and B (n, out, r), and applied by
`bmm`: a member equals itself alone up to rounding. On a CPU, which is busy with one member's rows already and rounds
products of other sizes differently, the members take turns on the one base: equal to the bit, and the activations of
one in memory. Weights stay the members' own parameters, so that optimizer, clipping and checkpoint are those it has
alone. Each draws its dropout from a random stream of its own, in the order in which it would draw alone. Losses are
summed, never averaged: no member's gradient depends on the others.

Shapes: n members, b rows of each, L tokens, H width of the LLM. Knows no configuration and no optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fusion_train.models.answering import plain_generation
from fusion_train.models.emotion_llama import EmotionLlama, ModelOutput
from fusion_train.models.packed_attention import row_logits, use_packed_attention

ADAPTER = "default"


def shared_copy(module: nn.Module) -> nn.Module:
    """Copy the modules and share every parameter and buffer: a second model without a second set of weights."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


class RandomStream:
    """The random numbers of one member, drawn from torch's own generator in turns with the others."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state: Tensor | None = None

    def seed(self, seed: int) -> None:
        """Begin as `torch.manual_seed(seed)` does."""
        torch.manual_seed(seed)
        self._state = self._get()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """What is drawn inside the block comes from this stream."""
        if self._state is None:
            yield
            return
        self._set(self._state)
        yield
        self._state = self._get()

    def _get(self) -> Tensor:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()

    def _set(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)


ScaledLoss = Callable[[int, ModelOutput], Tensor]
"""(place of a model, its output) -> the scalar whose gradient is taken."""
Autocast = Callable[[], AbstractContextManager[Any]]


class OneModel:
    """A model that trains alone, with the interface of `ModelGroup`."""

    stacked = False

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def keep(self, places: Sequence[int]) -> None:
        """Choose the models that take part in what follows: of one model, that one."""

    def seed(self, place: int, seed: int) -> None:
        """Start the random stream of dropout anew."""
        torch.manual_seed(seed)

    def train(self, mode: bool = True) -> None:
        self._model.train(mode)

    def forward(self, tensors: Mapping[str, Any]) -> list[ModelOutput]:
        """Run the model on one batch; returns a list of one output."""
        return [self._model(**tensors)]

    def learn(self, tensors: Mapping[str, Any], loss: ScaledLoss, autocast: Autocast) -> list[ModelOutput]:
        """Run forward under autocast and backward from `loss(0, output)`; returns the output without its graph."""
        with autocast():
            output = self._model(**tensors)
        loss(0, output).backward()
        return [output.detached()]


class ModelGroup:
    """Models on one frozen base that take the same batches; some may leave while the others go on."""

    def __init__(self, base: nn.Module, members: Sequence[EmotionLlama], *, stacked: bool | None = None) -> None:
        """Args:
        base: the language model without adapters; all members share its weights.
        members: models over `shared_copy(base)`, with LoRA or without.
        stacked: run the base on the rows of all members at once; None: only on a GPU.
        """
        device = next(base.parameters()).device
        self.stacked = device.type == "cuda" if stacked is None else stacked
        self._members = list(members)
        self._streams = [RandomStream(device) for _ in members]
        self._present = list(range(len(members)))
        self.llm = shared_copy(base)
        self.llm.generation_config = plain_generation(self.llm.generation_config)
        use_packed_attention(self.llm)
        adapted = [_adapted_layers(member.llm) for member in members]
        for name in sorted(set().union(*adapted)):
            layers = [layers_of_member.get(name) for layers_of_member in adapted]
            parent, _, last = name.rpartition(".")
            linear = self.llm.get_submodule(name)
            stacked_lora = _StackedLora(linear, layers, self._streams, self._present)
            setattr(self.llm.get_submodule(parent), last, stacked_lora)

    @property
    def batching(self) -> bool:
        """Whether the base answers prompts of several rows at once as it answers each alone."""
        return self._members[0].abilities.batching

    def keep(self, places: Sequence[int]) -> None:
        """Choose the members that take part in what follows, by their places."""
        self._present[:] = places

    def seed(self, place: int, seed: int) -> None:
        """Start the random stream of one member's dropout anew."""
        self._streams[place].seed(seed)

    def train(self, mode: bool = True) -> None:
        self.llm.train(mode)
        for member in self._members:
            member.train(mode)

    def forward(self, tensors: Mapping[str, Any]) -> list[ModelOutput]:
        """Run one batch through all present members; each output equals that of `EmotionLlama.forward` alone."""
        if not self.stacked:
            return [self._alone(place, tensors) for place in self._present]
        present = [(self._members[place], self._streams[place]) for place in self._present]
        embedded = []
        for member, stream in present:
            with stream.drawing():
                embedded.append(member.embed(tensors["token_ids"], tensors["features"], tensors["present"]))
        layout = {name: tensors[name] for name in ("position_ids", "kept", "layout")}
        together = present[0][0].abilities.packing
        logits = row_logits(self.llm, torch.cat(embedded), **layout, together=together).chunk(len(present))
        of_losses = {name: tensors[name] for name in ("targets", "owners", "num_samples")}
        return [member.losses(own, **of_losses) for (member, _), own in zip(present, logits, strict=True)]

    def learn(self, tensors: Mapping[str, Any], loss: ScaledLoss, autocast: Autocast) -> list[ModelOutput]:
        """Run forward under autocast and backward from `loss(place, output)` of each present member.

        Returns:
            Outputs of the present members, in their order, without graphs.
        """
        if self.stacked:
            with autocast():
                outputs = self.forward(tensors)
            losses = [loss(place, output) for place, output in zip(self._present, outputs, strict=True)]
            torch.stack(losses).sum().backward()
            return [output.detached() for output in outputs]
        outputs = []
        for place in self._present:  # each backward at once, so that only one member's activations are in memory
            with autocast():
                output = self._alone(place, tensors)
            loss(place, output).backward()
            outputs.append(output.detached())
        return outputs

    def _alone(self, place: int, tensors: Mapping[str, Any]) -> ModelOutput:
        with self._streams[place].drawing():
            return self._members[place](**tensors)


class GroupAnswering:
    """Members as one model for `answering`: the rows of its batches are the members' one after another."""

    def __init__(self, group: ModelGroup, members: Sequence[EmotionLlama]) -> None:
        self.llm = group.llm
        self.abilities = members[0].abilities
        self._members = members

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Of the first member, which tell where all are."""
        return self._members[0].named_parameters()

    def embed(self, token_ids: Tensor, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """(n·b, L) ids and features -> (n·b, L, H), each part by its member."""
        count = len(self._members)
        parts = [tensor.chunk(count) for tensor in (token_ids, present)]
        by_modality = {name: tensor.chunk(count) for name, tensor in features.items()}
        return torch.cat(
            [
                member.embed(parts[0][n], {name: chunks[n] for name, chunks in by_modality.items()}, parts[1][n])
                for n, member in enumerate(self._members)
            ]
        )


class _StackedLora(nn.Module):
    """A frozen linear layer with the adapters of every member: (n·b, L, in) -> (n·b, L, out)."""

    def __init__(
        self, base: nn.Module, layers: Sequence[nn.Module | None], streams: Sequence[RandomStream], present: list[int]
    ) -> None:
        super().__init__()
        self.base = base
        # Plain attributes: the adapters are the members' modules, not this one's.
        self.__dict__.update(_layers=list(layers), _streams=streams, _present=present)

    def forward(self, x: Tensor) -> Tensor:
        result = self.base(x)
        layers = [self._layers[n] for n in self._present]
        count = len(layers)
        rows = x.unflatten(0, (count, -1)).flatten(1, -2)  # [n, b * l, in]
        first = next((layer for layer in layers if layer is not None), None)
        if first is None:
            return result
        rows = rows.to(first.lora_A[ADAPTER].weight.dtype)
        deltas = _stacked(self._dropped(rows, layers), layers)
        shape = (count, -1, result.shape[-1])
        parts = [
            part if delta is None else part + delta for part, delta in zip(result.reshape(shape), deltas, strict=True)
        ]
        return torch.stack(parts).view_as(result).to(result.dtype)

    def _dropped(self, rows: Tensor, layers: Sequence[nn.Module | None]) -> list[Tensor]:
        inputs = []
        for place, (row, layer) in enumerate(zip(rows, layers, strict=True)):
            dropout = nn.Identity() if layer is None else layer.lora_dropout[ADAPTER]
            if self.training and not isinstance(dropout, nn.Identity):
                with self._streams[self._present[place]].drawing():
                    row = dropout(row)
            inputs.append(row)
        return inputs


def _stacked(inputs: Sequence[Tensor], layers: Sequence[nn.Module | None]) -> list[Tensor | None]:
    """(b · L, in) of each member -> what its adapter adds (b · L, out), by two batched products a rank."""
    deltas: list[Tensor | None] = [None] * len(layers)
    for places in _by_rank(layers):
        chosen = [layers[place] for place in places]
        down = torch.stack([layer.lora_A[ADAPTER].weight for layer in chosen])  # [g, r, in]
        up = torch.stack([layer.lora_B[ADAPTER].weight for layer in chosen])  # [g, out, r]
        rows = torch.stack([inputs[place] for place in places])  # [g, b * l, in]
        scales = [layer.scaling[ADAPTER] for layer in chosen]
        adapted = rows.bmm(down.transpose(1, 2)).bmm(up.transpose(1, 2))
        for place, delta, scale in zip(places, adapted, scales, strict=True):
            deltas[place] = delta * scale
    return deltas


def _by_rank(layers: Sequence[nn.Module | None]) -> list[list[int]]:
    """Places of the layers of each rank."""
    ranks: dict[int, list[int]] = {}
    for place, layer in enumerate(layers):
        if layer is not None:
            ranks.setdefault(layer.r[ADAPTER], []).append(place)
    return list(ranks.values())


def _adapted_layers(llm: nn.Module) -> dict[str, nn.Module]:
    """Name in the plain language model -> the layer of peft that adapts it."""
    if not hasattr(llm, "get_base_model"):
        return {}
    return {name: module for name, module in llm.get_base_model().named_modules() if hasattr(module, "lora_A")}


@contextmanager
def evaluating(models: OneModel | ModelGroup) -> Iterator[None]:
    """Switch dropout off inside the block."""
    models.train(False)
    try:
        yield
    finally:
        models.train(True)
