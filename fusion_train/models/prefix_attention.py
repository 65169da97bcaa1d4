"""Attention of questions to the prefix that they share, without a copy of its keys and values for the backward pass.

A question sees its prefix and itself. Ordinary attention takes the keys of both in one piece, so a row with q
questions would keep q copies of its prefix until the backward pass, in every layer. Two functions avoid this:

`attend_again` makes the copies for one layer at a time: it keeps query, key and value of the row, and the backward
pass attends once more. The results equal those of ordinary attention to the bit, on every device.

`attend_in_two_ranges` makes no copy: variable-length attention reads the keys where they lie, once over the prefixes
and once over each segment itself, and both results are merged by their log-sum-exps:

    l = log(exp(l_prefix) + exp(l_own)),  out = exp(l_prefix - l) · out_prefix + exp(l_own - l) · out_own

The backward kernels of both ranges get the merged `out` and `l`, from which they compute the probabilities of the
whole softmax, so their gradients add up to those of one attention. Differences are those of rounding `out_prefix` and
`out_own` to the dtype of the activations. This is the merge of ring attention (arXiv 2310.01889) over two ranges.

Shapes: T tokens of all rows, A heads (C of keys), D width per head. Knows no layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fusion_train.models.host_copies import to_device

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(query, key, value) -> output; without dropout, so that calling it again gives the same."""


def attend_again(query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
    """Compute `attention`; for the backward pass keep only its inputs, and compute it once more."""
    if not (torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)):
        return attention(query, key, value)
    output: Tensor = _AttendAgain.apply(query, key, value, attention)
    return output


class _AttendAgain(torch.autograd.Function):
    """The backward pass runs under the autocast of the forward pass."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, attention: Attention) -> Tensor:
        device = query.device.type
        ctx.save_for_backward(query, key, value)
        ctx.attention = attention
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        return attention(query, key, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        inputs = [
            tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=False)
        ]
        device, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(device, dtype, enabled):
            output = ctx.attention(*inputs)
        learning = [tensor for tensor in inputs if tensor.requires_grad]
        computed = iter(torch.autograd.grad(output, learning, gradients[0]))
        return *(next(computed) if tensor.requires_grad else None for tensor in inputs), None


@dataclass(frozen=True)
class Sequences:
    """Pieces of queries and of keys, in the order of the tokens; piece n of the queries sees piece n of the keys."""

    ends_q: Tensor
    """(N + 1,) int32: where the queries of each piece end, after a 0; a piece may be empty."""
    ends_k: Tensor
    """The same for keys."""
    longest_q: int
    longest_k: int

    @classmethod
    def of(cls, lengths_q: list[int], lengths_k: list[int], device: torch.device) -> Sequences:
        """Build them from the numbers of tokens of each piece."""
        ends = [to_device(torch.tensor([0, *lengths]).cumsum(0).int(), device) for lengths in (lengths_q, lengths_k)]
        return cls(ends[0], ends[1], max(lengths_q), max(lengths_k))


@dataclass(frozen=True)
class TwoRanges:
    """What the queries see: each segment itself, causally; questions their prefix, whole."""

    own: Sequences
    prefix: Sequences
    sees_prefix: Tensor
    """(T,) bool: tokens of questions."""


class RangeKernels(Protocol):
    """Forward and backward of variable-length attention, which give and take log-sum-exps."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, *, causal: bool, scale: float | None
    ) -> tuple[Tensor, Tensor]:
        """Attend: q (T, A, D), k and v (T, C, D) -> output (T, A, D), log-sum-exps (A, T) float32.

        The output of a query without keys is finite; its log-sum-exp may be anything.
        """

    def backward(
        self,
        gradient: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        output: Tensor,
        log_sums: Tensor,
        sequences: Sequences,
        *,
        causal: bool,
        scale: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and v for the probabilities exp(scale · q·k - log_sums); zeros where a query has
        no key, or a key no query."""


class FlashKernels:
    """Flash attention of torch on CUDA devices of compute capability 8.0 and later, in float16 or bfloat16."""

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, *, causal: bool, scale: float | None
    ) -> tuple[Tensor, Tensor]:
        output, log_sums, *_ = torch.ops.aten._flash_attention_forward(
            q,
            k,
            v,
            sequences.ends_q,
            sequences.ends_k,
            sequences.longest_q,
            sequences.longest_k,
            0.0,
            causal,
            False,  # return_debug_mask
            scale=scale,
        )
        return output, log_sums

    def backward(
        self,
        gradient: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        output: Tensor,
        log_sums: Tensor,
        sequences: Sequences,
        *,
        causal: bool,
        scale: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device)  # the state of dropout, as varlen_attn passes it
        gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            gradient,
            q,
            k,
            v,
            output,
            log_sums,
            sequences.ends_q,
            sequences.ends_k,
            sequences.longest_q,
            sequences.longest_k,
            0.0,
            causal,
            unused,
            torch.empty(0, device=q.device),
            scale=scale,
        )
        return gradients


def attend_in_two_ranges(
    q: Tensor, k: Tensor, v: Tensor, ranges: TwoRanges, scale: float | None, kernels: RangeKernels
) -> Tensor:
    """Attend to each segment itself and to the prefix of each question: q (T, A, D), k and v (T, C, D) -> (T, A, D)."""
    output: Tensor = _TwoRanges.apply(q.contiguous(), k.contiguous(), v.contiguous(), ranges, scale, kernels)
    return output


class _TwoRanges(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, ranges: TwoRanges, scale: float | None, kernels: RangeKernels
    ) -> Tensor:
        own, own_sums = kernels.forward(q, k, v, ranges.own, causal=True, scale=scale)
        prefix, prefix_sums = kernels.forward(q, k, v, ranges.prefix, causal=False, scale=scale)
        prefix_sums = torch.where(ranges.sees_prefix, prefix_sums, -torch.inf)  # [a, t]
        log_sums = torch.logaddexp(own_sums, prefix_sums)
        own_share, prefix_share = (
            (sums - log_sums).exp().transpose(0, 1)[..., None]  # [t, a, 1]
            for sums in (own_sums, prefix_sums)
        )
        output = (own * own_share + prefix * prefix_share).to(q.dtype)
        ctx.save_for_backward(q, k, v, output, log_sums)
        ctx.ranges, ctx.scale, ctx.kernels = ranges, scale, kernels
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        arguments = (gradients[0].contiguous(), *ctx.saved_tensors)
        own = ctx.kernels.backward(*arguments, ctx.ranges.own, causal=True, scale=ctx.scale)
        prefix = ctx.kernels.backward(*arguments, ctx.ranges.prefix, causal=False, scale=ctx.scale)
        return *(one + other for one, other in zip(own, prefix, strict=True)), None, None, None
