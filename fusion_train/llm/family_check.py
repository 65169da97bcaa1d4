"""Measure what a language model computes for several samples at once as it does for each alone.

transformers has some two hundred families. A layer with a recurrent state or a convolution runs on from one sample of
a row into the next; ALiBi counts distances along the row; a window may be applied by a mask that a layout replaces.
So nothing is believed: short made-up samples go through the model alone, and then

    packed      in one row of two clips and a shared prefix, the second clip said in two ways
    batched     padded on the left, labels as continuations of one cache
    generated   by `generate`, against the largest logits of plain forward passes

What does not hold for rows or batches is done sample by sample; what does not hold even for one sample is refused.
Measured on the first layers that have every kind of layer, in the weights' own dtype; on all layers where these fail.
One verdict a configuration and process. Shapes: L tokens, V vocabulary, H width. Knows no configuration of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fusion_train.data.packing import Encoded, Packed, pack
from fusion_train.errors import ModelError
from fusion_train.models.answering import greedy_text, label_log_probabilities, positions
from fusion_train.models.emotion_llama import Abilities
from fusion_train.models.packed_attention import row_logits
from fusion_train.models.parts import decoder_layers
from fusion_train.models.token_streams import SOFT_TOKEN

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Of the standard deviation of the logits; a leak, a wrong position or a lost window is some tenths and more."""
NOISE_FACTOR = 16
"""How much larger than what trailing tokens change (nothing, but for rounding) a difference may be."""
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")
LONGEST_WINDOW = 1100
"""Longer windows are not filled here: hardly a sample is as long."""
NEW_TOKENS = 3
RAISED = (ModelError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ImportError)
"""What a family may raise on inputs that it does not take."""

_known: dict[tuple[str, ...], Abilities] = {}


def abilities_of(llm: nn.Module) -> Abilities:
    """What `llm`, a causal LM of transformers without adapters, can do; one on the meta device is taken to do all.

    Raises:
        ModelError: samples cannot be trained on, or answers not generated, even one by one.
    """
    weight = llm.get_input_embeddings().weight
    if weight.is_meta:
        return Abilities()
    key = (llm.config.to_json_string(use_diff=False), str(weight.dtype), str(weight.device))
    if key not in _known:
        was_training = llm.training
        llm.eval()
        try:
            _known[key] = _measured(llm)
        finally:
            llm.train(was_training)
    return _known[key]


def _measured(llm: nn.Module) -> Abilities:
    try:
        with _first_layers(llm):
            verdict = _Check(llm).verdict()
        if verdict == Abilities():
            return verdict
    except RAISED:
        pass  # a few layers of it may be no model of its family: all of them decide
    return _Check(llm).verdict()


class _Check:
    """One model under test."""

    def __init__(self, llm: nn.Module) -> None:
        self.llm = llm
        config = llm.config.get_text_config()
        self.family = config.model_type
        weight = llm.get_input_embeddings().weight
        self.device, self.vocabulary = weight.device, len(weight)
        self.words = _Words(llm)
        windows = [size for name in WINDOWS if isinstance(size := getattr(config, name, None), int) and size > 0]
        window = min(windows, default=0)
        limit = getattr(config, "max_position_embeddings", None)
        room = limit - 16 if isinstance(limit, int) and limit > 0 else LONGEST_WINDOW
        self.long = max(min(window if window <= LONGEST_WINDOW else 0, room), 6)
        """Tokens of a prefix that fills the window."""
        self.tolerance = TOLERANCE[weight.dtype]
        self.scale = 1.0

    @torch.inference_mode()
    def verdict(self) -> Abilities:
        try:
            self._plain()
        except RAISED as error:
            if isinstance(error, ModelError):
                raise
            raise self._refused("a forward pass over embeddings", f"{type(error).__name__}: {error}") from error
        packing = _holds(self._packed)
        batching = _holds(lambda: self._scored(True)) and _holds(lambda: self._generated(True))
        if not batching:
            for what, check in (("label scores", self._scored), ("generated text", self._generated)):
                try:
                    right = check(False)
                except RAISED as error:
                    raise self._refused(what, f"{type(error).__name__}: {error}") from error
                if not right:
                    raise self._refused(what, "others than plain forward passes give")
        return Abilities(packing=packing, batching=batching)

    def _refused(self, what: str, got: str) -> ModelError:
        return ModelError(
            f'model family "{self.family}"',
            expected=f"{what} of one sample as a causal language model gives it",
            got=" ".join(got.split()).partition(". ")[0][:200],
            next_step="Choose a base of another family with --set model.llm=FOLDER, such as Llama, Qwen or Mistral.",
        )

    def _ids(self, count: int, seed: int) -> list[int]:
        """Token ids that are neither the first (often special) nor the same everywhere."""
        low = min(8, self.vocabulary // 2)
        return [low + (seed * 37 + place * place * 11 + place * 7) % (self.vocabulary - low) for place in range(count)]

    def _alone(self, ids: Sequence[int]) -> Tensor:
        """Logits (L, V) of a sample alone, by nothing but the model: no mask, no position ids, no cache."""
        return self.llm(inputs_embeds=self.words.embed(self._row(ids)), use_cache=False).logits[0].float()

    def _row(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self.device)

    def _near(self, got: Tensor, wanted: Tensor) -> bool:
        return bool((got.float() - wanted).abs().max() <= self.tolerance * self.scale)

    def _plain(self) -> None:
        """Refuse a model that sees later tokens, or positions other than those counted from 0."""
        prompt = self._prompt()
        ids = [*prompt, *self._ids(4, 1)]
        alone = self._alone(ids)
        if not alone.isfinite().all():
            raise self._refused("finite logits", "NaN or infinity")
        self.scale = float(alone.std()) or 1.0
        noise = (self._alone([*ids, *self._ids(5, 2)])[: len(ids)] - alone).abs().max() / self.scale
        if noise > 4 * self.tolerance:
            raise self._refused("logits that do not depend on later tokens", "others")
        self.tolerance = max(self.tolerance, min(NOISE_FACTOR * float(noise), 4 * self.tolerance))
        kept = torch.tensor([1, len(ids) - 1], device=self.device)
        mask = torch.ones(1, len(ids), dtype=torch.long, device=self.device)
        embedded = self.words.embed(self._row(ids))
        given = self.llm(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=False,
            logits_to_keep=kept,
        ).logits
        if given.shape[1] != len(kept) or not self._near(given[0], alone[kept]):
            raise self._refused("logits at chosen places, with positions counted from 0", "others")

    def _prompt(self) -> list[int]:
        return [*self._ids(2, 3), SOFT_TOKEN, SOFT_TOKEN, *self._ids(self.long - 4, 4)]

    def _packed(self) -> bool:
        """Whether samples of a row, a prefix shared or not, are what each is alone, whatever stands beside them."""
        first = self._prompt()
        same = [
            Encoded([*first, *self._ids(2, 5)], self._ids(3, 6), "a"),
            Encoded([*first, *self._ids(3, 7)], self._ids(2, 8), "a"),
        ]
        rows: dict[bool, list[Tensor]] = {True: [], False: []}
        for other in (9, 10):
            beside = Encoded(self._ids(6, other), self._ids(3, other + 2), "b")
            for share, found in rows.items():
                order = [beside, *same, beside]
                found.append(self._owned(pack([*order[:3], Encoded(beside.prompt, beside.answer, "c")], share=share)))
        wanted = torch.cat([self._alone([*s.prompt, *s.answer])[len(s.prompt) - 1 : -1] for s in same])
        return all(self._near(got, wanted) for found in rows.values() for got in found)

    def _owned(self, packed: Packed) -> Tensor:
        """Logits of a row at the answers of its second and third sample."""
        embedded = self.words.embed(packed.token_ids.to(self.device))
        places, kept = packed.layout.position_ids().to(self.device), packed.kept.to(self.device)
        logits = row_logits(self.llm, embedded, places, kept, packed.layout, together=True)[0]
        return logits[(packed.owners == 1) | (packed.owners == 2)]

    def _scored(self, batching: bool) -> bool:
        """Whether labels get the log-probabilities that plain forward passes give."""
        prompts, labels = [self._prompt(), self._ids(4, 11)], [self._ids(3, 12), self._ids(2, 13)]
        self.words.abilities = Abilities(batching=batching)
        present = torch.ones(len(prompts), 1, dtype=torch.bool, device=self.device)
        scores = label_log_probabilities(self.words, prompts, {}, present, labels)
        for row, prompt in enumerate(prompts):
            for column, label in enumerate(labels):
                logits = self._alone([*prompt, *label])[len(prompt) - 1 : -1].log_softmax(dim=-1)
                wanted = logits.gather(1, torch.tensor(label, device=self.device)[:, None]).sum()
                if not abs(scores[row, column] - wanted) <= self.tolerance * self.scale * len(label):
                    return False
        return True

    def _generated(self, batching: bool) -> bool:
        """Whether every generated token has the largest logit of a plain forward pass, but for rounding."""
        prompts = [self._prompt(), self._ids(4, 14)]
        self.words.abilities = Abilities(batching=batching)
        rare = int(sum(self._alone(prompt)[-1] for prompt in prompts).argmin())  # hardly written, so hardly an end
        present = torch.ones(len(prompts), 1, dtype=torch.bool, device=self.device)
        texts = greedy_text(self.words, prompts, {}, present, max_new_tokens=NEW_TOKENS, eos_token_id=rare)
        for prompt, text in zip(prompts, texts, strict=True):
            ids = list(prompt)
            for token in text or [rare]:
                last = self._alone(ids)[-1]
                if not last[token] >= last.max() - 2 * self.tolerance * self.scale:
                    return False
                ids.append(token)
        return True


class _Words:
    """A model for `answering` whose soft tokens are vectors that no token has."""

    def __init__(self, llm: nn.Module) -> None:
        self.llm = llm
        self.abilities = Abilities()

    def embed(self, ids: Tensor, features: Mapping[str, Tensor] | None = None, present: Tensor | None = None) -> Tensor:
        """(B, L) ids -> (B, L, H)."""
        embed = self.llm.get_input_embeddings()
        embedded = embed(ids.clamp(min=0))
        between = embed(torch.full_like(ids, embed.num_embeddings // 2)) + embed(torch.full_like(ids, 9)).flip(-1)
        return torch.where((ids == SOFT_TOKEN)[..., None], between / 2, embedded)


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except RAISED:  # a family that raises on rows or batches is run sample by sample
        return False


@contextmanager
def _first_layers(llm: nn.Module) -> Iterator[None]:
    """Leave only the first layers inside the block: as many as it takes to have every kind, two at least."""
    name, layers = decoder_layers(llm)
    config = llm.config.get_text_config()
    types = list(getattr(config, "layer_types", None) or [None] * len(layers))
    kinds = [(types[place] if place < len(types) else None, *_kind(layer)) for place, layer in enumerate(layers)]
    count = max(2, *(kinds.index(kind) + 1 for kind in set(kinds)))
    parent, _, own = name.rpartition(".")
    holder = llm.get_submodule(parent)
    setattr(holder, own, nn.ModuleList(layers[:count]))
    try:
        yield
    finally:
        setattr(holder, own, layers)


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """Equal for layers that compute the same: classes of all modules, and switches such as a window that is None."""
    return tuple(
        (
            name,
            type(module).__name__,
            tuple(
                sorted(
                    (key, str(value))
                    for key, value in vars(module).items()
                    if key != "training" and (value is None or isinstance(value, bool | str))
                )
            ),
        )
        for name, module in layer.named_modules()
    )
