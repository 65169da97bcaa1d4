"""Answers from a model: log-probabilities of a closed set of labels without generation, or greedy text.

A prompt is run once; every label is scored as a continuation of its key-value cache. Prompts of a batch are padded on
the left, and position ids count real tokens only, so that a clip's scores do not depend on its neighbours' lengths.
A model that cannot do so (`Abilities.batching`) reads prompt and label as one text, clip by clip.

Shapes: B clips, L tokens of the longest prompt, C labels, A tokens of the longest label, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from fusion_train.models.emotion_llama import EmotionLlama

LABELS_AT_ONCE = 8
"""Labels of a clip in one forward pass, where each takes the whole prompt along."""
KEPT_SETTINGS = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens")
"""What stays of a base's own generation settings: which tokens it must not write, or not again."""


def plain_generation(settings: GenerationConfig | None) -> GenerationConfig:
    """Greedy decoding of one tensor of token ids, whatever the base was published with (beams, sampling, …)."""
    kept = {name: getattr(settings, name, None) for name in KEPT_SETTINGS}
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        return_dict_in_generate=False,
        **{name: value for name, value in kept.items() if value is not None},
    )


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Ragged ids -> (B, L) ids and mask, padded with 0 on the left."""
    length = max(map(len, prompts))
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


def positions(mask: Tensor) -> Tensor:
    """(B, L) mask -> position ids that count the tokens before, padding not included."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def cache_name(llm: nn.Module) -> str:
    """What a causal LM calls its key-value cache: `cache` from transformers 5.24 on, `past_key_values` before."""
    base = llm.get_base_model() if hasattr(llm, "get_base_model") else llm  # peft passes everything on
    return "cache" if "cache" in inspect.signature(base.forward).parameters else "past_key_values"


@torch.inference_mode()
def label_log_probabilities(
    model: EmotionLlama,
    prompts: Sequence[Sequence[int]],
    features: Mapping[str, Tensor],
    present: Tensor,
    labels: Sequence[Sequence[int]],
) -> Tensor:
    """Log-probability of every label, its end-of-sequence token included: (B, C) float32.

    Args:
        prompts: B lists of token ids with SOFT_TOKEN at soft places.
        features: modality -> (B, K, D); present: (B, M) bool.
        labels: C lists of token ids, each ending in the end-of-sequence token.
    """
    device = present.device
    count, longest = len(labels), max(map(len, labels))
    targets = torch.zeros(count, longest, dtype=torch.long, device=device)
    real = torch.zeros(count, longest, dtype=torch.bool, device=device)
    for row, label in enumerate(labels):
        targets[row, : len(label)] = torch.tensor(label, device=device)
        real[row, : len(label)] = True
    given = (model, prompts, features, present, targets)
    logits = _continued(*given) if model.abilities.batching else _whole_texts(*given)
    targets, real = targets.repeat(len(prompts), 1), real.repeat(len(prompts), 1)  # [b * c, a]
    scores = F.log_softmax(logits.float(), dim=-1).gather(2, targets.unsqueeze(-1)).squeeze(-1)
    return scores.masked_fill(~real, 0).sum(dim=1).view(len(prompts), count)


def _continued(
    model: EmotionLlama,
    prompts: Sequence[Sequence[int]],
    features: Mapping[str, Tensor],
    present: Tensor,
    labels: Tensor,
) -> Tensor:
    """Logits (B * C, A, V) at the tokens of `labels` (C, A), each a continuation of the cache of its prompt."""
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


def _whole_texts(
    model: EmotionLlama,
    prompts: Sequence[Sequence[int]],
    features: Mapping[str, Tensor],
    present: Tensor,
    labels: Tensor,
) -> Tensor:
    """What `_continued` gives, without a cache and without padding that a token of a label could see."""
    device, parts = present.device, []
    continued = model.llm.get_input_embeddings()(labels[:, :-1])  # [c, a - 1, h]
    for row, prompt in enumerate(prompts):
        own = {name: tensor[row : row + 1] for name, tensor in features.items()}
        embedded = model.embed(torch.tensor([list(prompt)], device=device), own, present[row : row + 1])
        kept = torch.arange(len(prompt) - 1, len(prompt) + labels.shape[1] - 1, device=device)
        for some in continued.split(LABELS_AT_ONCE):
            texts = torch.cat([embedded.expand(len(some), -1, -1), some.to(embedded.dtype)], dim=1)
            parts.append(model.llm(inputs_embeds=texts, logits_to_keep=kept, use_cache=False).logits)
    return torch.cat(parts)


@torch.inference_mode()
def greedy_text(
    model: EmotionLlama,
    prompts: Sequence[Sequence[int]],
    features: Mapping[str, Tensor],
    present: Tensor,
    *,
    max_new_tokens: int,
    eos_token_id: int,
) -> list[list[int] | None]:
    """Greedy decoding; returns the new token ids of each clip, without the end-of-sequence token.

    None stands for a clip for which the model gave logits that are no numbers.
    """
    if len(prompts) > 1 and not model.abilities.batching:
        texts = []
        for row, prompt in enumerate(prompts):
            own = {name: tensor[row : row + 1] for name, tensor in features.items()}
            texts += greedy_text(
                model, [prompt], own, present[row : row + 1], max_new_tokens=max_new_tokens, eos_token_id=eos_token_id
            )
        return texts
    watch = NotFinite(eos_token_id)
    ids, mask = pad_left(prompts, present.device)
    out = model.llm.generate(
        inputs_embeds=model.embed(ids, features, present),
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
        logits_processor=LogitsProcessorList([watch]),
    )
    return [
        None if wrong else row[: row.index(eos_token_id)] if eos_token_id in row else row
        for row, wrong in zip(out.tolist(), watch.rows, strict=True)
    ]


class NotFinite(LogitsProcessor):
    """Watches greedy decoding for logits that are NaN or plus infinity, of which the largest says nothing.

    `rows` holds, after `generate`, whether each of the B rows had such before its end-of-sequence token.
    """

    def __init__(self, eos_token_id: int) -> None:
        self._eos = eos_token_id
        self._rows: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, L) ids so far and (B, V) logits -> the same logits."""
        wrong = (scores.isnan() | scores.isposinf()).any(dim=-1)
        if input_ids.shape[1]:
            wrong &= input_ids[:, -1] != self._eos
        self._rows = wrong if self._rows is None else self._rows | wrong
        return scores

    @property
    def rows(self) -> list[bool]:
        return [] if self._rows is None else self._rows.tolist()
