"""A frozen linear layer whose matrix products run in FP8 (e4m3), forward and backward.

    y  = (x / s_x)₈ · (W / s_w)₈ᵀ · s_x s_w       scales: one a token of x, one an output channel of W
    dx = (dy / s_dy)₈ · (W / s_w')₈ · s_dy s_w'   the transposed copy has a scale an input channel

Both copies of the weight are kept (2 bytes a parameter in all), since the tensor cores want either with its contracted
axis last. Hopper and Ada multiply in FP8 (`torch._scaled_mm`); elsewhere the same rounded numbers are multiplied in
float32, which is what the tests look at. The weight is frozen: no gradient for it.
Shapes: M tokens, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
SMALLEST_SCALE = 1e-12
TILE = 16
"""Sizes that the tensor cores multiply are multiples of it."""


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """(R, C) -> FP8 (R, C) and scales (R, 1) float32, so that x ≈ product of both."""
    scale = (x.abs().amax(dim=1, keepdim=True).float() / LARGEST).clamp(min=SMALLEST_SCALE)
    return (x.float() / scale).to(FP8), scale


def scaled_product(x: Tensor, weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x (M, K) of any float dtype, FP8 weight (N, K) and its scales (N, 1) -> (M, N) in `dtype`."""
    rounded, x_scale = quantise_rows(x)
    if _multiplies_in_fp8(x) and x.shape[1] % TILE == 0 and weight.shape[0] % TILE == 0:
        product = torch._scaled_mm(rounded, weight.t(), x_scale, scale.t(), out_dtype=torch.bfloat16)
        return product.to(dtype)
    return ((rounded.float() @ weight.float().t()) * x_scale * scale.t()).to(dtype)


def _multiplies_in_fp8(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 9)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Fp8Linear) -> Tensor:
        ctx.layer = layer
        return scaled_product(x, layer.by_output, layer.output_scale, x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        return scaled_product(gradients[0], layer.by_input, layer.input_scale, gradients[0].dtype), None


class Fp8Linear(nn.Module):
    """Takes the place of a frozen `nn.Linear`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        by_output, output_scale = quantise_rows(weight)
        by_input, input_scale = quantise_rows(weight.t())
        self.register_buffer("by_output", by_output)
        self.register_buffer("output_scale", output_scale)
        self.register_buffer("by_input", by_input.contiguous())
        self.register_buffer("input_scale", input_scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(…, K) -> (…, N) in the dtype of x, or of autocast."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        flat = _Product.apply(x.reshape(-1, self.in_features), self)
        out = flat.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    @property
    def weight(self) -> Tensor:
        """What the layer multiplies by, as float32 (N, K)."""
        return self.by_output.float() * self.output_scale
