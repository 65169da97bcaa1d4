"""Answer prompts with a model: log-probabilities of a closed set of labels, or greedy text.

Each prompt passes the model once; every label is scored as a continuation of the prompt's key-value cache. The prompts
of a batch are padded on the left, and position ids count only real tokens, so that a clip's scores do not depend on the
lengths of its neighbours. A model for which this does not hold (`Abilities.batching`) reads prompt and label as one
text, clip by clip.

Shapes: B clips, M modalities, K tokens per feature of width D, L tokens of the longest prompt, C labels, A tokens of
the longest label, V vocabulary, H width of the LLM.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from fusion_train.models.emotion_llama import Abilities

LABELS_PER_PASS = 8
"""Labels of one clip per forward pass, if each label needs a copy of the whole prompt."""
KEPT_SETTINGS = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens")
"""Generation settings of a base that stay: they exclude tokens, or repetitions of tokens."""


class AnsweringModel(Protocol):
    """A model that answers: `EmotionLlama`, or several of them as one."""

    llm: Any
    """A causal language model of transformers."""
    abilities: Abilities

    def embed(self, token_ids: Tensor, features: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Return `inputs_embeds` (B, L, H)."""


def plain_generation(settings: GenerationConfig | None) -> GenerationConfig:
    """Return settings for greedy decoding, whatever the base was published with (beams, sampling, …)."""
    kept = {name: getattr(settings, name, None) for name in KEPT_SETTINGS}
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        return_dict_in_generate=False,
        **{name: value for name, value in kept.items() if value is not None},
    )


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return ids (B, L) and mask (B, L), padded with 0 on the left."""
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def positions(mask: Tensor) -> Tensor:
    """Return position ids (B, L) that count the real tokens before each token, for a mask (B, L)."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def cache_name(llm: Any) -> str:
    """Return a model's argument for the key-value cache: `cache` since transformers 5.24, else `past_key_values`."""
    base = llm.get_base_model() if hasattr(llm, "get_base_model") else llm  # peft passes all arguments on
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"


@torch.inference_mode()
def label_log_probabilities(
    model: AnsweringModel,
    prompts: Sequence[Sequence[int]],
    features: Mapping[str, Tensor],
    present: Tensor,
    labels: Sequence[Sequence[int]],
) -> Tensor:
    """Compute the log-probability of every label, with its end-of-sequence token: (B, C) float32.

    Args:
        prompts: B lists of token ids, SOFT_TOKEN at the places of soft tokens.
        features: modality -> (B, K, D).
        present: (B, M) bool.
        labels: C lists of token ids, each ending in the end-of-sequence token.
    """
    device = present.device
    count, longest = len(labels), max(map(len, labels))
    targets = torch.zeros(count, longest, dtype=torch.long, device=device)
    real = torch.zeros(count, longest, dtype=torch.bool, device=device)
    for row, label in enumerate(labels):
        targets[row, : len(label)] = torch.tensor(label, device=device)
        real[row, : len(label)] = True
    label_logits = _logits_by_cache if model.abilities.batching else _logits_by_text
    logits = label_logits(model, prompts, features, present, targets)
    targets, real = targets.repeat(len(prompts), 1), real.repeat(len(prompts), 1)  # [b * c, a]
    scores = F.log_softmax(logits.float(), dim=-1).gather(2, targets.unsqueeze(-1)).squeeze(-1)
    return scores.masked_fill(~real, 0).sum(dim=1).view(len(prompts), count)


def _logits_by_cache(
    model: AnsweringModel,
    prompts: Sequence[Sequence[int]],
    features: Mapping[str, Tensor],
    present: Tensor,
    labels: Tensor,
) -> Tensor:
    """Return logits (B · C, A, V) at the tokens of `labels` (C, A), each label continuing its prompt's cache."""
    device, (count, longest) = present.device, labels.shape
    ids, mask = pad_left(prompts, device)
    prompt_positions = positions(mask)
    prefix = model.llm(
        inputs_embeds=model.embed(ids, features, present),
        attention_mask=mask,
        position_ids=prompt_positions,
        use_cache=True,
        logits_to_keep=1,
    )
    # The last token of a prompt predicts the first token of every label.
    logits = prefix.logits[:, -1:].repeat_interleave(count, dim=0)  # [b * c, 1, v]
    if longest > 1:
        name = cache_name(model.llm)
        cache = getattr(prefix, name)
        cache.batch_repeat_interleave(count)
        targets = labels.repeat(len(prompts), 1)  # [b * c, a]
        start = (prompt_positions[:, -1] + 1).repeat_interleave(count)[:, None]
        steps = torch.arange(longest - 1, device=device)
        rest = model.llm(
            inputs_embeds=model.llm.get_input_embeddings()(targets[:, :-1]),
            attention_mask=torch.cat([mask.repeat_interleave(count, dim=0), torch.ones_like(targets[:, :-1])], dim=1),
            position_ids=start + steps,
            use_cache=True,
            **{name: cache},
        )
        logits = torch.cat([logits, rest.logits], dim=1)  # [b * c, a, v]
    return logits


def _logits_by_text(
    model: AnsweringModel,
    prompts: Sequence[Sequence[int]],
    features: Mapping[str, Tensor],
    present: Tensor,
    labels: Tensor,
) -> Tensor:
    """Return the logits of `_logits_by_cache`, without a cache and without padding before a token."""
    device, logits = present.device, []
    label_embeddings = model.llm.get_input_embeddings()(labels[:, :-1])  # [c, a - 1, h]
    for prompt, clip_features, clip_present in _clip_by_clip(prompts, features, present):
        embedded = model.embed(torch.tensor([list(prompt)], device=device), clip_features, clip_present)
        predicting = torch.arange(len(prompt) - 1, len(prompt) + labels.shape[1] - 1, device=device)
        for chunk in label_embeddings.split(LABELS_PER_PASS):
            texts = torch.cat([embedded.expand(len(chunk), -1, -1), chunk.to(embedded.dtype)], dim=1)
            logits.append(model.llm(inputs_embeds=texts, logits_to_keep=predicting, use_cache=False).logits)
    return torch.cat(logits)


def _clip_by_clip(
    prompts: Sequence[Sequence[int]], features: Mapping[str, Tensor], present: Tensor
) -> Iterator[tuple[Sequence[int], dict[str, Tensor], Tensor]]:
    """Yield prompt, modality -> (1, K, D) and present (1, M) of each clip."""
    for row, prompt in enumerate(prompts):
        yield prompt, {name: tensor[row : row + 1] for name, tensor in features.items()}, present[row : row + 1]


@torch.inference_mode()
def greedy_text(
    model: AnsweringModel,
    prompts: Sequence[Sequence[int]],
    features: Mapping[str, Tensor],
    present: Tensor,
    *,
    max_new_tokens: int,
    eos_token_id: int,
) -> list[list[int] | None]:
    """Decode greedily; return the new token ids of each clip, without the end-of-sequence token.

    None stands for a clip whose logits are NaN or infinite. Arguments as in `label_log_probabilities`.
    """
    if len(prompts) > 1 and not model.abilities.batching:
        texts = []
        for prompt, clip_features, clip_present in _clip_by_clip(prompts, features, present):
            texts += greedy_text(
                model, [prompt], clip_features, clip_present, max_new_tokens=max_new_tokens, eos_token_id=eos_token_id
            )
        return texts
    not_finite = NotFinite(eos_token_id)
    ids, mask = pad_left(prompts, present.device)
    out = model.llm.generate(
        inputs_embeds=model.embed(ids, features, present),
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
        logits_processor=LogitsProcessorList([not_finite]),
    )
    return [
        None if wrong else row[: row.index(eos_token_id)] if eos_token_id in row else row
        for row, wrong in zip(out.tolist(), not_finite.rows, strict=True)
    ]


class NotFinite(LogitsProcessor):
    """Records in which rows greedy decoding meets logits that are NaN or plus infinity: their maximum has no meaning.

    After `generate`, `rows` holds for each of the B rows whether it had such logits before its end-of-sequence token.
    """

    def __init__(self, eos_token_id: int) -> None:
        self._eos = eos_token_id
        self._rows: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits `scores` (B, V) unchanged; `input_ids`: (B, tokens so far)."""
        wrong = (scores.isnan() | scores.isposinf()).any(dim=-1)
        if input_ids.shape[1]:
            wrong &= input_ids[:, -1] != self._eos
        self._rows = wrong if self._rows is None else self._rows | wrong
        return scores

    @property
    def rows(self) -> list[bool]:
        return [] if self._rows is None else self._rows.tolist()
