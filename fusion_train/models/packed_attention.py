"""Attention over a row of concatenated samples: each sample sees itself, and its questions see its prefix.

A row consists of segments. A token sees the tokens of its own segment up to itself and, if the segment has a prefix,
the whole prefix:

    |<s> soft tokens, subtitle |[emotion] … happy </s>|[reason] … </s>|<s> next clip … </s>|
     prefix of two questions    both see themselves and the prefix     sees itself

Attention between segments is not computed: a GPU runs variable-length flash attention, other devices one segment after
the other. A shared prefix is not copied into what the backward pass keeps (`prefix_attention`). Position ids continue
from the prefix, so that a question has the positions that it has alone. A model whose attention function cannot be
replaced gets the same pattern as a mask (L, L). A model whose layers mix segments in spite of a layout (recurrent or
convolutional layers, ALiBi, …; `family_check` measures it) gets each sample in a forward pass of its own.
Shapes: R rows of one layout, L tokens per row, A heads, D width per head. Knows no tokenizer and no clip.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fusion_train.models.host_copies import to_device
from fusion_train.models.prefix_attention import (
    FlashKernels,
    Sequences,
    TwoRanges,
    attend_again,
    attend_in_two_ranges,
)

PACKED = "packed"
"""Name of this attention in transformers."""


@dataclass(frozen=True)
class RowSegment:
    """Tokens `start` to `stop - 1` of a row; `prefix` is the (start, stop) of the prefix that they see too."""

    start: int
    stop: int
    prefix: tuple[int, int] | None = None

    @property
    def first_position(self) -> int:
        """Position id of the first token: the length of the prefix."""
        return self.prefix[1] - self.prefix[0] if self.prefix else 0


@dataclass(frozen=True)
class Layout:
    """The segments of a row, in order and without gaps; the same for every row of a batch."""

    segments: tuple[RowSegment, ...]

    @property
    def length(self) -> int:
        return self.segments[-1].stop

    @property
    def shared(self) -> bool:
        """Whether some segment has a prefix."""
        return any(segment.prefix for segment in self.segments)

    def position_ids(self) -> Tensor:
        """Return the position ids (1, L) int64."""
        return torch.cat([torch.arange(s.first_position, s.first_position + s.stop - s.start) for s in self.segments])[
            None
        ]

    def mask(self) -> Tensor:
        """Return (1, 1, L, L) bool, True where a query (third axis) sees a key (fourth axis)."""
        seen = torch.zeros(self.length, self.length, dtype=torch.bool)
        for s in self.segments:
            seen[s.start : s.stop, s.start : s.stop] = True
            if s.prefix:
                seen[s.start : s.stop, slice(*s.prefix)] = True
        return seen.tril()[None, None]

    @lru_cache(maxsize=4)  # noqa: B019  # every layer needs it; few layouts are alive at a time
    @torch.inference_mode(False)  # what answering leaves in the cache must serve training too
    def varlen(self, rows: int, device: torch.device) -> VarlenIndex:
        """Return the arguments of variable-length attention over `rows` rows."""
        keys, lengths_q, lengths_k = [], [], []
        for row in range(rows):
            for s in self.segments:
                begin, end = s.prefix or (0, 0)
                keys += [
                    torch.arange(begin, end) + row * self.length,
                    torch.arange(s.start, s.stop) + row * self.length,
                ]
                lengths_q.append(s.stop - s.start)
                lengths_k.append(s.stop - s.start + end - begin)
        ends = [
            to_device(F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int(), device)
            for lengths in (lengths_q, lengths_k)
        ]
        index = to_device(torch.cat(keys), device) if self.shared else None
        return VarlenIndex(index, ends[0], ends[1], max(lengths_q), max(lengths_k))

    @lru_cache(maxsize=4)  # noqa: B019  # as above
    @torch.inference_mode(False)
    def two_ranges(self, rows: int, device: torch.device) -> TwoRanges | None:
        """Return what the queries of `rows` rows see, where every prefix is followed by its questions; else None."""
        own = [segment.stop - segment.start for segment in self.segments]
        queries, keys = [], []
        sees_prefix = torch.zeros(self.length, dtype=torch.bool)
        before: RowSegment | None = None
        for segment, length in zip(self.segments, own, strict=True):
            if segment.prefix is None:  # a piece of queries without keys, and one of keys without queries
                queries += [length, 0]
                keys += [0, length]
            elif before is not None and segment.prefix == (before.start, before.stop):
                # The prefix's keys belong to the piece of the queries after it; its own keys were that piece.
                queries[-1] = length
                queries.append(0)
                keys.append(length)
            elif before is not None and segment.prefix == before.prefix:
                queries[-2] += length
                keys[-1] += length
            else:
                return None
            sees_prefix[segment.start : segment.stop] = segment.prefix is not None
            before = segment
        return TwoRanges(
            Sequences.of(own * rows, own * rows, device),
            Sequences.of(queries * rows, keys * rows, device),
            to_device(sees_prefix.repeat(rows), device),
        )


@dataclass(frozen=True)
class VarlenIndex:
    """Arguments of variable-length attention."""

    keys: Tensor | None
    """Place of every key among the R · L tokens, segment by segment; None: the keys are in the order of the queries."""
    ends_q: Tensor
    """(segments + 1,) int32: where the queries of each segment end, after a 0."""
    ends_k: Tensor
    """The same for keys."""
    longest_q: int
    longest_k: int


def use_packed_attention(llm: Any) -> bool:
    """Make a causal language model of transformers attend by layout; return whether its family allows it.

    Without a layout the model computes what it computes with SDPA.
    """
    config = llm.config.get_text_config()
    if not getattr(llm, "_supports_attention_backend", False) or getattr(config, "attn_logit_softcapping", None):
        return False
    if config._attn_implementation != "sdpa":
        return config._attn_implementation == PACKED
    llm.set_attn_implementation(PACKED)
    return config._attn_implementation == PACKED


@contextmanager
def attending_by_layout(llm: Any, allowed: bool) -> Iterator[None]:
    """Make `llm` attend by layout inside the block, where its family and `allowed` permit it."""
    config = llm.config.get_text_config()
    before = config._attn_implementation
    if allowed:
        use_packed_attention(llm)
    try:
        yield
    finally:
        if config._attn_implementation != before:
            llm.set_attn_implementation(before)


def attends_by_layout(llm: Any) -> bool:
    """Whether the attention of `llm` takes a layout instead of a mask."""
    return bool(llm.config.get_text_config()._attn_implementation == PACKED)


def attention_arguments(llm: Any, layout: Layout, inputs: Tensor) -> dict[str, Any]:
    """Return keyword arguments of the forward pass that make `llm` attend by `layout` over `inputs` (R, L, H)."""
    if attends_by_layout(llm):
        # transformers passes a mask with four axes on as it is; this empty one saves the making of an (L, L) mask.
        return {"layout": layout, "attention_mask": torch.empty(1, 1, 0, 0, device=inputs.device)}
    seen = to_device(layout.mask(), inputs.device)
    if llm.config.get_text_config()._attn_implementation == "sdpa":
        return {"attention_mask": seen}
    lowest = torch.finfo(inputs.dtype).min
    return {"attention_mask": torch.zeros_like(seen, dtype=inputs.dtype).masked_fill(~seen, lowest)}


def row_logits(
    llm: Any, inputs: Tensor, position_ids: Tensor, kept: Tensor, layout: Layout, *, together: bool
) -> Tensor:
    """Compute the logits (R, S, V) at the places `kept` of rows of one layout.

    Args:
        inputs: (R, L, H) embeddings.
        kept: (S,) ascending.
        together: run all samples of a row in one forward pass; else each sample, after its prefix, in its own pass.
    """
    if together:
        logits: Tensor = llm(
            inputs_embeds=inputs,
            position_ids=position_ids,
            logits_to_keep=kept,
            use_cache=False,
            **attention_arguments(llm, layout, inputs),
        ).logits
        return logits
    row_places = kept.tolist()
    by_sample = []
    for s in layout.segments:
        places = [place - s.start + s.first_position for place in row_places if s.start <= place < s.stop]
        if places:  # a segment without supervised tokens is the prefix of others
            prefix = inputs[:, slice(*s.prefix)] if s.prefix else inputs[:, :0]
            sample = torch.cat([prefix, inputs[:, s.start : s.stop]], dim=1)
            places_kept = torch.tensor(places, device=kept.device)
            by_sample.append(llm(inputs_embeds=sample, logits_to_keep=places_kept, use_cache=False).logits)
    return torch.cat(by_sample, dim=1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attend by `layout`, as an attention function of transformers: query (R, A, L, D) -> (R, L, A, D)."""
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest
        )
    return _attend(query, key, value, layout, scaling, dropout, sliding_window), None


@torch.compiler.disable(reason="each number of segments would need its own graph")
def _attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    if dropout:  # a second pass would draw another mask
        return _attend_by_segment(query, key, value, layout, scaling, window, dropout)
    fast = _flash_runs(query)
    attend = partial(_attend_varlen if fast else _attend_by_segment, layout=layout, scaling=scaling, window=window)
    if not layout.shared:
        return attend(query, key, value)
    if fast and window is None and query.dtype == key.dtype == value.dtype:
        ranges = layout.two_ranges(query.shape[0], query.device)
        if ranges is not None:
            q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))  # [r * l, a, d]
            out = attend_in_two_ranges(q, k, v, ranges, scaling, FlashKernels())
            return out.unflatten(0, (query.shape[0], layout.length))
    return attend_again(query, key, value, attend)


def _flash_runs(query: Tensor) -> bool:
    """Whether variable-length flash attention takes these queries: it needs compute capability 8.0."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16) or _varlen() is None:
        return False
    return torch.cuda.get_device_capability(query.device) >= (8, 0)


def _attend_by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scaling: float | None,
    window: int | None,
    dropout: float = 0.0,
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for s in layout.segments:
        num_queries, num_keys = s.stop - s.start, s.stop - s.start + s.first_position
        k, v = key[:, :, s.start : s.stop], value[:, :, s.start : s.stop]
        if s.prefix:
            prefix = slice(*s.prefix)
            k, v = torch.cat([key[:, :, prefix], k], dim=2), torch.cat([value[:, :, prefix], v], dim=2)
        windowed = window is not None and window < num_keys
        # SDPA has its own causal mask only for as many queries as keys.
        needs_mask = s.prefix or windowed
        mask = _causal(num_queries, num_keys, window if windowed else None, query.device) if needs_mask else None
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, s.start : s.stop],
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                dropout_p=dropout,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _causal(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """Return the causal mask (queries, keys) bool; the last query sees the last key."""
    places = torch.arange(keys, device=device)
    distance = places[keys - queries :, None] - places[None]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def _attend_varlen(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    index = layout.varlen(query.shape[0], query.device)
    q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))  # [r * l, a, d]
    if index.keys is not None:
        k, v = k[index.keys], v[index.keys]
    varlen_attention, grouped = _varlen(), q.shape[1] != k.shape[1]
    arguments: dict[str, Any] = {}
    if grouped and "enable_gqa" in inspect.signature(varlen_attention).parameters:
        arguments["enable_gqa"] = True
    elif grouped:  # torch 2.11 takes as many heads of keys as of queries
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
    out = varlen_attention(
        q,
        k,
        v,
        index.ends_q,
        index.ends_k,
        index.longest_q,
        index.longest_k,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **arguments,
    )
    return out.unflatten(0, (query.shape[0], layout.length))


@lru_cache(maxsize=1)
def _varlen() -> Any:
    """Return torch's variable-length attention if it has scale and windows (2.11 and later), else None."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if {"window_size", "scale"} <= inspect.signature(varlen_attn).parameters.keys() else None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
