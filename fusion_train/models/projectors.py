"""From encoder and fusion tokens to the LLM's width: one linear map a stream.

audio Linear(1280→4096), video Linear(1408→4096), fusion Linear(256→4096); image: 4 consecutive raster patches are
joined, (B, 1024, 1408) -> (B, 256, 5632) -> Linear(5632→4096).
Source: arXiv 2601.16449; `llama_proj*` of the released code. 35,143,680 parameters in all at the published sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fusion_train.models.token_streams import PATCHES_PER_TOKEN


class Projectors(nn.ModuleDict):
    """Stream name -> linear map."""

    def __init__(self, widths: Mapping[str, int], llm_width: int) -> None:
        super().__init__({stream: nn.Linear(width, llm_width) for stream, width in widths.items()})


def join_patches(patches: Tensor) -> Tensor:
    """(B, P, D) in raster order -> (B, P / 4, 4·D)."""
    return patches.unflatten(1, (-1, PATCHES_PER_TOKEN)).flatten(2)
