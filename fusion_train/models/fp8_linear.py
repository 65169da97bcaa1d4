"""A frozen linear layer whose matrix products run in FP8 (e4m3), forward and backward.

    y  = (x / s_x)₈ · (W / s_w)₈ᵀ · s_x s_w       scales: one per token of x, one per output channel of W
    dx = (dy / s_dy)₈ · (W / s_w')₈ · s_dy s_w'   the transposed copy of W has one scale per input channel

Two copies of the weight are stored, 2 bytes per parameter together. For 8-bit types the tensor cores of Hopper and Ada
take both operands only with the contracted axis last (PTX ISA, wgmma: only 16-bit types may be transposed), so the view
`w.t()` serves only the forward product. The scales do not require the second copy: scales per output channel could be
multiplied into dy before it is rounded. On devices without FP8 products the same rounded numbers are multiplied in
float32; this path is what the tests check. The weight is frozen and gets no gradient.

Layers that read one tensor (q, k and v; gate and up) share its quantised copy. On a GPU torch.compile makes one kernel
of the quantisation: operator by operator it moves 25 bytes per bfloat16 number instead of 5, which by arithmetic takes
as long as the product with a 4096 × 4096 weight on an H100. The forward product accumulates fast, in the tensor cores'
own precision of about 14 bits (arXiv 2412.19437, section 3.3.2); the backward product adds partial sums in float32.
Shapes: M tokens, K inputs, N outputs, R rows and C columns of any matrix.
"""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fusion_train.models.kernels import missing_for_kernels

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SMALLEST_SCALE = 1e-12
TILE = 16
"""Tensor cores multiply matrices whose sizes are multiples of this number."""


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise (R, C) of any layout -> FP8 (R, C), contiguous, and scales (R, 1) float32; x ≈ their product."""
    scale = (x.abs().amax(dim=1, keepdim=True).float() / LARGEST).clamp(min=SMALLEST_SCALE)
    return (x.float() / scale).to(FP8, memory_format=torch.contiguous_format), scale


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `quantise_rows`, on a GPU with triton in one kernel; there an FP8 number may differ in its last bit."""
    rows: tuple[Tensor, Tensor] = _quantise_in_one_kernel()(x) if x.is_cuda else quantise_rows(x)
    return rows


@functools.cache
def _quantise_in_one_kernel() -> Any:
    return quantise_rows if missing_for_kernels("cuda") else torch.compile(quantise_rows, dynamic=True)


@dataclass(frozen=True)
class _Quantised:
    """The FP8 copy of a tensor, and how many layers have still to read it."""

    source: weakref.ref[Tensor]
    version: int | None
    dtype: torch.dtype
    rows: tuple[Tensor, Tensor]
    left: int


class SharedInput:
    """Quantises a tensor once for several layers that read it one after the other, and keeps nothing afterwards."""

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._last: _Quantised | None = None

    def quantise(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Quantise (…, K), read as `dtype`; returns FP8 (M, K) and scales (M, 1)."""
        version = None if x.is_inference() else x._version  # an inference tensor counts no changes
        last = self._last
        if last is None or last.source() is not x or (last.version, last.dtype) != (version, dtype):
            with torch.no_grad():
                rows = quantise(x.detach().to(dtype).reshape(-1, x.shape[-1]))
            last = _Quantised(weakref.ref(x), version, dtype, rows, self._num_layers)
        left = last.left - 1
        self._last = replace(last, left=left) if left else None
        return last.rows


def scaled_product(
    rows: tuple[Tensor, Tensor], weight: Tensor, scale: Tensor, dtype: torch.dtype, *, native: bool, fast: bool
) -> Tensor:
    """Multiply quantised rows (M, K) by an FP8 weight (N, K) with scales (N, 1) -> (M, N) of `dtype`.

    Args:
        native: the result of `multiplies_in_fp8` for the device.
        fast: accumulate in the tensor cores' own precision, where the product is native.
    """
    rounded, x_scale = rows
    if native and rounded.shape[1] % TILE == 0 and weight.shape[0] % TILE == 0:
        product = torch._scaled_mm(
            rounded, weight.t(), x_scale, scale.t(), out_dtype=torch.bfloat16, use_fast_accum=fast
        )
        return product.to(dtype)
    return ((rounded.float() @ weight.float().t()) * x_scale * scale.t()).to(dtype)


@functools.cache
def multiplies_in_fp8(device: torch.device) -> bool:
    """Test whether a device multiplies FP8 with one scale per row; on Ada this depends on the release of torch."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return False
    ones, scale = torch.ones(TILE, TILE, device=device).to(FP8), torch.ones(TILE, 1, device=device)
    try:
        torch._scaled_mm(ones, ones.t(), scale, scale.t(), out_dtype=torch.bfloat16)
    except RuntimeError:
        return False
    return True


class _Product(torch.autograd.Function):
    """The product of the quantised rows of x; x itself is there for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: tuple[Tensor, Tensor], layer: Fp8Linear) -> Tensor:
        ctx.layer = layer
        return scaled_product(rows, layer.by_output, layer.output_scale, x.dtype, native=layer.native, fast=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        layer, dy = ctx.layer, gradients[0]
        return _product_of_gradient(dy, layer.by_input, layer.input_scale, native=layer.native), None, None


def _product_of_gradient(dy: Tensor, by_input: Tensor, input_scale: Tensor, *, native: bool) -> Tensor:
    return scaled_product(quantise(dy), by_input, input_scale, dy.dtype, native=native, fast=False)


@torch.library.custom_op("fusion_train::fp8_product", mutates_args=())
def _opaque_product(
    x: Tensor,
    rounded: Tensor,
    x_scale: Tensor,
    by_output: Tensor,
    output_scale: Tensor,
    by_input: Tensor,
    input_scale: Tensor,
    native: bool,
) -> Tensor:
    """Compute `_Product` for torch.compile, which cannot trace an autograd function over rows of any length.

    It traces the quantisation, so that this becomes one kernel with what made x, once for all layers that read x.
    """
    return scaled_product((rounded, x_scale), by_output, output_scale, x.dtype, native=native, fast=True)


@_opaque_product.register_fake
def _shape_of_product(x: Tensor, rounded: Tensor, x_scale: Tensor, by_output: Tensor, *_rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], by_output.shape[0])


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *_, by_input, input_scale, ctx.native = inputs
    ctx.save_for_backward(by_input, input_scale)


def _opaque_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _product_of_gradient(gradient, *ctx.saved_tensors, native=ctx.native), *([None] * 7)


_opaque_product.register_autograd(_opaque_backward, setup_context=_keep_for_backward)


class Fp8Linear(nn.Module):
    """Replaces a frozen `nn.Linear` on its device."""

    by_output: Tensor
    """(N, K) FP8, for the forward product."""
    output_scale: Tensor
    """(N, 1)."""
    by_input: Tensor
    """(K, N) FP8, for the backward product."""
    input_scale: Tensor
    """(K, 1)."""
    bias: nn.Parameter | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._shared = SharedInput(1)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.native = multiplies_in_fp8(weight.device)
        by_output, output_scale = quantise_rows(weight)
        by_input, input_scale = quantise_rows(weight.t())
        self.register_buffer("by_output", by_output)
        self.register_buffer("output_scale", output_scale)
        self.register_buffer("by_input", by_input)
        self.register_buffer("input_scale", input_scale)
        bias: nn.Parameter | None = linear.bias  # the stubs of torch say it is never None
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) -> (…, N) in the dtype of x, or of autocast."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        flat = x.to(dtype).reshape(-1, self.in_features)
        if torch.compiler.is_compiling():
            weights = self.by_output, self.output_scale, self.by_input, self.input_scale
            out = _opaque_product(flat, *quantise_rows(flat.detach()), *weights, self.native)
        else:
            out = _Product.apply(flat, self._shared.quantise(x, dtype), self)
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def share_input(self, shared: SharedInput) -> None:
        """Quantise inputs by what the layers have in common that read the same tensors."""
        self._shared = shared

    @property
    def weight(self) -> Tensor:
        """The quantised weight as float32 (N, K)."""
        return self.by_output.float() * self.output_scale
