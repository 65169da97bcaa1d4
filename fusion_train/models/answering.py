"""Answers from a model: log-probabilities of a closed set of labels without generation, or greedy text.

A prompt is run once; every label is scored as a continuation of its key-value cache. Prompts of a batch are padded on
the left, and position ids count real tokens only, so that a clip's scores do not depend on its neighbours' lengths.

Shapes: B clips, L tokens of the longest prompt, C labels, A tokens of the longest label, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LogitsProcessor, LogitsProcessorList

from fusion_train.models.emotion_llama import EmotionLlama


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
    ids, mask = pad_left(prompts, device)
    prompt_positions = positions(mask)
    prefix = model.llm(
        inputs_embeds=model.embed(ids, features, present),
        attention_mask=mask,
        position_ids=prompt_positions,
        use_cache=True,
        logits_to_keep=1,
    )
    count, longest = len(labels), max(map(len, labels))
    targets = torch.zeros(count, longest, dtype=torch.long, device=device)
    real = torch.zeros(count, longest, dtype=torch.bool, device=device)
    for row, label in enumerate(labels):
        targets[row, : len(label)] = torch.tensor(label, device=device)
        real[row, : len(label)] = True
    targets, real = targets.repeat(len(prompts), 1), real.repeat(len(prompts), 1)  # [b * c, a]

    logits = prefix.logits[:, -1:].repeat_interleave(count, dim=0)  # [b * c, 1, v]
    if longest > 1:
        name = cache_name(model.llm)
        cache = getattr(prefix, name)
        cache.batch_repeat_interleave(count)
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
    scores = F.log_softmax(logits.float(), dim=-1).gather(2, targets.unsqueeze(-1)).squeeze(-1)
    return scores.masked_fill(~real, 0).sum(dim=1).view(len(prompts), count)


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
    watch = NotFinite(eos_token_id)
    ids, mask = pad_left(prompts, present.device)
    out = model.llm.generate(
        inputs_embeds=model.embed(ids, features, present),
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
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
