"""Weights of an exported folder: merge LoRA into the weights it adapts, and align the tensors in safetensors files.

`merge_lora` makes an exported model independent of peft. W' = cast(float32(W) + scale · B A) is computed in float32 and
cast once; adding in float16 would round twice.

`align_file` makes tensors usable where they are mapped into memory. CPU kernels want tensors at multiples of 64 bytes,
and `featurecache.encoders.network.align` copies all others. Here the header is padded to a multiple of 64 bytes and
tensors of other sizes come last, so a model loads without a second copy of its weights. Content and names stay; only
the order of the bytes changes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from featurecache.encoders.network import ALIGNMENT_BYTES
from featurecache.errors import WriteError
from fusion_train.errors import ExportError


@torch.no_grad()
def merge_lora(llm: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Merge the adapters into a language model, in place; return the model without adapters.

    Args:
        dtype: dtype of the result; None keeps the dtype of the base.

    Raises:
        ExportError: a merged weight is not finite in this dtype.
    """
    if isinstance(llm, PeftModel):
        for name, layer in llm.named_modules():
            if isinstance(layer, LoraLayer):
                _merge(name, layer, dtype)
        llm = llm.unload()
    if dtype is not None:
        for parameter in llm.parameters():  # not llm.to(dtype): buffers, such as rotary frequencies, stay float32
            parameter.data = parameter.data.to(dtype)
        llm.config.dtype = dtype
    return llm


def _merge(name: str, layer: Any, dtype: torch.dtype | None) -> None:
    """Replace the base weight of a `LoraLayer` of any type by the merged weight."""
    weight = layer.get_base_layer().weight
    exact = weight.float()
    for adapter in layer.active_adapters:
        exact = exact + layer.get_delta_weight(adapter).float()
    merged = exact.to(dtype or weight.dtype)
    if not torch.isfinite(merged).all():
        raise ExportError(
            name,
            expected=f"merged weights that {merged.dtype} can hold",
            got="infinite ones",
            next_step="Use --dtype bfloat16 or float32.",
        )
    weight.data = merged


LENGTH_BYTES = 8  # of the header's length, little-endian, at the start of the file
BLOCK_BYTES = 16 << 20
"""Bytes that are copied at once."""


def align_file(path: Path) -> None:
    """Rewrite a safetensors file so that its tensors are aligned.

    Raises:
        WriteError: no room for the copy.
    """
    temporary = path.with_name(f".{path.name}.aligned")
    try:
        with path.open("rb") as source, temporary.open("wb") as target:
            header, data_start = _read_header(source)
            metadata = header.pop("__metadata__", None)
            order = sorted(header, key=lambda name: (_size(header[name]) % ALIGNMENT_BYTES != 0, name))
            offset, entries = 0, {}
            for name in order:
                size = _size(header[name])
                entries[name] = header[name] | {"data_offsets": [offset, offset + size]}
                offset += size
            text = json.dumps(
                ({"__metadata__": metadata} if metadata else {}) | entries, separators=(",", ":")
            ).encode()
            text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT_BYTES)
            target.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
            for name in order:
                _copy(source, target, data_start + header[name]["data_offsets"][0], _size(header[name]))
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError(
            str(path),
            expected="room for a copy while its tensors are aligned",
            got=error.strerror or str(error),
            next_step="Free space and export again.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read_header(source: Any) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(source.read(LENGTH_BYTES), "little")
    return json.loads(source.read(length)), LENGTH_BYTES + length


def _size(entry: dict[str, Any]) -> int:
    first, end = entry["data_offsets"]
    return end - first


def _copy(source: Any, target: Any, start: int, size: int) -> None:
    source.seek(start)
    while size > 0:
        block = source.read(min(size, BLOCK_BYTES))
        if not block:
            raise OSError("the file ends before its tensors do")
        target.write(block)
        size -= len(block)
