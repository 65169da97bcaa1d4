"""A frozen linear layer whose matrix products run in FP8 (e4m3), forward and backward.

    y  = (x / s_x)₈ · (W / s_w)₈ᵀ · s_x s_w       scales: one per token of x, one per output channel of W
    dx = (dy / s_dy)₈ · (W / s_w')₈ · s_dy s_w'   the transposed copy of W has one scale per input channel

Two copies of the weight are stored, 2 bytes per parameter together. For 8-bit types the tensor cores of Hopper and Ada
take both operands only with the contracted axis last (PTX ISA, wgmma: only 16-bit types may be transposed), so the view
`w.t()` serves only the forward product. The scales do not require the second copy: scales per output channel could be
multiplied into dy before it is rounded. On devices without FP8 products the same rounded numbers are multiplied in
float32; this path is what the tests check. The weight is frozen and gets no gradient.
Shapes: M tokens, K inputs, N outputs, R rows and C columns of any matrix.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SMALLEST_SCALE = 1e-12
TILE = 16
"""Tensor cores multiply matrices whose sizes are multiples of this number."""


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise (R, C) of any layout -> FP8 (R, C), contiguous, and scales (R, 1) float32; x ≈ their product."""
    scale = (x.abs().amax(dim=1, keepdim=True).float() / LARGEST).clamp(min=SMALLEST_SCALE)
    return (x.float() / scale).to(FP8, memory_format=torch.contiguous_format), scale


def scaled_product(x: Tensor, weight: Tensor, scale: Tensor, *, native: bool) -> Tensor:
    """Multiply x (M, K) of any float dtype by an FP8 weight (N, K) with scales (N, 1) -> (M, N) in the dtype of x.

    Args:
        native: the result of `multiplies_in_fp8` for the device.
    """
    rounded, x_scale = quantise_rows(x)
    if native and x.shape[1] % TILE == 0 and weight.shape[0] % TILE == 0:
        product = torch._scaled_mm(rounded, weight.t(), x_scale, scale.t(), out_dtype=torch.bfloat16)
        return product.to(x.dtype)
    return ((rounded.float() @ weight.float().t()) * x_scale * scale.t()).to(x.dtype)


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
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Fp8Linear) -> Tensor:
        ctx.layer = layer
        return scaled_product(x, layer.by_output, layer.output_scale, native=layer.native)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        return scaled_product(gradients[0], layer.by_input, layer.input_scale, native=layer.native), None


@torch.library.custom_op("fusion_train::fp8_product", mutates_args=())
def _opaque_product(
    x: Tensor, by_output: Tensor, output_scale: Tensor, by_input: Tensor, input_scale: Tensor, native: bool
) -> Tensor:
    """Compute `_Product` for torch.compile, which cannot trace an autograd function over rows of any length."""
    return scaled_product(x, by_output, output_scale, native=native)


@_opaque_product.register_fake
def _shape_of_product(x: Tensor, by_output: Tensor, *_rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], by_output.shape[0])


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *_, by_input, input_scale, ctx.native = inputs
    ctx.save_for_backward(by_input, input_scale)


def _opaque_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return scaled_product(gradient, *ctx.saved_tensors, native=ctx.native), None, None, None, None, None


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
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        flat = x.reshape(-1, self.in_features)
        if torch.compiler.is_compiling():
            weights = self.by_output, self.output_scale, self.by_input, self.input_scale
            flat = _opaque_product(flat, *weights, self.native)
        else:
            flat = _Product.apply(flat, self)
        out = flat.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    @property
    def weight(self) -> Tensor:
        """The quantised weight as float32 (N, K)."""
        return self.by_output.float() * self.output_scale
