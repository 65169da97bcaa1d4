"""The encoders compute what transformers' own models compute, load strictly, and say what decides their bytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import EVA_WIDTH, WHISPER_WIDTH, save_blip2, save_eva, save_whisper
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Blip2VisionModel, WhisperFeatureExtractor, WhisperModel

from featurecache.encoders import encoder_class, open_encoder, registered
from featurecache.encoders.pooling import average_over_grid, average_over_time, windows
from featurecache.errors import EncoderError, WeightsError
from featurecache.spec import Spec
from featurecache.views import AudioView, FramesView


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """(16, 90, 120, 3) uint8 of noise in large blocks."""
    blocks = np.random.default_rng(0).integers(0, 256, (16, 9, 12, 3), np.uint8)
    return blocks.repeat(10, axis=1).repeat(10, axis=2)


@pytest.fixture(scope="module")
def waveform() -> np.ndarray:
    """(S,) float32, 2 s."""
    return (0.1 * np.random.default_rng(1).standard_normal(32_000)).astype(np.float32)


@pytest.mark.parametrize(("num_tokens", "num_pooled"), [(1500, 64), (250, 64), (64, 64), (65, 64), (10, 64), (7, 1)])
def test_pooling_averages_the_floor_and_ceil_windows(num_tokens: int, num_pooled: int) -> None:
    tokens = torch.randn(2, num_tokens, 3, generator=torch.Generator().manual_seed(0))
    pooled = average_over_time(tokens, num_pooled)
    for i in range(num_pooled):
        first, last = int(np.floor(i * num_tokens / num_pooled)), int(np.ceil((i + 1) * num_tokens / num_pooled))
        assert windows(num_tokens, num_pooled)[i] == (first, last)
        assert torch.allclose(pooled[:, i], tokens[:, first:last].mean(1), atol=1e-6)
    reference = torch.nn.functional.adaptive_avg_pool1d(tokens.transpose(1, 2), num_pooled).transpose(1, 2)
    assert torch.equal(pooled, reference)


def test_grid_pooling_is_frame_major_then_row_then_column() -> None:
    patches = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3 * 16, 1)
    pooled = average_over_grid(patches, num_frames=3, grid=2).reshape(2, 3, 2, 2)
    squares = patches.reshape(2, 3, 4, 4)
    for row in range(2):
        for column in range(2):
            block = squares[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(pooled[:, :, row, column], block.mean((2, 3)))


def test_pooling_of_half_precision_tokens_is_computed_in_float32() -> None:
    tokens = torch.full((1, 1500, 1), 60_000.0, dtype=torch.float16)  # a float16 sum would overflow
    pooled = average_over_time(tokens, 64)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, torch.full((1, 64, 1), float(tokens[0, 0, 0])))


@pytest.mark.parametrize("generation", [False, True])
def test_whisper_equals_the_encoder_of_transformers(tmp_path: Path, waveform: np.ndarray, generation: bool) -> None:
    folder = save_whisper(tmp_path, generation=generation)
    encoder = open_encoder("whisper", weights=str(folder))
    assert encoder.view == AudioView(16_000, 5.0)
    assert encoder.shape == (64, WHISPER_WIDTH)
    mel = encoder.preprocess(waveform)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    direct = extractor(
        waveform, sampling_rate=16_000, padding="max_length", max_length=80_000, return_tensors="pt"
    ).input_features
    assert np.array_equal(mel, direct[0].numpy())
    model, report = WhisperModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    with torch.no_grad():
        expected = model.get_encoder().eval()(direct).last_hidden_state
    tokens = encoder.forward(mel[None])
    assert torch.equal(tokens, expected)
    assert torch.equal(encoder.pool(tokens), average_over_time(expected, 64))


def test_a_waveform_of_any_length_fills_the_same_input(whisper_folder: Path, waveform: np.ndarray) -> None:
    encoder = open_encoder("whisper", weights=str(whisper_folder))
    for samples in (1, 150, 79_999, 80_000, 200_000):
        mel = encoder.preprocess(np.resize(waveform, samples))
        assert mel.shape == (80, 500)
        assert mel.dtype == np.float32
        assert np.isfinite(mel).all()


@pytest.mark.parametrize("seconds", [0.3, 5.0])
@pytest.mark.parametrize("mel", ["host", "device"])
def test_tokens_of_a_device_and_its_log_mel_are_those_of_the_feature_extractor_on_a_cpu(
    whisper_folder: Path, waveform: np.ndarray, device: torch.device, mel: str, seconds: float
) -> None:
    sound = np.resize(waveform, round(seconds * 16_000)).astype(np.float32)
    weights, options = str(whisper_folder), {"batch": 1}
    expected = open_encoder("whisper", weights=weights, device="cpu", options=options)
    found = open_encoder("whisper", weights=weights, device=str(device), options={**options, "mel": mel})
    one, other = (encoder.forward(encoder.preprocess(sound)[None]).cpu() for encoder in (expected, found))
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3)


def test_eva_temporal_equals_the_vision_model_of_transformers(eva_folder: Path, frames: np.ndarray) -> None:
    encoder = open_encoder("eva-temporal", weights=str(eva_folder))
    assert encoder.view == FramesView(16, "uniform", still=False)
    assert encoder.shape == (64, EVA_WIDTH)
    inputs = encoder.preprocess(frames)
    resized = [Image.fromarray(frame).resize((224, 224), Image.Resampling.BILINEAR) for frame in frames]
    assert np.array_equal(inputs, np.stack(resized))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(inputs) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = Blip2VisionModel.from_pretrained(eva_folder).eval()(pixels).last_hidden_state  # [16, 257, d]
    tokens = encoder.forward(inputs[None])
    assert torch.allclose(tokens.reshape(16, 257, -1), expected, atol=2e-6)
    quarters = expected[:, 1:].reshape(16, 2, 8, 2, 8, -1).mean((2, 4)).reshape(64, -1)
    assert torch.allclose(encoder.pool(tokens)[0], quarters, atol=2e-6)


def test_eva_global_leaves_out_blocks_beyond_39_and_the_final_norm(tmp_path: Path, frames: np.ndarray) -> None:
    folder = save_eva(tmp_path, blocks=41)
    encoder = open_encoder("eva-global", weights=str(folder))
    assert encoder.view == FramesView(1, "peak", still=True)
    assert encoder.shape == (1025, EVA_WIDTH)
    inputs = encoder.preprocess(frames[:1])
    assert np.array_equal(inputs[0], Image.fromarray(frames[0]).resize((448, 448), Image.Resampling.BICUBIC))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((torch.from_numpy(inputs) / 255 - mean) / std).permute(0, 3, 1, 2)
    model = Blip2VisionModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
        expected = torch.nn.functional.layer_norm(states[39], (EVA_WIDTH,), eps=1e-5)  # after 39 blocks
    tokens = encoder.pool(encoder.forward(inputs[None]))
    assert torch.allclose(tokens, expected, atol=2e-5)
    assert encoder.spec("float16").tap["blocks"] == 39
    assert open_encoder("eva-temporal", weights=str(folder)).spec("float16").tap["blocks"] == 41


def test_39_blocks_serve_the_temporal_tap_with_a_notice(tmp_path: Path) -> None:
    encoder = open_encoder("eva-temporal", weights=str(save_eva(tmp_path, blocks=39)))
    (notice,) = encoder.notices
    assert "39 blocks and BLIP-2's own post-norm" in notice
    assert "EVA's 40 blocks and EVA's own final norm" in notice
    assert "--weights eva-temporal=eva_vit_g.pth" in notice
    planned = type(encoder).plan_notices
    assert planned(str(tmp_path), {}) == [notice]
    assert "39 blocks and no norm after them" in planned(str(tmp_path), {"norm": "none"})[0]
    assert planned(str(save_eva(tmp_path / "whole", blocks=40)), {}) == []
    assert encoder.spec("float16").tap == {"module": "vision_model", "blocks": 39, "norm": "post_layernorm"}


def test_a_whole_blip2_checkpoint_gives_the_same_tokens_as_its_vision_tower(tmp_path: Path, frames: np.ndarray) -> None:
    whole = save_blip2(tmp_path / "whole")
    assert (whole / "model.safetensors.index.json").is_file()
    tower = {
        key.removeprefix("vision_model."): tensor
        for path in whole.glob("*.safetensors")
        for key, tensor in load_file(path).items()
        if key.startswith("vision_model.")
    }
    alone = save_eva(tmp_path / "alone")
    save_file(tower, alone / "model.safetensors", metadata={"format": "pt"})
    results = []
    for folder in (whole, alone):
        encoder = open_encoder("eva-temporal", weights=str(folder))
        results.append(encoder.pool(encoder.forward(encoder.preprocess(frames)[None])))
    assert torch.equal(*results)


def test_files_without_tensors_of_the_tower_are_neither_needed_nor_hashed(tmp_path: Path) -> None:
    whole = save_blip2(tmp_path)
    weight_map = json.loads((whole / "model.safetensors.index.json").read_text())["weight_map"]
    with_tower = {file for key, file in weight_map.items() if key.startswith("vision_model.")}
    for file in set(weight_map.values()) - with_tower:
        (whole / file).unlink()
    assert set(open_encoder("eva-global", weights=str(whole)).spec("float16").weights) == with_tower


def test_both_eva_encoders_share_one_network_while_either_lives(eva_folder: Path) -> None:
    first = open_encoder("eva-global", weights=str(eva_folder))
    second = open_encoder("eva-temporal", weights=str(eva_folder))
    assert first.network.module is second.network.module


def test_tf32_is_off_while_a_network_runs_and_as_it_was_afterwards(eva_folder: Path) -> None:
    network = open_encoder("eva-global", weights=str(eva_folder)).network
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    with network.running():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.is_inference_mode_enabled()
    assert torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = before


def test_a_checkpoint_in_half_precision_is_computed_in_float32(tmp_path: Path, waveform: np.ndarray) -> None:
    folder = save_whisper(tmp_path)
    tensors = {key: tensor.half() for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = open_encoder("whisper", weights=str(folder))
    assert {parameter.dtype for parameter in encoder.network.module.parameters()} == {torch.float32}
    assert encoder.forward(encoder.preprocess(waveform)[None]).dtype == torch.float32


def test_every_missing_unexpected_and_misshapen_tensor_is_named(tmp_path: Path) -> None:
    folder = save_whisper(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer_norm.weight"]
    tensors["encoder.layers.9.fc1.weight"] = torch.zeros(2)
    tensors["encoder.conv1.bias"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        open_encoder("whisper", weights=str(folder))
    assert sorted(caught.value.problems) == [
        "missing: encoder.layer_norm.weight",
        f"shape of encoder.conv1.bias: expected ({WHISPER_WIDTH},), got (3,)",
        "unexpected: encoder.layers.9.fc1.weight",
    ]
    assert "--weights whisper=FOLDER" in str(caught.value)


def test_weights_that_are_absent_pickled_damaged_or_of_another_model_are_refused(
    tmp_path: Path, eva_folder: Path, whisper_folder: Path
) -> None:
    with pytest.raises(WeightsError, match="no such folder"):
        open_encoder("whisper", weights=str(tmp_path / "nowhere"))
    with pytest.raises(WeightsError, match="expected a Whisper checkpoint, got model_type 'blip_2_vision_model'"):
        open_encoder("whisper", weights=str(eva_folder))
    with pytest.raises(WeightsError, match="expected a BLIP-2 or Blip2VisionModel checkpoint"):
        open_encoder("eva-global", weights=str(whisper_folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match=r"expected a config\.json"):
        open_encoder("eva-global", weights=str(tmp_path / "empty"))
    pickled = tmp_path / "pickled"
    shutil.copytree(eva_folder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pickled weights"):
        open_encoder("eva-global", weights=str(pickled))
    damaged = tmp_path / "damaged"
    shutil.copytree(eva_folder, damaged)
    (damaged / "model.safetensors").write_bytes((eva_folder / "model.safetensors").read_bytes()[:3000])
    with pytest.raises(WeightsError, match="safetensors files that can be read"):
        open_encoder("eva-global", weights=str(damaged))


def test_an_unreachable_hub_says_how_to_name_a_folder() -> None:
    with pytest.raises(WeightsError, match=r"Name a local copy .*--weights whisper=FOLDER"):
        open_encoder("whisper", weights="no-such-owner/no-such-model")


def test_default_weights_are_the_published_ones() -> None:
    assert encoder_class("whisper").default_weights == "openai/whisper-large-v3"
    assert encoder_class("eva-global").default_weights == "Salesforce/blip2-opt-2.7b"
    assert {"whisper", "eva-global", "eva-temporal"} <= set(registered())


def test_unknown_encoders_options_devices_and_dtypes_are_refused(whisper_folder: Path, eva_folder: Path) -> None:
    with pytest.raises(EncoderError, match='Did you mean "whisper"'):
        open_encoder("wisper")
    with pytest.raises(EncoderError, match='Did you mean "tokens"'):
        open_encoder("whisper", weights=str(whisper_folder), options={"token": 3})
    with pytest.raises(EncoderError, match="a whole number from 1"):
        open_encoder("whisper", weights=str(whisper_folder), options={"tokens": 0})
    with pytest.raises(EncoderError, match='Did you mean "middle"'):
        open_encoder("eva-global", weights=str(eva_folder), options={"frame": "midle"})
    with pytest.raises(EncoderError, match="device"):
        open_encoder("whisper", weights=str(whisper_folder), device="nowhere")
    with pytest.raises(EncoderError, match='Did you mean "float16"'):
        open_encoder("whisper", weights=str(whisper_folder), compute_dtype="float61")


def test_options_change_shape_and_fingerprint(whisper_folder: Path, eva_folder: Path) -> None:
    plain = open_encoder("whisper", weights=str(whisper_folder))
    short = open_encoder("whisper", weights=str(whisper_folder), options={"tokens": 8})
    assert short.shape == (8, WHISPER_WIDTH)
    assert short.spec("float16").fingerprint != plain.spec("float16").fingerprint
    wide = open_encoder("eva-temporal", weights=str(eva_folder), options={"frames": 4, "grid": 4})
    assert wide.shape == (64, EVA_WIDTH)
    assert wide.view.count == 4
    first = open_encoder("eva-global", weights=str(eva_folder), options={"frame": "first"})
    assert first.spec("float16").differences(open_encoder("eva-global", weights=str(eva_folder)).spec("float16")) == [
        'preprocessing.frame_rule: "first" != "peak"'
    ]


def test_stores_of_frames_that_may_be_wrong_are_refused_and_those_of_sound_are_not(
    whisper_folder: Path, eva_folder: Path
) -> None:
    frames = open_encoder("eva-global", weights=str(eva_folder)).spec("float16")
    sound = open_encoder("whisper", weights=str(whisper_folder)).spec("float16")
    assert (frames.implementation, sound.implementation) == (2, 1)
    assert frames.differences(Spec(**{**frames.identity(), "implementation": 1})) == ["implementation: 2 != 1"]


def test_other_weights_of_the_same_shape_have_another_fingerprint(tmp_path: Path) -> None:
    prints = {
        open_encoder("eva-global", weights=str(save_eva(tmp_path / str(seed), seed=seed))).spec("float16").fingerprint
        for seed in (0, 1)
    }
    assert len(prints) == 2
