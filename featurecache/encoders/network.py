"""Run a frozen network at a chosen precision, truncate it after any block, and share one copy in memory.

float32 computes everything in float32. float16 and bfloat16 run matrix products in that dtype and keep the residual
stream, norms and softmax in float32 (autocast), which costs no speed and keeps the precision of the sum over 40 blocks.

The tap of a spec is the place where tokens leave the network: the number of blocks, and the norm after them. A tapped
network is a shallow copy that shares every weight with the whole network, so one network in memory serves any number of
taps. A shared network lives as long as an encoder refers to it: an extraction with several token counts, or with both
EVA encoders, loads the weights once. This module knows no network family.
"""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from featurecache.errors import EncoderError, suggest

T = TypeVar("T")
COMPUTE_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ALIGNMENT_BYTES = 64  # torch aligns its own allocations to this


def resolve_device(device: str) -> torch.device:
    """Return the device of a name; "auto" is CUDA if it is available, otherwise the CPU.

    Raises:
        EncoderError: this machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch built without CUDA asserts
        raise EncoderError(
            f'device "{device}"',
            expected="a device of this machine",
            got=str(error).partition("\n")[0].rstrip("."),
            next_step="Use --device cpu, cuda or cuda:N.",
        ) from error
    return resolved


def resolve_compute_dtype(compute_dtype: str, device: torch.device) -> str:
    """Return the name of the compute dtype; "auto" is float16 on CUDA and float32 elsewhere.

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
"""Values of the option `compile` of this package's encoders: whether blocks go through torch.compile."""


def compiled_fields(compile_option: str) -> dict[str, str]:
    """Return the spec's architecture fields for the option `compile`: fused kernels round differently."""
    return {"compiled": "blocks"} if compile_option == "yes" else {}


def align(module: torch.nn.Module) -> torch.nn.Module:
    """Copy weights in main memory that are not aligned as torch aligns its own allocations; return the module.

    safetensors maps its file, so tensors start at any address. CPU matrix kernels sum in another order if a tensor
    starts elsewhere in a cache line: without this, the same weights from another file would give other last bits.
    """
    with torch.no_grad():
        for tensor in module.parameters():
            if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT_BYTES:
                tensor.data = tensor.data.clone()
    return module


def round_products(network: torch.nn.Module, compute_dtype: str) -> torch.nn.Module:
    """Round the weights of linear layers to the compute dtype, in place; return the network.

    Autocast would round these weights at every forward pass. Norms, convolutions and positions stay in float32.
    """
    if compute_dtype != "float32":
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.to(COMPUTE_DTYPES[compute_dtype])
    return network


class FrozenNetwork:
    """A network in evaluation mode on its device."""

    def __init__(
        self, network: torch.nn.Module, device: torch.device, compute_dtype: str, compiled_blocks: str = ""
    ) -> None:
        """Move `network` to the device; blocks in the list at the dotted path `compiled_blocks` are compiled."""
        self.device, self.compute_dtype = device, compute_dtype
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        """Stream of copies to the device, which so run beside its kernels."""
        self._dtype = COMPUTE_DTYPES[compute_dtype]
        self.module = round_products(network.requires_grad_(False).eval(), compute_dtype)
        align(self.module.to(device))
        if compiled_blocks:
            for block in self.module.get_submodule(compiled_blocks).children():
                block.compile(dynamic=False)  # all blocks share one compiled graph per shape

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Compute without gradients at the chosen precision, never in TF32."""
        half = self._dtype is not torch.float32
        autocast = torch.autocast(self.device.type, dtype=self._dtype, enabled=half)
        with _without_tf32(), torch.inference_mode(), autocast:
            yield

    def tensor(self, batch: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Copy a batch to the device without changing its dtype; a copy to a GPU does not wait for running kernels."""
        if isinstance(batch, torch.Tensor):
            return batch.to(self.device)
        host = torch.from_numpy(np.ascontiguousarray(batch))
        if self._copies is None:
            return host.to(self.device)
        with torch.cuda.stream(self._copies):
            on_device = host.pin_memory().to(self.device, non_blocking=True)
        kernels = torch.cuda.current_stream(self.device)
        kernels.wait_stream(self._copies)
        on_device.record_stream(kernels)  # its memory is that of the other stream, which must not take it back earlier
        return on_device


_BACKEND_FLAGS: tuple[tuple[Any, str], ...] = (
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cudnn, "benchmark"),
)
_flags_lock = threading.Lock()
_num_running = 0
_flags_before: list[bool] = []


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Compute float32 products without TF32 and with a fixed choice of cuDNN kernels, whatever the process has set.

    The flags belong to the process, and threads of several devices run in it at once: the first thread to enter sets
    the flags, the last thread to leave restores them.
    """
    global _num_running, _flags_before
    with _flags_lock:
        if not _num_running:
            _flags_before = [getattr(backend, flag) for backend, flag in _BACKEND_FLAGS]
            for backend, flag in _BACKEND_FLAGS:
                setattr(backend, flag, False)
        _num_running += 1
    try:
        yield
    finally:
        with _flags_lock:
            _num_running -= 1
            if not _num_running:
                for (backend, flag), value in zip(_BACKEND_FLAGS, _flags_before, strict=True):
                    setattr(backend, flag, value)


def required(network: FrozenNetwork | None) -> FrozenNetwork:
    """Return the network of an encoder.

    Raises:
        RuntimeError: the encoder was built for preprocessing only and has no network.
    """
    if network is None:
        raise RuntimeError("expected an encoder with a network, got one that only preprocesses")
    return network


def copy_without(encoder: T, *attributes: str) -> T:
    """Return a shallow copy of an encoder with None in `attributes`, those that hold its network or device tensors."""
    copied = copy.copy(encoder)
    vars(copied).update(dict.fromkeys(attributes))
    return copied


def choose_batch_size(network: FrozenNetwork | None, batch_option: int | None, on_gpu: int) -> int:
    """Return the option `batch`, or without it `on_gpu` on a CUDA device and 1 elsewhere."""
    on_cuda = network is not None and network.device.type == "cuda"
    return batch_option or (on_gpu if on_cuda else 1)


def block_count(encoder: str, layer: int | None, available: int) -> int:
    """Return the number of blocks to run: `layer`, or all blocks if it is None.

    Raises:
        EncoderError: `layer` is larger than the number of blocks.
    """
    if layer is not None and layer > available:
        raise EncoderError(
            f"{encoder}.layer", expected=f"at most {available}, the blocks of its weights", got=f"{layer}"
        )
    return layer or available


def tapped_network(module: torch.nn.Module, blocks: str, count: int, norm: str | None) -> torch.nn.Module:
    """Return a copy that runs the first `count` blocks of the list at path `blocks`, without the norm at path `norm`.

    Paths are dotted. With `norm` None the network keeps its final norm, if it has one. Weights are shared, not copied.
    """
    first_blocks = list(module.get_submodule(blocks).children())[:count]
    tapped = _with_submodule(module, blocks, torch.nn.ModuleList(first_blocks))
    return tapped if norm is None else _with_submodule(tapped, norm, torch.nn.Identity())


def outputs_of_blocks(
    module: torch.nn.Module,
    blocks: str,
    layers: Sequence[int],
    norm: str | None,
    removed_norm: str | None,
    run: Callable[[torch.nn.Module], object],
) -> dict[int, torch.Tensor]:
    """Run a network once; return layer -> what `tapped_network` with so many blocks returns, equal to the bit.

    Nothing but `norm` may follow the blocks. Weights are shared, not copied.

    Args:
        norm: dotted path of the final norm, which each output passes through; None if there is none.
        removed_norm: dotted path of a final norm that no output passes through; None if there is none.
        run: calls the network that it receives.
    """
    final: Callable[[torch.Tensor], torch.Tensor] = (lambda x: x) if norm is None else module.get_submodule(norm)
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[[torch.Tensor], None]:
        return lambda output: kept.update({layer: final(output)})  # the output itself is not held

    first_blocks = list(module.get_submodule(blocks).children())[: max(layers)]
    wrapped = [
        _KeptBlock(block, keep(layer)) if layer in layers else block for layer, block in enumerate(first_blocks, 1)
    ]
    tapped = _with_submodule(module, blocks, torch.nn.ModuleList(wrapped))
    for path in (norm, removed_norm):
        tapped = tapped if path is None else _with_submodule(tapped, path, torch.nn.Identity())
    run(tapped)
    return kept


class _KeptBlock(torch.nn.Module):
    """A block whose output is passed to `keep` too; attributes are those of the block."""

    def __init__(self, block: torch.nn.Module, keep: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self.block, self._keep = block, keep

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.block(*args, **kwargs)
        self._keep(output[0] if isinstance(output, tuple) else output)
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def _with_submodule(module: torch.nn.Module, path: str, replacement: torch.nn.Module) -> torch.nn.Module:
    """Return a shallow copy of `module` with the submodule at a dotted path replaced."""
    name, _, inner_path = path.partition(".")
    submodule = _with_submodule(module.get_submodule(name), inner_path, replacement) if inner_path else replacement
    changed = copy.copy(module)
    changed._modules = {**module._modules, name: submodule}
    return changed.eval()


@dataclass(eq=False)
class LoadedNetwork:
    """A network with the facts about its checkpoint that a spec names."""

    network: FrozenNetwork | None
    """None if only preprocessing is needed."""
    config: Any
    """The network's config of transformers."""
    weights: Mapping[str, str]
    """Name of each weight file -> sha256."""
    provenance: Mapping[str, str]


_loaded: weakref.WeakValueDictionary[tuple[str, ...], LoadedNetwork] = weakref.WeakValueDictionary()
_loading = threading.Lock()


def load_once(key: tuple[str, ...], load: Callable[[], LoadedNetwork]) -> LoadedNetwork:
    """Return the network that was loaded under `key`, or load it; it stays loaded while an encoder refers to it."""
    with _loading:
        loaded = _loaded.get(key)
        if loaded is None:
            loaded = _loaded[key] = load()
        return loaded
