"""Average encoder tokens down to the fixed count that a store holds.

Shapes: B clips, T encoder tokens in, K pooled tokens out, D encoder width. Output i is the mean of the tokens
floor(i·T/K) … ceil((i+1)·T/K) − 1. Whisper-large-v3: (1500, 1280) at 20 ms per token -> (64, 1280) at 469 ms, padding
included. EVA-ViT-g: 16 frames of 16 × 16 patches -> 16 frames of 2 × 2, frame-major, then row, then column.
Averages are computed in float32, whatever the encoder's dtype. Source: arXiv 2601.16449 section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from featurecache.encoders.checkpoint import read_options
from featurecache.errors import EncoderError

MEAN_RULE = "average over the patches of all frames"
"""`rule` of the spec's pooling where an encoder of frames gives one vector per clip."""


def windows(num_tokens: int, num_pooled: int) -> list[tuple[int, int]]:
    """Return (first, one past the last) of the tokens that each of `num_pooled` averages over `num_tokens` takes."""
    return [(i * num_tokens // num_pooled, -(-(i + 1) * num_tokens // num_pooled)) for i in range(num_pooled)]


def single_vector(encoder: str, pool: str, options: Mapping[str, Any], excluded: Iterable[str]) -> None:
    """Check the options of an encoder that gives one vector per clip.

    Raises:
        EncoderError: one of the `excluded` options is given too: there is nothing left for it to decide.
    """
    given = [option for option in excluded if option in options]
    if given:
        raise EncoderError(
            f"{encoder}.{given[0]}",
            expected=f"to be left out, since pool={pool} gives one vector per clip",
            got=repr(options[given[0]]),
        )


def read_sound_options(encoder: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of an encoder of sound as `read_options`; `pool` mean becomes one token of pooling "valid".

    Raises:
        EncoderError: an unknown option or value, or an option that `pool` mean decides.
    """
    settings = read_options(encoder, options, known)
    pool = settings.pop("pool")
    if pool == "mean":
        single_vector(encoder, pool, options, ("tokens", "pooling"))
        settings |= {"tokens": 1, "pooling": "valid"}
    return settings


def average_over_time(tokens: torch.Tensor, num_pooled: int) -> torch.Tensor:
    """Average (B, T, D) to (B, num_pooled, D) float32."""
    return F.adaptive_avg_pool1d(tokens.float().transpose(1, 2), num_pooled).transpose(1, 2).contiguous()


def average_over_valid(tokens: torch.Tensor, valid: Sequence[int], num_pooled: int) -> torch.Tensor:
    """Average the first `valid[b]` tokens of each clip b of (B, T, D) to (B, num_pooled, D) float32.

    If a clip has fewer valid tokens than `num_pooled`, tokens repeat.
    """
    return torch.cat([average_over_time(tokens[b : b + 1, : valid[b]], num_pooled) for b in range(len(tokens))])


def average_sound(
    tokens: torch.Tensor, num_pooled: int, valid: Sequence[int] | None, *, over_valid: bool, encoder: str
) -> torch.Tensor:
    """Average (B, T, D) to (B, num_pooled, D) float32 over all tokens, or with `over_valid` over the valid ones.

    Raises:
        EncoderError: `over_valid` without `valid`.
    """
    with torch.inference_mode():
        if not over_valid:
            return average_over_time(tokens, num_pooled)
        if valid is None:
            raise EncoderError(f"{encoder}: pooling valid", expected="the number of valid tokens of each clip")
        return average_over_valid(tokens, valid, num_pooled)


def average_patches(frames: torch.Tensor) -> torch.Tensor:
    """Average (B, F, patches, D), the patches of all frames, to (B, 1, D) float32."""
    return frames.float().mean(dim=(1, 2))[:, None]


def average_over_grid(patches: torch.Tensor, num_frames: int, grid: int) -> torch.Tensor:
    """Average (B, num_frames · side², D) patches in raster order to (B, num_frames · grid², D) float32."""
    batch, num_patches, width = patches.shape  # [b, f·side·side, d]
    side = round((num_patches // num_frames) ** 0.5)
    squares = patches.float().reshape(batch * num_frames, side, side, width).permute(0, 3, 1, 2)  # [b·f, d, side, side]
    pooled = F.adaptive_avg_pool2d(squares, grid).permute(0, 2, 3, 1)  # [b·f, grid, grid, d]
    return pooled.reshape(batch, num_frames * grid * grid, width).contiguous()
