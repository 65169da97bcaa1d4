"""Tiny frozen encoders with random weights, in the checkpoint layouts of Whisper and of BLIP-2's EVA-ViT.

    whisper/   WhisperModel: 80 mel bins, 3000 mel frames, 1500 tokens of 64, 2 blocks   + its feature extractor
    eva/       Blip2VisionModel: patch 14, 224 px, 1 + 256 tokens of 64, 2 blocks (448 px by interpolation)

Nothing is trained. The usual initialisation (0.02) makes every block all but an identity; here weights are scaled so
that each block adds about as much as it receives, filters are smooth, as trained first layers are, and units are
biased apart, so that tokens are a rich random map of their input (random features, Rahimi and Recht 2007). This module
knows no clip.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

WIDTH = 64
NUM_BLOCKS = 2
NUM_HEADS = 4
MEL_BINS = 80
PATCH_PIXELS = 14
IMAGE_PIXELS = 224


def make_whisper(folder: Path, seed: int) -> None:
    """Write a WhisperModel and its feature extractor."""
    config = WhisperConfig(
        vocab_size=64, num_mel_bins=MEL_BINS, d_model=WIDTH,
        encoder_layers=NUM_BLOCKS, encoder_attention_heads=NUM_HEADS, encoder_ffn_dim=4 * WIDTH,
        decoder_layers=1, decoder_attention_heads=NUM_HEADS, decoder_ffn_dim=WIDTH,
        max_source_positions=1500, max_target_positions=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperModel(config).eval()
    random = torch.Generator().manual_seed(seed)
    encoder = model.get_encoder()
    with torch.no_grad():
        _fill(encoder.conv1.weight, _smooth_over_bins(WIDTH, MEL_BINS, 3, random))
        _spread(encoder.conv1, gain=None, bias=1.0, random=random)
        _spread(encoder.conv2, gain=1.5, bias=0.5, random=random)
        for block in encoder.layers:
            for linear in (block.self_attn.q_proj, block.self_attn.v_proj, block.self_attn.out_proj):
                _spread(linear, gain=1.5, bias=0.1, random=random)
            _spread(block.self_attn.k_proj, gain=1.5, bias=None, random=random)
            _spread(block.fc1, gain=1.5, bias=0.5, random=random)
            _spread(block.fc2, gain=1.5, bias=0.0, random=random)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=MEL_BINS).save_pretrained(folder)


def make_eva(folder: Path, seed: int) -> None:
    """Write a Blip2VisionModel."""
    config = Blip2VisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=NUM_BLOCKS, num_attention_heads=NUM_HEADS,
        patch_size=PATCH_PIXELS, image_size=IMAGE_PIXELS, hidden_act="gelu", layer_norm_eps=1e-6, qkv_bias=True,
    )  # fmt: skip
    model = Blip2VisionModel(config).eval()
    random = torch.Generator().manual_seed(seed)
    embeddings = model.embeddings
    with torch.no_grad():
        _fill(embeddings.patch_embedding.weight, _smooth_patches(WIDTH, PATCH_PIXELS, random))
        embeddings.patch_embedding.bias.normal_(0.0, 0.3, generator=random)
        embeddings.class_embedding.normal_(0.0, 1.0, generator=random)
        _fill(embeddings.position_embedding, _smooth_positions(IMAGE_PIXELS // PATCH_PIXELS, WIDTH, random))
        for block in model.encoder.layers:
            _spread(block.self_attn.qkv, gain=1.5, bias=0.1, random=random)
            _spread(block.self_attn.projection, gain=1.5, bias=0.0, random=random)
            _spread(block.mlp.fc1, gain=1.5, bias=0.5, random=random)
            _spread(block.mlp.fc2, gain=1.5, bias=0.0, random=random)
    model.save_pretrained(folder)


def _fill(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values.reshape(parameter.shape))


def _spread(layer: nn.Module, *, gain: float | None, bias: float | None, random: torch.Generator) -> None:
    """Draw weights of standard deviation gain / sqrt(inputs), unless gain is None, and biases likewise."""
    if gain is not None:
        inputs = layer.weight[0].numel()
        layer.weight.normal_(0.0, gain / math.sqrt(inputs), generator=random)
    if bias is not None and layer.bias is not None:
        layer.bias.normal_(0.0, bias, generator=random) if bias else layer.bias.zero_()


def _smooth_over_bins(num_filters: int, num_bins: int, num_taps: int, random: torch.Generator) -> Tensor:
    """Filters (num_filters, num_bins, num_taps) made of slow cosines over the mel bins: they see formants and tilt."""
    place = (torch.arange(num_bins) + 0.5) / num_bins
    cosines = torch.stack([torch.cos(math.pi * k * place) for k in range(10)])
    weights = torch.randn(num_filters, num_taps, 10, generator=random) / (1 + torch.arange(10) / 3)
    filters = (weights @ cosines).transpose(1, 2)
    return 4.0 * filters / filters.flatten(1).norm(dim=1)[:, None, None] / math.sqrt(num_bins * num_taps) * 4


def _smooth_patches(num_filters: int, side: int, random: torch.Generator) -> Tensor:
    """Filters (num_filters, 3, side, side) made of slow cosines: edges, bars and colours."""
    place = (torch.arange(side) + 0.5) / side
    waves = torch.stack([torch.cos(math.pi * k * place) for k in range(4)])
    falling = 1.0 / (1.0 + 0.5 * (torch.arange(4)[:, None] + torch.arange(4)[None]))
    weights = torch.randn(num_filters, 3, 4, 4, generator=random) * falling
    filters = torch.einsum("fckl,ky,lx->fcyx", weights, waves, waves)
    return filters / filters.flatten(1).norm(dim=1)[:, None, None, None] / side * 4


def _smooth_positions(side: int, width: int, random: torch.Generator) -> Tensor:
    """Position embedding (1, 1 + side², width) of slow waves over the picture, so that it can be interpolated."""
    place = (torch.arange(side) + 0.5) / side
    waves = torch.stack([torch.cos(math.pi * k * place) for k in range(4)])
    grid = torch.einsum("kld,ky,lx->yxd", torch.randn(4, 4, width, generator=random) / 4, waves, waves)
    return torch.cat([torch.zeros(1, width), grid.reshape(side * side, width)])[None] * 1.5
