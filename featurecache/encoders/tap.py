"""Where tokens leave a network: after how many blocks, with or without its final norm.

A tap is a shallow copy of the network, which shares every weight with it, whose list of blocks is cut and whose final
norm may be left out; so one network in memory serves any number of taps. This module knows no family of networks.
"""

from __future__ import annotations

import copy

import torch

from featurecache.errors import EncoderError


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
