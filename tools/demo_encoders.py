"""Tiny frozen encoders with random weights, in the checkpoint layouts of Whisper, of BLIP-2's EVA-ViT and of others.

    whisper/   WhisperModel: 80 mel bins, 3000 mel frames, 1500 tokens of 64, 2 blocks   + its feature extractor
    eva/       Blip2VisionModel: patch 14, 224 px, 1 + 256 tokens of 64, 2 blocks (448 px by interpolation)
    hubert/, wavlm/, clip/, videomae/   families of the hub, for the sweep that compares encoders; purely random

Whisper's weights are random. The usual initialisation (0.02) makes every block all but an identity; here each block
adds about as much as it receives, filters are smooth, as trained first layers are, and units are biased apart, so that
tokens are a rich random map of the sound (random features, Rahimi and Recht 2007). That does not do for faces, so parts
of EVA are set on purpose: the first block's MLP is fitted in closed form to see three signs of expression (open mouth,
flushed cheek, tear) in drawn faces of other people, and three heads of the second block bring these signs to every
token. Neither encoder has seen an emotion or a clip. This module knows no clip.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from demo_face import LOOKS, Person, portraits
from PIL import Image
from torch import Tensor, nn
from transformers import (
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    HubertConfig,
    HubertModel,
    PreTrainedConfig,
    PreTrainedModel,
    VideoMAEConfig,
    VideoMAEModel,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

Model = TypeVar("Model", bound=PreTrainedModel)

WIDTH = 64
NUM_BLOCKS = 2
NUM_HEADS = 4
MEL_BINS = 80
PATCH_PIXELS = 14
IMAGE_PIXELS = 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
NUM_STUDIED = 48
"""People drawn to fit the first block; none of them is in a clip."""
NUM_SIGNS = 3
SIGNS_AT = WIDTH - 2 * NUM_SIGNS
"""First of the channels that hold the signs."""
RIDGE = 1e-5
SIGN_GAIN = 20.0
FOCUS = 0.5
GATHER_GAIN = 4.0


def make_whisper(folder: Path, seed: int) -> None:
    """Write a WhisperModel and its feature extractor."""
    config = WhisperConfig(
        vocab_size=64,
        num_mel_bins=MEL_BINS,
        d_model=WIDTH,
        encoder_layers=NUM_BLOCKS,
        encoder_attention_heads=NUM_HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_layers=1,
        decoder_attention_heads=NUM_HEADS,
        decoder_ffn_dim=WIDTH,
        max_source_positions=1500,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model, random = _seeded(WhisperModel, config, seed)
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
    """Write a Blip2VisionModel whose first block sees signs in drawn faces, and whose second looks for the clearest."""
    config = Blip2VisionConfig(
        hidden_size=WIDTH,
        intermediate_size=8 * WIDTH,
        num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=NUM_HEADS,
        patch_size=PATCH_PIXELS,
        image_size=IMAGE_PIXELS,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        qkv_bias=True,
    )
    model, random = _seeded(Blip2VisionModel, config, seed)
    embeddings = model.embeddings
    see, look = model.encoder.layers
    with torch.no_grad():
        _fill(embeddings.patch_embedding.weight, _coarse_patches(WIDTH, PATCH_PIXELS, random))
        embeddings.patch_embedding.bias.normal_(0.0, 1.0, generator=random)
        embeddings.class_embedding.normal_(0.0, 1.0, generator=random)
        _fill(embeddings.position_embedding, 0.1 * _smooth_positions(IMAGE_PIXELS // PATCH_PIXELS, WIDTH, random))
        for part in (embeddings.patch_embedding.weight, embeddings.patch_embedding.bias):
            part[SIGNS_AT:] = 0.0  # these channels are for the signs alone
        embeddings.class_embedding[..., SIGNS_AT:] = 0.0
        embeddings.position_embedding[..., SIGNS_AT:] = 0.0
        _fill(see.self_attn.projection.weight, torch.zeros(WIDTH, WIDTH))
        _spread(see.mlp.fc1, gain=2.0, bias=1.0, random=random)
        _fit_signs(model, seed)
        _look_for_signs(look.self_attn, random)
        _spread(look.mlp.fc1, gain=1.5, bias=0.5, random=random)
        _spread(look.mlp.fc2, gain=0.7, bias=0.0, random=random)
    model.save_pretrained(folder)


def _fit_signs(model: Blip2VisionModel, seed: int) -> None:
    """Set the first block's fc2 by ridge regression from its random hidden units to the signs that each patch shows."""
    see = model.encoder.layers[0]
    gram = cross = torch.zeros((), dtype=torch.float64)
    for person in range(NUM_STUDIED):
        rng = np.random.default_rng([seed, person, 4])
        pictures = study(rng)
        for pixels, (mean, std) in ((IMAGE_PIXELS, IMAGENET), (2 * IMAGE_PIXELS, CLIP)):
            images = _squash(pictures, pixels)
            shown = nn.functional.avg_pool2d(signs(images), PATCH_PIXELS).flatten(2).transpose(1, 2)  # [f, p, signs]
            patches = model.embeddings(_normalise(images, mean, std), interpolate_pos_encoding=True)[:, 1:]
            some = torch.from_numpy(rng.choice(patches.shape[1], 256, replace=False))
            units = see.mlp.activation_fn(see.mlp.fc1(see.layer_norm2(patches[:, some])))  # [f, p, units]
            units = torch.cat([units, torch.ones_like(units[..., :1])], -1).flatten(0, 1)
            gram = gram + (units.T @ units).double() / len(units)
            cross = cross + (units.T @ shown[:, some].flatten(0, 1)).double() / len(units)
    ridge = RIDGE * 2 * NUM_STUDIED * torch.eye(len(gram), dtype=torch.float64)
    solution = SIGN_GAIN * torch.linalg.solve(gram + ridge, cross).float()  # [units + 1, signs]
    see.mlp.fc2.weight.zero_()
    see.mlp.fc2.bias.zero_()
    for k in range(NUM_SIGNS):  # one channel up and one down, so that a LayerNorm's mean keeps still
        for channel, sense in ((SIGNS_AT + 2 * k, 1.0), (SIGNS_AT + 2 * k + 1, -1.0)):
            see.mlp.fc2.weight[channel] = sense * solution[:-1, k]
            see.mlp.fc2.bias[channel] = sense * solution[-1, k]


def _look_for_signs(attention: nn.Module, random: torch.Generator) -> None:
    """Make head k attend, from everywhere, to the patches where sign k is clearest; the last head stays random."""
    _spread(attention.qkv, gain=1.0, bias=0.1, random=random)
    _spread(attention.projection, gain=GATHER_GAIN, bias=0.0, random=random)
    side = WIDTH // NUM_HEADS
    for k in range(NUM_SIGNS):
        rows = slice(k * side, (k + 1) * side)
        query, key, value = (slice(part * WIDTH + rows.start, part * WIDTH + rows.stop) for part in range(3))
        attention.qkv.weight[query] = 0.0
        attention.qkv.bias[query] = 1.0
        attention.qkv.weight[key] = 0.0
        attention.qkv.weight[key, SIGNS_AT + 2 * k] = FOCUS / math.sqrt(side)
        attention.qkv.weight[key, SIGNS_AT + 2 * k + 1] = -FOCUS / math.sqrt(side)
        attention.qkv.weight[value, :SIGNS_AT] = 0.0  # what it brings back is the signs there, not the paint


def study(rng: np.random.Generator) -> np.ndarray:
    """Draw one person with every look, stronger and weaker: (4, H, W, 3) uint8."""
    person = Person.draw(rng, rng)
    return portraits(list(LOOKS.values()), person, rng)


def signs(images: Tensor) -> Tensor:
    """How much of an open mouth, a flushed cheek and a tear each pixel shows: (F, 3, H, W) to the same, in [0, 1]."""
    red, green, blue = images.unbind(1)
    excess = red - torch.maximum(green, blue)
    dark = ((0.78 - red) / 0.1).clamp(0.0, 1.0)
    mouth = dark * ((excess - 0.38) / 0.12)
    flush = (1 - dark) * ((excess - 0.42) / 0.12)
    tear = (blue - red - 0.35) / 0.25
    return torch.stack([mouth, flush, tear], dim=1).clamp(0.0, 1.0)


def _squash(pictures: np.ndarray, pixels: int) -> Tensor:
    """(F, H, W, 3) uint8 to (F, 3, pixels, pixels) in [0, 1]."""
    size = (pixels, pixels)
    squashed = [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.BICUBIC)) for p in pictures]
    return torch.from_numpy(np.stack(squashed)).permute(0, 3, 1, 2) / 255


def _normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _seeded(kind: type[Model], config: PreTrainedConfig, seed: int) -> tuple[Model, torch.Generator]:
    """Build a model whose every weight follows from the seed, and a generator for those drawn anew."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config).eval()
    return model, torch.Generator().manual_seed(seed)


def make_hub_encoders(folder: Path, seed: int) -> None:
    """Write hubert/, wavlm/, clip/ and videomae/, each with the preprocessing of its family."""
    blocks = {
        "hidden_size": WIDTH,
        "num_hidden_layers": NUM_BLOCKS,
        "num_attention_heads": NUM_HEADS,
        "intermediate_size": 4 * WIDTH,
        "initializer_range": 0.2,
    }
    speech = {
        **blocks,
        "conv_dim": [32] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "do_stable_layer_norm": True,
        "feat_extract_norm": "layer",
    }
    picture = {**blocks, "image_size": IMAGE_PIXELS, "patch_size": 16}
    heard = {"sampling_rate": 16_000, "do_normalize": True, "return_attention_mask": True}
    seen = {"do_center_crop": True, "crop_size": IMAGE_PIXELS, "size": {"shortest_edge": IMAGE_PIXELS}, "resample": 3}
    for name, config, model_class, preprocessor in (
        ("hubert", HubertConfig(**speech), HubertModel, heard),
        ("wavlm", WavLMConfig(**speech), WavLMModel, heard),
        ("clip", CLIPVisionConfig(**picture), CLIPVisionModel, {**seen, **_normalised(CLIP)}),
        ("videomae", VideoMAEConfig(**picture, num_frames=16), VideoMAEModel, {**seen, **_normalised(IMAGENET)}),
    ):
        model, _ = _seeded(model_class, config, seed)
        model.save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(preprocessor))


def _normalised(statistics: tuple[Sequence[float], Sequence[float]]) -> dict[str, Sequence[float]]:
    return dict(zip(("image_mean", "image_std"), statistics, strict=True))


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


def _coarse_patches(num_filters: int, side: int, random: torch.Generator) -> Tensor:
    """Filters (num_filters, 3, side, side): random mixes of the colours of 3×3 parts of a patch, of norm 0.3."""
    mixes = torch.randn(num_filters, 3, 3, 3, generator=random)
    filters = nn.functional.interpolate(mixes, size=(side, side), mode="nearest")
    return 0.3 * filters / filters.flatten(1).norm(dim=1)[:, None, None, None]


def _smooth_positions(side: int, width: int, random: torch.Generator) -> Tensor:
    """Position embedding (1, 1 + side², width) of slow waves over the picture, so that it can be interpolated."""
    place = (torch.arange(side) + 0.5) / side
    waves = torch.stack([torch.cos(math.pi * k * place) for k in range(4)])
    grid = torch.einsum("kld,ky,lx->yxd", torch.randn(4, 4, width, generator=random) / 4, waves, waves)
    return torch.cat([torch.zeros(1, width), grid.reshape(side * side, width)])[None] * 1.5
