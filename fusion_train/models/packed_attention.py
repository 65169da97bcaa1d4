"""Attention over a row of concatenated samples: each sees itself alone, questions on one clip see its prefix too.

A row is cut into segments. A token sees the tokens of its own segment up to itself and, where the segment has a
prefix, all of that prefix:

    |<s> soft tokens, subtitle |[emotion] … happy </s>|[reason] … </s>|<s> next clip … </s>|
     prefix of two questions    sees itself and the prefix, each       sees itself

No work is done between segments: on a GPU by variable-length flash attention, elsewhere a segment at a time. Position
ids go on from the prefix, so that a question's positions are those that it has alone. A model whose attention cannot
be replaced gets the same pattern as a mask (L, L). A model that a layout does not isolate (recurrent or convolutional
layers, ALiBi, …; `family_check` measures it) gets each sample in a forward pass of its own.
Shapes: R rows of one layout, L tokens of a row, A heads, D width of a head. Knows no tokenizer and no clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED = "packed"
"""Name under which transformers knows this attention."""


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `stop` of a row; `prefix` is the (start, stop) that they see besides."""

    start: int
    stop: int
    prefix: tuple[int, int] | None = None

    @property
    def first_position(self) -> int:
        return self.prefix[1] - self.prefix[0] if self.prefix else 0


@dataclass(frozen=True)
class Layout:
    """The segments of a row, in order and without gaps; the same for every row of a batch."""

    segments: tuple[Segment, ...]

    @property
    def length(self) -> int:
        return self.segments[-1].stop

    def position_ids(self) -> Tensor:
        """(1, L) int64."""
        return torch.cat([torch.arange(s.first_position, s.first_position + s.stop - s.start) for s in self.segments])[
            None
        ]

    def mask(self) -> Tensor:
        """(1, 1, L, L) bool, True where a query (third axis) sees a key (fourth)."""
        seen = torch.zeros(self.length, self.length, dtype=torch.bool)
        for s in self.segments:
            seen[s.start : s.stop, s.start : s.stop] = True
            if s.prefix:
                seen[s.start : s.stop, slice(*s.prefix)] = True
        return seen.tril()[None, None]

    @lru_cache(maxsize=4)  # noqa: B019  # asked for once a layer; few layouts are alive at a time
    def varlen(self, rows: int, device: torch.device) -> VarlenIndex:
        """What variable-length attention wants to know of `rows` rows."""
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
        ends = [F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(device) for lengths in (lengths_q, lengths_k)]
        shared = any(s.prefix for s in self.segments)
        index = torch.cat(keys).to(device) if shared else None
        return VarlenIndex(index, ends[0], ends[1], max(lengths_q), max(lengths_k))


@dataclass(frozen=True)
class VarlenIndex:
    """Where the keys of every segment lie, and where segments end."""

    keys: Tensor | None
    """Into (R · L); None: keys lie as queries do."""
    ends_q: Tensor
    ends_k: Tensor
    longest_q: int
    longest_k: int


def use_packed_attention(llm: nn.Module) -> bool:
    """Let a causal LM of transformers attend by layout where it can; without a layout it does what SDPA does."""
    config = llm.config.get_text_config()
    if not getattr(llm, "_supports_attention_backend", False) or getattr(config, "attn_logit_softcapping", None):
        return False
    if config._attn_implementation != "sdpa":
        return config._attn_implementation == PACKED
    llm.set_attn_implementation(PACKED)
    return config._attn_implementation == PACKED


def attention_arguments(llm: nn.Module, layout: Layout, inputs: Tensor) -> dict[str, Any]:
    """Keyword arguments of the forward pass of `llm` that make it attend by `layout` over `inputs` (R, L, H)."""
    if llm.config.get_text_config()._attn_implementation == PACKED:
        # A mask of four axes is passed on as it is: none is made of (L, L).
        return {"layout": layout, "attention_mask": torch.empty(1, 1, 0, 0, device=inputs.device)}
    seen = layout.mask().to(inputs.device)
    if llm.config.get_text_config()._attn_implementation == "sdpa":
        return {"attention_mask": seen}
    lowest = torch.finfo(inputs.dtype).min
    return {"attention_mask": torch.zeros_like(seen, dtype=inputs.dtype).masked_fill(~seen, lowest)}


def row_logits(
    llm: nn.Module, inputs: Tensor, position_ids: Tensor, kept: Tensor, layout: Layout, *, together: bool
) -> Tensor:
    """Logits (R, S, V) at the places `kept` (S,), ascending, of rows `inputs` (R, L, H) of one layout.

    Args:
        together: all samples of a row in one forward pass; else each sample, its prefix before it, in its own.
    """
    if together:
        return llm(
            inputs_embeds=inputs,
            position_ids=position_ids,
            logits_to_keep=kept,
            use_cache=False,
            **attention_arguments(llm, layout, inputs),
        ).logits
    places = kept.tolist()
    parts = []
    for s in layout.segments:
        own = [place - s.start + s.first_position for place in places if s.start <= place < s.stop]
        if own:
            before = inputs[:, slice(*s.prefix)] if s.prefix else inputs[:, :0]
            sample = torch.cat([before, inputs[:, s.start : s.stop]], dim=1)
            parts.append(
                llm(inputs_embeds=sample, logits_to_keep=torch.tensor(own, device=kept.device), use_cache=False).logits
            )
    return torch.cat(parts, dim=1)


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
    """An attention function of transformers: query (R, A, L, D) -> (R, L, A, D)."""
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest
        )
    return _attend(query, key, value, layout, scaling, dropout, sliding_window), None


@torch.compiler.disable(reason="every number of segments would be a graph of its own")
def _attend(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and dropout == 0 and _varlen() is not None:
        return _attend_varlen(query, key, value, layout, scaling, window)
    return _attend_by_segment(query, key, value, layout, scaling, dropout, window)


def _attend_by_segment(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    grouped = query.shape[1] != key.shape[1]
    outputs = []
    for s in layout.segments:
        own, total = s.stop - s.start, s.stop - s.start + s.first_position
        k, v = key[:, :, s.start : s.stop], value[:, :, s.start : s.stop]
        if s.prefix:
            before = slice(*s.prefix)
            k, v = torch.cat([key[:, :, before], k], dim=2), torch.cat([value[:, :, before], v], dim=2)
        windowed = window is not None and window < total
        mask = _causal(own, total, window if windowed else None, query.device) if s.prefix or windowed else None
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
def _causal(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(queries, keys) bool; the last query sees the last key."""
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
    out = _varlen()(
        q,
        k,
        v,
        index.ends_q,
        index.ends_k,
        index.longest_q,
        index.longest_k,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.unflatten(0, (query.shape[0], layout.length))


@lru_cache(maxsize=1)
def _varlen() -> Any:
    """torch's variable-length attention with windows and grouped heads (2.12 and later), or None."""
    import inspect

    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys() else None


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
