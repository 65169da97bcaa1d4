"""Answer prompts with a model: log-probabilities of a closed set of labels, or greedy text.

Labels are scored in one of three ways, the first that the model allows; each bounds its memory whatever the number of
clips and labels:

    segments   prompts stand in rows, and the labels are segments behind their prompt, as questions behind a prefix in
               training; nothing is copied or padded (attention by layout and `Abilities.packing`)
    cache      prompts are padded on the left, and labels continue copies of their key-value cache, a few at a time
               (`Abilities.batching`)
    text       prompt and label are read as one text, clip by clip

Position ids count only real tokens, so that a clip's scores do not depend on the lengths of its neighbours.

Shapes: B clips, M modalities, K tokens per feature of width D, L tokens of the longest prompt or of a row, C labels, A
tokens of the longest label, S scored places of a row, V vocabulary, H width of the LLM; N models that answer at once.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from fusion_train.models.emotion_llama import Abilities
from fusion_train.models.host_copies import to_device
from fusion_train.models.packed_attention import Layout, RowSegment, attends_by_layout, row_logits

ROW_TOKENS = 4096
"""Most tokens of a row of prompts and labels; a prompt that is longer with its labels has a row of its own."""
CACHED_TOKENS = 8192
"""Most tokens of the copies of a key-value cache, one copy per clip and label."""
LABELS_PER_PASS = 8
"""Labels of one clip per forward pass, if each label needs a copy of the whole prompt."""
KEPT_SETTINGS = ("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens")
"""Generation settings of a base that stay: they exclude tokens, or repetitions of tokens."""


class AnsweringModel(Protocol):
    """A model that answers: `EmotionLlama`, or several of them as one."""

    llm: Any
    """A causal language model of transformers."""
    abilities: Abilities
    num_models: int
    """Models that answer at once; a batch holds the clips of the first model, then the same of the next, …."""

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
    segments = attends_by_layout(model.llm) and model.abilities.packing
    if not segments and not model.abilities.batching:
        targets, real = _padded(labels, present.device)
        return _summed(_logits_by_text(model, prompts, features, present, targets), targets, real)
    score = _scores_by_segment if segments else _scores_by_cache
    clips = len(prompts) // model.num_models
    own_tokens = sum(len(label) - 1 for label in labels)
    copies = 1 if segments else len(labels)
    weights = [copies * len(prompt) + own_tokens for prompt in prompts[:clips]]
    limit = (ROW_TOKENS if segments else CACHED_TOKENS) // model.num_models
    by_piece = []
    for piece in _pieces(weights, limit):
        rows = [n * clips + clip for n in range(model.num_models) for clip in piece]
        chosen = to_device(torch.tensor(rows), present.device)
        clip_features = {name: tensor[chosen] for name, tensor in features.items()}
        scores = score(model, [prompts[row] for row in rows], clip_features, present[chosen], labels)
        by_piece.append(scores.unflatten(0, (model.num_models, -1)))
    return torch.cat(by_piece, dim=1).flatten(0, 1)


def _pieces(weights: Sequence[int], limit: int) -> list[range]:
    """Divide clips into runs whose weights add up to at most `limit`; a heavier clip is a run of its own."""
    pieces: list[range] = []
    filled = limit
    for clip, weight in enumerate(weights):
        if pieces and filled + weight <= limit:
            pieces[-1] = range(pieces[-1].start, clip + 1)
            filled += weight
        else:
            pieces.append(range(clip, clip + 1))
            filled = weight
    return pieces


def _padded(labels: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the token ids of labels (C, A), and (C, A) bool: which of them are not padding."""
    longest = max(map(len, labels))
    ids = torch.tensor([[*label, *[0] * (longest - len(label))] for label in labels])
    real = torch.tensor([[place < len(label) for place in range(longest)] for label in labels])
    return to_device(ids, device), to_device(real, device)


def _summed(logits: Tensor, targets: Tensor, real: Tensor) -> Tensor:
    """Sum the log-probabilities of each label's tokens: logits (B · C, A, V), targets and real (C, A) -> (B, C)."""
    clips = len(logits) // len(targets)
    targets, real = targets.repeat(clips, 1), real.repeat(clips, 1)  # [b * c, a]
    scores = F.log_softmax(logits.float(), dim=-1).gather(2, targets.unsqueeze(-1)).squeeze(-1)
    return scores.masked_fill(~real, 0).sum(dim=1).view(clips, -1)


def label_row(
    prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> tuple[list[int], Layout, list[int], Tensor]:
    """Put prompts into one row, each followed by its labels as segments that see it and not each other.

    Returns:
        The token ids of the row (L); its layout; the places (S) whose logits score a token, ascending; and which of
        these places predicts each token of each label, (clips, C, A), 0 where a label has no more tokens. The last
        token of a prompt predicts the first token of every label, so a label's last token is not in the row.
    """
    longest = max(map(len, labels))
    ids: list[int] = []
    segments: list[RowSegment] = []
    kept: list[int] = []
    predicting = []
    for prompt in prompts:
        prefix = (len(ids), len(ids) + len(prompt))
        segments.append(RowSegment(*prefix))
        ids += prompt
        first = len(kept)
        kept.append(len(ids) - 1)
        for label in labels:
            places = [first, *range(len(kept), len(kept) + len(label) - 1)]
            predicting.append(places + [0] * (longest - len(places)))
            if len(label) > 1:
                kept += range(len(ids), len(ids) + len(label) - 1)
                segments.append(RowSegment(len(ids), len(ids) + len(label) - 1, prefix))
                ids += label[:-1]
    return ids, Layout(tuple(segments)), kept, torch.tensor(predicting).view(len(prompts), len(labels), longest)


def _scores_by_segment(
    model: AnsweringModel,
    prompts: Sequence[Sequence[int]],
    features: Mapping[str, Tensor],
    present: Tensor,
    labels: Sequence[Sequence[int]],
) -> Tensor:
    """Return the scores (B, C) of labels that stand behind their prompts in one row."""
    device = present.device
    clips = len(prompts) // model.num_models
    ids, layout, kept, predicting = label_row(prompts[:clips], labels)
    rows = to_device(torch.tensor(ids), device).expand(model.num_models, -1)  # [n, l]
    logits = row_logits(
        model.llm,
        model.embed(rows, features, present),
        to_device(layout.position_ids(), device),
        to_device(torch.tensor(kept), device),
        layout,
        together=True,
    ).float()  # [n, s, v]
    targets, real = _padded(labels, device)
    targets, places = targets.expand(clips, -1, -1), to_device(predicting, device)  # [b, c, a]
    scores = logits[:, places, targets] - logits.logsumexp(dim=-1)[:, places]  # [n, b, c, a]
    return scores.masked_fill(~real, 0).sum(dim=-1).flatten(0, 1)


def _scores_by_cache(
    model: AnsweringModel,
    prompts: Sequence[Sequence[int]],
    features: Mapping[str, Tensor],
    present: Tensor,
    labels: Sequence[Sequence[int]],
) -> Tensor:
    """Return the scores (B, C) of labels that continue the key-value cache of their prompt, a few labels at a time."""
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
    at_once = max(CACHED_TOKENS // (len(prompts) * ids.shape[1]), 1)
    scores = []
    for start in range(0, len(labels), at_once):
        targets, real = _padded(labels[start : start + at_once], device)
        last = start + at_once >= len(labels)
        name = cache_name(model.llm)
        cache = getattr(prefix, name) if last else copy.deepcopy(getattr(prefix, name))
        logits = _continued(model.llm, {name: cache}, prefix.logits, mask, prompt_positions, targets)
        scores.append(_summed(logits, targets, real))
    return torch.cat(scores, dim=1)


def _continued(
    llm: Any, cache: dict[str, Any], prompt_logits: Tensor, mask: Tensor, prompt_positions: Tensor, labels: Tensor
) -> Tensor:
    """Return logits (B · C, A, V) at the tokens of `labels` (C, A), each continuing every prompt's cache, in place."""
    count, longest = labels.shape
    # The last token of a prompt predicts the first token of every label.
    logits = prompt_logits[:, -1:].repeat_interleave(count, dim=0)  # [b * c, 1, v]
    if longest > 1:
        for key_values in cache.values():
            key_values.batch_repeat_interleave(count)
        targets = labels.repeat(len(mask), 1)  # [b * c, a]
        start = (prompt_positions[:, -1] + 1).repeat_interleave(count)[:, None]
        steps = torch.arange(longest - 1, device=labels.device)
        rest = llm(
            inputs_embeds=llm.get_input_embeddings()(targets[:, :-1]),
            attention_mask=torch.cat([mask.repeat_interleave(count, dim=0), torch.ones_like(targets[:, :-1])], dim=1),
            position_ids=start + steps,
            use_cache=True,
            **cache,
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
    """Return logits (B · C, A, V) at the tokens of `labels` (C, A), without a cache or padding before a token."""
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
