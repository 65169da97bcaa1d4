"""Run a frozen network at a chosen precision, cut it after any block, and share one copy in memory.

float32 computes everything in float32. float16 and bfloat16 run matrix products in that dtype and keep the residual
stream, norms and softmax in float32 (autocast), which costs no speed and keeps the precision of the sum over 40 blocks.

A tap is a shallow copy of the network that shares every weight with it, whose list of blocks is cut and whose final
norm may be left out; so one network in memory serves any number of taps. A shared network lives as long as an encoder
holds it, so a sweep over token counts, or both EVA taps, load weights once. This module knows no family of networks.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from featurecache.errors import EncoderError, suggest

COMPUTE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALIGNMENT_BYTES = 64  # of torch's own allocations


def resolve_device(device: str) -> torch.device:
    """Return the device named, "auto" being CUDA where there is one.

    Raises:
        EncoderError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch built without CUDA asserts
        raise EncoderError(
            f'device "{device}"',
            expected="a device of this machine",
            got=str(error).partition("\n")[0].rstrip("."),
            next_step="Use --device cpu, cuda or cuda:N.",
        ) from error
    return found


def resolve_compute_dtype(compute_dtype: str, device: torch.device) -> str:
    """Return the dtype named, "auto" being float16 on CUDA and float32 elsewhere.

    Raises:
        EncoderError: not one of the dtypes.
    """
    if compute_dtype == "auto":
        return "float16" if device.type == "cuda" else "float32"
    if compute_dtype not in COMPUTE_DTYPES:
        raise EncoderError(
            f'compute dtype "{compute_dtype}"',
            expected=" | ".join(["auto", *COMPUTE_DTYPES]),
            got="another",
            next_step=suggest(compute_dtype, COMPUTE_DTYPES).strip() or None,
        )
    return compute_dtype


COMPILE = ("no", "yes")
"""Values of the option `compile`, which every encoder of ours has: whether blocks go through torch.compile."""


def compiled_fields(compile_option: str) -> dict[str, str]:
    """What the option adds to a spec's architecture: fused kernels round otherwise, so it decides the last bits."""
    return {"compiled": "blocks"} if compile_option == "yes" else {}


def align(module: torch.nn.Module) -> torch.nn.Module:
    """Copy weights in main memory that do not begin where torch itself would put them; returns the module.

    A safetensors file is mapped, not copied, so its tensors begin anywhere, and CPU matrix kernels that start elsewhere
    in a cache line sum in another order: the same weights from another file would give other last bits.
    """
    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT_BYTES:
                tensor.data = tensor.data.clone()
    return module


def round_products(network: torch.nn.Module, compute_dtype: str) -> torch.nn.Module:
    """Round the weights of linear layers to the compute dtype, in place; returns the network.

    What autocast would round at every forward is rounded once; norms, convolutions and positions stay whole.
    """
    if compute_dtype != "float32":
        for part in network.modules():
            if isinstance(part, torch.nn.Linear):
                part.to(COMPUTE_DTYPES[compute_dtype])
    return network


class FrozenNetwork:
    """A network in evaluation mode on its device."""

    def __init__(
        self, network: torch.nn.Module, device: torch.device, compute_dtype: str, compiled_blocks: str = ""
    ) -> None:
        """Take over `network`; the blocks in the list at the dotted path `compiled_blocks` go through torch.compile."""
        self.device, self.compute_dtype = device, compute_dtype
        self._dtype = COMPUTE_DTYPES[compute_dtype]
        self.module = round_products(network.requires_grad_(False).eval(), compute_dtype)
        align(self.module.to(device))
        if compiled_blocks:
            for block in self.module.get_submodule(compiled_blocks):
                block.compile(dynamic=False)  # all blocks share one compiled graph a shape

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Compute without gradients at the chosen precision, never in TF32."""
        half = self._dtype is not torch.float32
        autocast = torch.autocast(self.device.type, dtype=self._dtype, enabled=half)
        with _without_tf32(), torch.inference_mode(), autocast:
            yield

    def tensor(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Copy a batch to the device, in its own dtype; to a GPU without waiting for what runs there."""
        if isinstance(batch, torch.Tensor):
            return batch.to(self.device)
        host = torch.from_numpy(np.ascontiguousarray(batch))
        if self.device.type == "cuda":
            return host.pin_memory().to(self.device, non_blocking=True)
        return host.to(self.device)


_SWITCHES = ((torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32"))
_SWITCHES += ((torch.backends.cudnn, "benchmark"),)
_switched = threading.Lock()
_running = 0
_before: list[bool] = []


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Keep float32 products whole and cuDNN's choice of kernel fixed, whatever the process has set.

    The switches belong to the process and several devices may be at work in it: the first to come sets them, the last
    to go restores them.
    """
    global _running, _before
    with _switched:
        if not _running:
            _before = [getattr(place, name) for place, name in _SWITCHES]
            for place, name in _SWITCHES:
                setattr(place, name, False)
        _running += 1
    try:
        yield
    finally:
        with _switched:
            _running -= 1
            if not _running:
                for (place, name), value in zip(_SWITCHES, _before, strict=True):
                    setattr(place, name, value)


def block_count(encoder: str, layer: int | None, available: int) -> int:
    """Return how many blocks run: `layer`, or all where it is None.

    Raises:
        EncoderError: more blocks than there are.
    """
    if layer is not None and layer > available:
        raise EncoderError(
            f"{encoder}.layer", expected=f"at most {available}, the blocks of its weights", got=f"{layer}"
        )
    return layer or available


def tap(module: torch.nn.Module, blocks: str, count: int, norm: str | None) -> torch.nn.Module:
    """Return a copy that runs the first `count` of the blocks at the dotted path `blocks`, and no norm at path `norm`.

    With `norm` None the network's own final norm, if it has one, stays. Weights are shared, not copied.
    """
    kept = list(module.get_submodule(blocks))[:count]
    tapped = _with(module, blocks.split("."), torch.nn.ModuleList(kept))
    return tapped if norm is None else _with(tapped, norm.split("."), torch.nn.Identity())


def _with(module: torch.nn.Module, path: list[str], replacement: torch.nn.Module) -> torch.nn.Module:
    changed = copy.copy(module)
    inner = replacement if len(path) == 1 else _with(module._modules[path[0]], path[1:], replacement)  # type: ignore[arg-type]
    changed._modules = {**module._modules, path[0]: inner}
    return changed.eval()


@dataclass(eq=False)
class Loaded:
    """A network and what is to be said of it."""

    network: FrozenNetwork | None
    """None where only preprocessing is wanted."""
    config: Any
    weights: Mapping[str, str]
    """sha256 by weight file."""
    provenance: Mapping[str, str]


_loaded: weakref.WeakValueDictionary[tuple[str, ...], Loaded] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def load_once(key: tuple[str, ...], load: Callable[[], Loaded]) -> Loaded:
    """Return what `load` gave for this key, as long as somebody holds it."""
    with _lock:
        found = _loaded.get(key)
        if found is None:
            found = _loaded[key] = load()
        return found
