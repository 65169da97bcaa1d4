"""Train several models on one frozen language model: its layers run once for all members of the group.

    member 0: fusion, projectors -> embeddings (b, L, H) ─┐            ┌─ logits -> loss of member 0
    member 1: fusion, projectors -> embeddings (b, L, H) ─┼─ base ─────┼─ …
    member n-1: …                                        ─┘ + LoRA     └─ …

On a GPU the base runs on n·b rows at once. LoRA layers of equal rank are stacked, A (n, r, in) and B (n, out, r), and
applied by `bmm`; a member's results equal those of the member alone up to rounding. A CPU is fully used by the rows of
one member, and rounds matrix products of another size differently; there the members run one after the other on the one
base: results are equal to the bit, and memory holds the activations of one member. Every member keeps its own trained
parameters, so that optimizer, clipping and checkpoint are those of the member alone. Each member draws dropout from its
own random stream, in the order of training alone. Losses are summed and not averaged: no member's gradient depends on
the others.

Shapes: n members, b rows per member, L tokens, H width of the LLM. Knows no configuration and no optimizer.
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
from fusion_train.models.lora import adapter_input
from fusion_train.models.packed_attention import row_logits, use_packed_attention

ADAPTER = "default"


def shared_copy(module: nn.Module) -> Any:
    """Copy the modules of a model; the copy shares every parameter and buffer with the original."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


class RandomStream:
    """The random stream of one member; torch's generator takes its state while the member draws."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._state: Tensor | None = None

    def seed(self, seed: int) -> None:
        """Start the stream as `torch.manual_seed(seed)` does."""
        torch.manual_seed(seed)
        self._state = self._get()

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw from this stream inside the block; a stream without a seed leaves torch's generator as it is."""
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

    def __init__(self, base: Any, members: Sequence[EmotionLlama], *, stacked: bool | None = None) -> None:
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
        self.llm: Any = shared_copy(base)
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
        row = {name: tensors[name] for name in ("position_ids", "kept", "layout")}
        together = present[0][0].abilities.packing
        logits = row_logits(self.llm, torch.cat(embedded), **row, together=together).chunk(len(present))
        supervision = {name: tensors[name] for name in ("targets", "owners", "num_samples")}
        return [
            member.losses(member_logits, **supervision)
            for (member, _), member_logits in zip(present, logits, strict=True)
        ]

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
    """The members as one model for `answering`; a batch holds the rows of the first member, then of the next, …."""

    def __init__(self, group: ModelGroup, members: Sequence[EmotionLlama]) -> None:
        self.llm: Any = group.llm
        self.abilities = members[0].abilities
        self.num_models = len(members)
        self._members = members

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters of the first member: their device is that of all members."""
        return self._members[0].named_parameters()

    def embed(self, token_ids: Tensor, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Embed (n·b, L) ids and the features of their clips -> (n·b, L, H), the rows of each member by the member."""
        count = len(self._members)
        ids, masks = token_ids.chunk(count), present.chunk(count)
        chunks = {name: tensor.chunk(count) for name, tensor in features.items()}
        return torch.cat(
            [
                member.embed(ids[n], {name: tensors[n] for name, tensors in chunks.items()}, masks[n])
                for n, member in enumerate(self._members)
            ]
        )


class _StackedLora(nn.Module):
    """A frozen linear layer with the adapters of every present member: (n·b, L, in) -> (n·b, L, out)."""

    def __init__(
        self, base: nn.Module, adapters: Sequence[Any], streams: Sequence[RandomStream], present: list[int]
    ) -> None:
        """Args:
        base: the linear layer.
        adapters: the LoRA layer of each member; None for a member without one here.
        streams: the random stream of each member.
        present: places of the present members; the group changes this list.
        """
        super().__init__()
        self.base = base
        # Set without `nn.Module.__setattr__`: the adapters are submodules of their members, not of this layer.
        self.__dict__.update(_adapters=list(adapters), _streams=streams, _present=present)

    _adapters: list[Any]
    _streams: Sequence[RandomStream]
    _present: list[int]

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x)
        adapters = [self._adapters[n] for n in self._present]
        count = len(adapters)
        first = next((adapter for adapter in adapters if adapter is not None), None)
        if first is None:
            return result
        rows = x.unflatten(0, (count, -1)).flatten(1, -2)  # [n, b * l, in]
        rows = adapter_input(rows, first.lora_A[ADAPTER].weight.dtype)
        deltas = _lora_products(self._with_dropout(rows, adapters), adapters)
        by_member = result.reshape(count, -1, result.shape[-1])
        sums = [output if delta is None else output + delta for output, delta in zip(by_member, deltas, strict=True)]
        return torch.stack(sums).view_as(result).to(result.dtype)

    def _with_dropout(self, rows: Tensor, adapters: Sequence[Any]) -> list[Tensor]:
        """Apply each member's dropout to its rows (b · L, in), in training."""
        inputs = []
        for number, (row, adapter) in enumerate(zip(rows, adapters, strict=True)):
            dropout = nn.Identity() if adapter is None else adapter.lora_dropout[ADAPTER]
            if self.training and not isinstance(dropout, nn.Identity):
                with self._streams[self._present[number]].drawing():
                    row = dropout(row)
            inputs.append(row)
        return inputs


def _lora_products(inputs: Sequence[Tensor], adapters: Sequence[Any]) -> list[Tensor | None]:
    """Compute (b · L, out) that each adapter adds for (b · L, in), by two batched products per rank."""
    deltas: list[Tensor | None] = [None] * len(adapters)
    for numbers in _by_rank(adapters):
        chosen = [adapters[number] for number in numbers]
        down = torch.stack([adapter.lora_A[ADAPTER].weight for adapter in chosen])  # [g, r, in]
        up = torch.stack([adapter.lora_B[ADAPTER].weight for adapter in chosen])  # [g, out, r]
        rows = torch.stack([inputs[number] for number in numbers])  # [g, b * l, in]
        products = rows.bmm(down.transpose(1, 2)).bmm(up.transpose(1, 2))
        for number, product, adapter in zip(numbers, products, chosen, strict=True):
            deltas[number] = product * adapter.scaling[ADAPTER]
    return deltas


def _by_rank(adapters: Sequence[Any]) -> list[list[int]]:
    """Group the numbers of the adapters by rank."""
    ranks: dict[int, list[int]] = {}
    for number, adapter in enumerate(adapters):
        if adapter is not None:
            ranks.setdefault(adapter.r[ADAPTER], []).append(number)
    return list(ranks.values())


def _adapted_layers(llm: Any) -> dict[str, Any]:
    """Return name in the language model without adapters -> LoRA layer of peft."""
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
