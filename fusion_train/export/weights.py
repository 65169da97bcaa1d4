"""Lay out a safetensors file so that its tensors can be used where they are mapped.

A loader maps the file; CPU kernels want tensors at multiples of 64 bytes, and `featurecache.encoders.network.align`
copies those that lie elsewhere. Here the header is padded to a multiple of 64 and tensors whose size is no such
multiple come last, so a model loads without a second copy of its weights: its memory is that of the file.
Content and names stay; only the order of the bytes changes.
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
    """Return the language model with its adapters folded in, changed in place; without adapters, as it is.

    Args:
        dtype: of the result; None keeps that of the base.

    Raises:
        ExportError: a merged weight does not fit the dtype.
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


def _merge(name: str, layer: LoraLayer, dtype: torch.dtype | None) -> None:
    weight = layer.get_base_layer().weight
    whole = weight.float()
    for adapter in layer.active_adapters:
        whole = whole + layer.get_delta_weight(adapter).float()
    merged = whole.to(dtype or weight.dtype)
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


def align_file(path: Path) -> None:
    """Rewrite `path` with aligned tensors, in place of itself.

    Raises:
        WriteError: no room for the copy.
    """
    temporary = path.with_name(f".{path.name}.aligned")
    try:
        with path.open("rb") as source, temporary.open("wb") as target:
            header, data_start = _read_header(source)
            metadata = header.pop("__metadata__", None)
            order = sorted(header, key=lambda name: (_size(header[name]) % ALIGNMENT_BYTES != 0, name))
            place, entries = 0, {}
            for name in order:
                size = _size(header[name])
                entries[name] = header[name] | {"data_offsets": [place, place + size]}
                place += size
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
            expected="room for a copy while it is laid out",
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
