"""EVA against a restatement of the published architecture in plain tensor operations, several heads, both taps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoints import EVA_WIDTH, eva_config, save_eva
from PIL import Image
from safetensors.torch import load_file

from featurecache.encoders import open_encoder
from featurecache.encoders.network import FrozenNetwork

EPS = 1e-6
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def eva(weights: dict[str, torch.Tensor], pixels: torch.Tensor, num_blocks: int, num_heads: int) -> torch.Tensor:
    """(N, 3, side, side) -> (N, 1 + patches, D): patches of 14, positions resized bicubically, pre-norm blocks."""
    x = F.conv2d(
        pixels, weights["embeddings.patch_embedding.weight"], weights["embeddings.patch_embedding.bias"], stride=14
    )
    side = x.shape[-1]
    x = torch.cat([weights["embeddings.class_embedding"].expand(len(x), 1, -1), x.flatten(2).mT], 1)
    places = weights["embeddings.position_embedding"]
    square = places[:, 1:].reshape(1, 16, 16, -1).permute(0, 3, 1, 2)
    if side != 16:
        square = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    x = x + torch.cat([places[:, :1], square.flatten(2).mT], 1)
    for number in range(num_blocks):
        part = {
            key.removeprefix(f"encoder.layers.{number}."): value
            for key, value in weights.items()
            if key.startswith(f"encoder.layers.{number}.")
        }

        def linear(y: torch.Tensor, name: str, part: dict = part) -> torch.Tensor:  # type: ignore[type-arg]
            return y @ part[name + ".weight"].mT + part[name + ".bias"]

        y = F.layer_norm(x, x.shape[-1:], part["layer_norm1.weight"], part["layer_norm1.bias"], EPS)
        heads = linear(y, "self_attn.qkv").unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # [3, n, h, t, d]
        q, k, v = heads
        mixed = ((q @ k.mT) * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + linear(mixed.transpose(1, 2).flatten(2), "self_attn.projection")
        y = F.layer_norm(x, x.shape[-1:], part["layer_norm2.weight"], part["layer_norm2.bias"], EPS)
        y = linear(y, "mlp.fc1")
        x = x + linear(0.5 * y * (1 + torch.erf(y / 2**0.5)), "mlp.fc2")
    return x


def normalised(frames: np.ndarray, side: int, how: Image.Resampling, statistics: tuple) -> torch.Tensor:  # type: ignore[type-arg]
    squashed = np.stack([np.asarray(Image.fromarray(frame).resize((side, side), how)) for frame in frames])
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in statistics)
    return (torch.from_numpy(squashed).permute(0, 3, 1, 2) / 255 - mean) / std


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (16, 90, 120, 3), np.uint8)


def test_the_temporal_tap_is_the_published_network_at_224_pixels(tmp_path: Path, frames: np.ndarray) -> None:
    folder = save_eva(tmp_path, blocks=40)
    weights = load_file(folder / "model.safetensors")
    x = eva(weights, normalised(frames, 224, Image.Resampling.BILINEAR, IMAGENET), 40, eva_config().num_attention_heads)
    x = F.layer_norm(x, x.shape[-1:], weights["post_layernorm.weight"], weights["post_layernorm.bias"], EPS)
    expected = x[:, 1:].reshape(16, 2, 8, 2, 8, EVA_WIDTH).mean((2, 4)).reshape(64, EVA_WIDTH)
    encoder = open_encoder("eva-temporal", weights=str(folder))
    got = encoder.pool(encoder.forward(encoder.preprocess(frames)[None]))[0]
    assert (got - expected).norm() / expected.norm() < 1e-5


def test_the_global_tap_is_39_blocks_at_448_pixels_and_a_norm_without_weights(
    tmp_path: Path, frames: np.ndarray
) -> None:
    folder = save_eva(tmp_path, blocks=40)
    weights = load_file(folder / "model.safetensors")
    pixels = normalised(frames[:1], 448, Image.Resampling.BICUBIC, CLIP)
    expected = F.layer_norm(eva(weights, pixels, 39, eva_config().num_attention_heads), (EVA_WIDTH,), eps=1e-5)
    encoder = open_encoder("eva-global", weights=str(folder))
    got = encoder.pool(encoder.forward(encoder.preprocess(frames[:1])[None]))
    assert (got - expected).norm() / expected.norm() < 1e-5


def test_a_mel_computed_by_the_device_is_that_of_the_decode_workers(whisper_folder: Path) -> None:
    host = open_encoder("whisper", weights=str(whisper_folder))
    device = open_encoder("whisper", weights=str(whisper_folder), options={"mel": "device"})
    assert host.spec("float16").differences(device.spec("float16")) == ['preprocessing.mel: (absent) != "device"']
    random = np.random.default_rng(0)
    clips = [0.1 * random.standard_normal(size).astype(np.float32) for size in (4_000, 500_000)]  # short; over 30 s
    for clip in clips:
        expected = host.forward(host.preprocess(clip)[None])
        found = device.forward(device.preprocess(clip)[None])
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    inputs = [device.preprocess(clip) for clip in clips]
    first = [device.forward(np.stack([inputs[0], other]))[0] for other in inputs]
    assert torch.equal(*first)  # no clip's level is another's floor


def test_the_window_and_the_filters_of_a_mel_are_copied_to_the_device_once(
    whisper_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = open_encoder("whisper", weights=str(whisper_folder), options={"mel": "device"})
    batch = encoder.preprocess(np.zeros(4_000, np.float32))[None]
    expected = encoder.forward(batch)
    monkeypatch.setattr(torch, "hann_window", None)
    monkeypatch.setattr(encoder._extractor, "mel_filters", None)
    assert torch.equal(encoder.forward(batch), expected)


@pytest.mark.gpu
def test_a_copy_to_a_gpu_runs_beside_kernels_and_is_complete_when_they_read_it() -> None:
    network = FrozenNetwork(torch.nn.Linear(1, 1), torch.device("cuda"), "float32")
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (32, 224, 224, 3), np.uint8) for _ in range(8)]
    sums = []
    for batch in batches:  # the memory of one batch is free for the next but one, while kernels still wait
        torch.cuda._sleep(10_000_000)
        sums.append(network.tensor(batch).sum(dtype=torch.int64))
    assert [int(found) for found in sums] == [int(batch.sum()) for batch in batches]
    torch.cuda._sleep(2_000_000_000)
    network.tensor(batches[0])
    assert network._copies is not None
    network._copies.synchronize()
    assert not torch.cuda.current_stream().query()
    torch.cuda.synchronize()
