"""Measure whether a language model computes for several samples at once what it computes for each alone.

transformers has about two hundred families. A recurrent or convolutional layer continues from one sample of a row into
the next; ALiBi counts distances along the row; a sliding window may be part of a mask that a layout replaces. Therefore
every model is measured: short made-up samples pass the model alone, and then

    packed      in one row of two clips and a shared prefix, beside two different other clips
    batched     padded on the left, labels as continuations of one cache
    generated   by `generate`, compared with the largest logits of plain forward passes

If rows or batches fail, samples are computed one by one; if even single samples fail, the family is refused.
The first layers that include every kind of layer are measured, in the dtype of the weights; if they fail, all layers.
Each configuration is measured once per process. Shapes: L tokens, V vocabulary, H width. Knows no run configuration.
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

TOLERANCE = {torch.float32: 3e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}
"""Largest root mean square, over the vocabulary, of the differences at a place, in standard deviations of the logits.
A leak, a wrong position or a lost window makes tenths. Single logits differ more: of 32,000 in bfloat16, rounding moves
one by 0.06."""
NOISE_FACTOR = 4
"""Largest difference as a multiple of the rounding noise: of what later tokens change in the logits before them, or the
last bits of the embeddings in all logits."""
SINGLE_FACTOR = 5
"""Largest difference of a single logit, as a multiple of the largest root mean square."""
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")
LONGEST_WINDOW = 1100
"""Longer windows are not tested: almost no sample is longer."""
NEW_TOKENS = 3
RAISED = (ModelError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ImportError)
"""Errors that a family may raise for inputs that it does not support."""

_measured: dict[tuple[str, ...], Abilities] = {}


def abilities_of(llm: Any) -> Abilities:
    """Measure the abilities of a causal language model of transformers without adapters.

    A model on the meta device cannot be measured and counts as able.

    Raises:
        ModelError: even single samples cannot be trained on, or answers cannot be generated.
    """
    weight = llm.get_input_embeddings().weight
    if weight.is_meta:
        return Abilities()
    key = (llm.config.to_json_string(use_diff=False), str(weight.dtype), str(weight.device))
    if key not in _measured:
        was_training = llm.training
        llm.eval()
        try:
            _measured[key] = _measure(llm)
        finally:
            llm.train(was_training)
    return _measured[key]


def _measure(llm: Any) -> Abilities:
    try:
        with _first_layers(llm):
            verdict = _Check(llm).verdict()
        if verdict == Abilities():
            return verdict
    except RAISED:
        pass  # some families do not run with only a few layers: all layers decide
    return _Check(llm).verdict()


class _Check:
    """The measurements of one model."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        config = llm.config.get_text_config()
        self.family = config.model_type
        weight = llm.get_input_embeddings().weight
        self.device, self.vocabulary = weight.device, len(weight)
        self.model = _SoftTokenModel(llm)
        windows = [size for name in WINDOWS if isinstance(size := getattr(config, name, None), int) and size > 0]
        window = min(windows, default=0)
        limit = getattr(config, "max_position_embeddings", None)
        room = limit - 16 if isinstance(limit, int) and limit > 0 else LONGEST_WINDOW
        self.prefix_tokens = max(min(window if window <= LONGEST_WINDOW else 0, room), 6)
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
            for result, check in (("label scores", self._scored), ("generated text", self._generated)):
                try:
                    agrees = check(False)
                except RAISED as error:
                    raise self._refused(result, f"{type(error).__name__}: {error}") from error
                if not agrees:
                    raise self._refused(result, "others than plain forward passes give")
        return Abilities(packing=packing, batching=batching)

    def _refused(self, result: str, got: str) -> ModelError:
        return ModelError(
            f'model family "{self.family}"',
            expected=f"{result} of one sample as a causal language model gives it",
            got=" ".join(got.split()).partition(". ")[0][:200],
            next_step="Choose a base of another family with --set model.llm=FOLDER, such as Llama, Qwen or Mistral.",
        )

    def _ids(self, count: int, seed: int) -> list[int]:
        """Return varying token ids without the first ids, which are often special tokens."""
        low = min(8, self.vocabulary // 2)
        return [low + (seed * 37 + place * place * 11 + place * 7) % (self.vocabulary - low) for place in range(count)]

    def _alone(self, ids: Sequence[int]) -> Tensor:
        """Return the logits (L, V) of a sample alone, from a pass without mask, position ids and cache."""
        logits: Tensor = self.llm(inputs_embeds=self.model.embed(self._row(ids)), use_cache=False).logits
        return logits[0].float()

    def _row(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=self.device)

    def _difference(self, logits: Tensor, expected: Tensor) -> float:
        """Return the largest root mean square of the differences (L, V) at a place, in standard deviations."""
        return float((logits.float() - expected).square().mean(dim=-1).sqrt().max()) / self.scale

    def _near(self, logits: Tensor, expected: Tensor) -> bool:
        return self._difference(logits, expected) <= self.tolerance

    def _near_single(self, value: Tensor, expected: Tensor, count: int = 1) -> bool:
        """Whether a sum of `count` logits is the expected one."""
        return bool((value - expected).abs() <= SINGLE_FACTOR * self.tolerance * self.scale * count)

    def _rounding_noise(self, ids: Sequence[int], alone: Tensor) -> float:
        """Return what the last bits of the embeddings change in the logits `alone` of a sample."""
        embedded = self.model.embed(self._row(ids))
        signs = torch.ones_like(embedded)
        signs[..., ::2] = -1
        moved = embedded + embedded * signs * torch.finfo(embedded.dtype).eps
        return self._difference(self.llm(inputs_embeds=moved, use_cache=False).logits[0], alone)

    def _plain(self) -> None:
        """Check single samples, and measure the rounding noise.

        Raises:
            ModelError: later tokens change the logits, or positions are not counted from 0.
        """
        prompt = self._prompt()
        ids = [*prompt, *self._ids(4, 1)]
        alone = self._alone(ids)
        if not alone.isfinite().all():
            raise self._refused("finite logits", "NaN or infinity")
        self.scale = float(alone.std()) or 1.0
        noise = self._difference(self._alone([*ids, *self._ids(5, 2)])[: len(ids)], alone)
        if noise > 4 * self.tolerance:
            raise self._refused("logits that do not depend on later tokens", "others")
        noise = max(noise, self._rounding_noise(ids, alone))
        self.tolerance = max(self.tolerance, min(NOISE_FACTOR * noise, 4 * self.tolerance))
        chosen = torch.tensor([1, len(ids) - 1], device=self.device)
        mask = torch.ones(1, len(ids), dtype=torch.long, device=self.device)
        embedded = self.model.embed(self._row(ids))
        logits = self.llm(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=False,
            logits_to_keep=chosen,
        ).logits
        if logits.shape[1] != len(chosen) or not self._near(logits[0], alone[chosen]):
            raise self._refused("logits at chosen places, with positions counted from 0", "others")

    def _prompt(self) -> list[int]:
        return [*self._ids(2, 3), SOFT_TOKEN, SOFT_TOKEN, *self._ids(self.prefix_tokens - 4, 4)]

    def _packed(self) -> bool:
        """Whether samples of a row have the logits that each has alone, with and without a shared prefix."""
        prefix = self._prompt()
        questions = [
            Encoded([*prefix, *self._ids(2, 5)], self._ids(3, 6), "a"),
            Encoded([*prefix, *self._ids(3, 7)], self._ids(2, 8), "a"),
        ]
        expected = torch.cat([self._alone([*s.prompt, *s.answer])[len(s.prompt) - 1 : -1] for s in questions])
        for seed in (9, 10):  # two different neighbours, before and after the questions
            before = Encoded(self._ids(6, seed), self._ids(3, seed + 2), "b")
            after = Encoded(before.prompt, before.answer, "c")
            for share in (True, False):
                packed = pack([before, *questions, after], share=share)
                if not self._near(self._middle_logits(packed), expected):
                    return False
        return True

    def _middle_logits(self, packed: Packed) -> Tensor:
        """Return the logits of a row at the answers of its second and third sample."""
        embedded = self.model.embed(packed.token_ids.to(self.device))
        places, with_logits = packed.layout.position_ids().to(self.device), packed.kept.to(self.device)
        logits = row_logits(self.llm, embedded, places, with_logits, packed.layout, together=True)[0]
        return logits[(packed.owners == 1) | (packed.owners == 2)]

    def _scored(self, batching: bool) -> bool:
        """Whether the log-probabilities of labels equal those of plain forward passes."""
        prompts, labels = [self._prompt(), self._ids(4, 11)], [self._ids(3, 12), self._ids(2, 13)]
        self.model.abilities = Abilities(packing=False, batching=batching)  # rows are measured by `_packed`
        present = torch.ones(len(prompts), 1, dtype=torch.bool, device=self.device)
        scores = label_log_probabilities(self.model, prompts, {}, present, labels)
        for row, prompt in enumerate(prompts):
            for column, label in enumerate(labels):
                logits = self._alone([*prompt, *label])[len(prompt) - 1 : -1].log_softmax(dim=-1)
                expected = logits.gather(1, torch.tensor(label, device=self.device)[:, None]).sum()
                if not self._near_single(scores[row, column], expected, len(label)):
                    return False
        return True

    def _generated(self, batching: bool) -> bool:
        """Whether every generated token has the largest logit of a plain forward pass, up to rounding."""
        prompts = [self._prompt(), self._ids(4, 14)]
        self.model.abilities = Abilities(batching=batching)
        # The least likely token serves as the end of sequence, so that decoding does not stop early.
        unlikely = int(torch.stack([self._alone(prompt)[-1] for prompt in prompts]).sum(dim=0).argmin())
        present = torch.ones(len(prompts), 1, dtype=torch.bool, device=self.device)
        texts = greedy_text(self.model, prompts, {}, present, max_new_tokens=NEW_TOKENS, eos_token_id=unlikely)
        for prompt, text in zip(prompts, texts, strict=True):
            ids = list(prompt)
            for token in text or [unlikely]:
                last = self._alone(ids)[-1]
                if last[token] < last.max() and not self._near_single(last[token], last.max(), 2):
                    return False
                ids.append(token)
        return True


class _SoftTokenModel:
    """A model for `answering`; its soft tokens are vectors between the embeddings of tokens."""

    def __init__(self, llm: Any) -> None:
        self.llm: Any = llm
        self.abilities = Abilities()
        self.num_models = 1

    def embed(
        self, token_ids: Tensor, features: Mapping[str, Tensor] | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Embed ids (B, L) -> (B, L, H); the features are not used."""
        embed = self.llm.get_input_embeddings()
        embedded = embed(token_ids.clamp(min=0))
        middle = torch.full_like(token_ids, embed.num_embeddings // 2)
        between = embed(middle) + embed(torch.full_like(token_ids, 9)).flip(-1)
        return torch.where((token_ids == SOFT_TOKEN)[..., None], between / 2, embedded)


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check()
    except RAISED:  # the family does not support rows, or batches
        return False


@contextmanager
def _first_layers(llm: Any) -> Iterator[None]:
    """Keep only the first layers inside the block: as many as include every kind of layer, at least two."""
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
    """Return a key that is equal for layers of one kind: classes of all modules, and switches such as a window."""
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
