"""Compute the elementwise chains of a language model in one kernel each, by torch.compile.

    norm            x -> float32 -> square, mean, scale -> weight · x      the module, compiled
    feed-forward    gate, up -> activation(gate) · up                      the product, compiled
    attention       queries, keys, cos, sin -> rotated queries, keys       the function of the family's module, compiled

Operator by operator, these chains take as long as all matrix products of a step on an H100: every operator reads and
writes the whole tensor. What is compiled is the family's own code, so that no formula is restated here, and a family
that is written otherwise keeps its operators. All layers share one graph per chain. Matrix products, adapters and
attention stay outside: compiling whole layers took longer than a minute on an H100.
Shapes: B rows, L tokens, F width of the feed-forward. Knows no configuration.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

ROTARY = "apply_rotary_pos_emb"
"""Name of the function in the modules of transformers; the attention of a family calls it by this name."""
PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""Of a gated feed-forward, by the names that Llama introduced."""

_rotates_compiled: ContextVar[bool] = ContextVar("_rotates_compiled", default=False)


def fuse_layers(llm: nn.Module) -> None:
    """Compile the chains of `llm`; the first forward pass makes the kernels. Its values may differ in the last bit."""
    for module in list(llm.modules()):
        if _is_rms_norm(module):
            module.compile(dynamic=True)
        elif _is_gated(module):
            module.forward = MethodType(_gated_forward, module)
        elif _rotates(module):
            module.forward = MethodType(functools.partial(_with_compiled_rotation, type(module).forward), module)


@contextmanager
def without_compiled_chains() -> Iterator[None]:
    """Compute operator by operator inside the block: each length of cached keys would need kernels of its own."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether it is a norm of a family; torch's own norms have kernels."""
    return type(module).__name__.endswith("RMSNorm") and not isinstance(module, nn.RMSNorm)


def _is_gated(module: Any) -> bool:
    """Whether the module computes down_proj(act_fn(gate_proj(x)) * up_proj(x)), seen on a few numbers."""
    if "forward" in vars(module) or not all(hasattr(module, name) for name in PARTS):
        return False
    tensors = [*module.parameters(), *module.buffers()]  # a quantised matrix is a buffer
    if any(tensor.is_meta for tensor in tensors):
        return False
    dtype = next((t.dtype for t in tensors if t.is_floating_point() and t.element_size() > 1), torch.float32)
    width = module.gate_proj.in_features
    x = torch.linspace(-1, 1, 2 * width, device=tensors[0].device, dtype=dtype).view(1, 2, width)
    was_training = module.training
    module.eval()  # adapters must not drop out
    try:
        with torch.no_grad():
            return torch.equal(module(x), _gated(module, x, _product))
    except (RuntimeError, TypeError):
        return False
    finally:
        module.train(was_training)


def _gated_forward(module: nn.Module, x: Tensor) -> Tensor:
    return _gated(module, x, _compiled_product())


def _gated(module: Any, x: Tensor, product: Callable[[Any, Tensor, Tensor], Tensor]) -> Tensor:
    output: Tensor = module.down_proj(product(module.act_fn, module.gate_proj(x), module.up_proj(x)))
    return output


def _product(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """(B, L, F) twice -> (B, L, F)."""
    return activation(gate) * up


@functools.cache
def _compiled_product() -> Callable[[Any, Tensor, Tensor], Tensor]:
    return torch.compile(_product, dynamic=True)


def _rotates(module: nn.Module) -> bool:
    """Whether the module is an attention whose family has the function; it is replaced there once per process."""
    namespace: Any = sys.modules.get(type(module).__module__)
    if not type(module).__name__.endswith("Attention") or "forward" in vars(module):
        return False
    function = getattr(namespace, ROTARY, None)
    if function is None:
        return False
    if not hasattr(function, "of_family"):
        setattr(namespace, ROTARY, _rotary(function))
    return True


def _rotary(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled where it is called by an attention of `fuse_layers`."""
    compiled = torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def rotate(*args: Any, **kwargs: Any) -> Any:
        return (compiled if _rotates_compiled.get() else function)(*args, **kwargs)

    rotate.of_family = function  # type: ignore[attr-defined]
    return rotate


def _with_compiled_rotation(forward: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    token = _rotates_compiled.set(True)
    try:
        return forward(module, *args, **kwargs)
    finally:
        _rotates_compiled.reset(token)
