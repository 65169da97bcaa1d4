"""`hf-audio`, `hf-image`, `hf-video`, LAVIS files, taps and the options of the paper's ablations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from checkpoints import save_eva, save_whisper
from hf_networks import AUDIO, CROPPED, IMAGE, PICTURE, SPEECH, STABLE, save
from safetensors.torch import load_file, save_file

from featurecache.encoders import encoder_class, open_encoder
from featurecache.encoders.pooling import average_over_time
from featurecache.errors import EncoderError, WeightsError
from featurecache.media.frames import frame_indices
from featurecache.spec import Spec
from featurecache.views import FramesView


def reference(folder: Path, family: str) -> torch.nn.Module:
    return getattr(transformers, family + "Model").from_pretrained(folder).eval()


def speech(seconds: float = 1.3) -> np.ndarray:
    return (0.1 * np.random.default_rng(2).standard_normal(round(16_000 * seconds))).astype(np.float32)


def pictures(count: int) -> np.ndarray:
    """(F, 40, 60, 3) uint8."""
    return np.random.default_rng(3).integers(0, 256, (count, 10, 15, 3), np.uint8).repeat(4, 1).repeat(4, 2)


def tokens_of(encoder, view: np.ndarray) -> torch.Tensor:  # type: ignore[no-untyped-def]
    batch = encoder.preprocess(view)[None]
    extra = ([encoder.num_valid(view)],) if encoder.needs_valid else ()
    return encoder.pool(encoder.forward(batch), *extra)[0]


@pytest.mark.parametrize("kind", AUDIO)
def test_speech_networks_equal_transformers_on_the_clip_alone(kind: str, tmp_path: Path) -> None:
    family, settings = AUDIO[kind]
    masked = kind == "hubert-stable"
    preprocessor = {"sampling_rate": 16_000, "do_normalize": True, "return_attention_mask": masked}
    folder = save(tmp_path / kind, family, settings, preprocessor)
    encoder = open_encoder(f"hf-audio:{folder}", options={"tokens": 8, "seconds": 2})
    wave = speech()
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True, do_normalize=True)
    given = extractor(wave, sampling_rate=16_000, padding="max_length", max_length=32_000, return_tensors="pt")
    mask = given["attention_mask"] if masked else None
    with torch.no_grad():
        hidden = reference(folder, family)(given["input_values"], attention_mask=mask).last_hidden_state
    own = encoder.num_valid(wave)
    assert own == 64
    assert torch.allclose(tokens_of(encoder, wave), average_over_time(hidden[:, :own], 8)[0], atol=2e-5)
    assert encoder.shape == encoder_class("hf-audio").plan_shape(str(folder), {"tokens": 8}) == (8, 16)


@pytest.mark.parametrize("layer", [1, 2, None])
@pytest.mark.parametrize("kind", ["siglip", "dinov2", "vit", "clip"])
def test_pictures_leave_any_block_as_transformers_numbers_them(kind: str, layer: int | None, tmp_path: Path) -> None:
    folder = save(tmp_path / kind, IMAGE[kind], PICTURE, {**CROPPED, "image_mean": [0.4] * 3, "image_std": [0.3] * 3})
    options = {"pool": "all", "norm": "none"} | ({"layer": layer} if layer else {})
    encoder = open_encoder("hf-image", weights=str(folder), options=options)
    frame = pictures(1)
    processor = transformers.CLIPImageProcessorPil(**CROPPED, image_mean=[0.4] * 3, image_std=[0.3] * 3)
    pixels = torch.from_numpy(np.stack(processor(list(frame))["pixel_values"]))
    with torch.no_grad():
        got = reference(folder, IMAGE[kind])(pixels, output_hidden_states=True)
    expected = got.hidden_states[3 if layer is None else layer][0]
    assert torch.allclose(tokens_of(encoder, frame), expected, atol=1e-4)
    normed = open_encoder("hf-image", weights=str(folder), options={"pool": "all"})
    assert torch.allclose(tokens_of(normed, frame), got.last_hidden_state[0], atol=1e-4)
    assert normed.network.module is encoder.network.module


def test_video_moments_are_averaged_over_the_grid(tmp_path: Path) -> None:
    settings = {**PICTURE, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False}
    folder = save(tmp_path / "v", "VideoMAE", settings, {**CROPPED, "resample": 2})
    encoder = open_encoder("hf-video", weights=str(folder), options={"grid": 1})
    assert encoder.view == FramesView(4, "uniform", still=False)
    assert encoder.shape == encoder_class("hf-video").plan_shape(str(folder), {"grid": 1}) == (2, 16)
    frames = pictures(4)
    pixels = torch.from_numpy((encoder.preprocess(frames) / 255 - 0.5) / 0.5).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        hidden = reference(folder, "VideoMAE")(pixels[None]).last_hidden_state
    assert torch.allclose(tokens_of(encoder, frames), hidden.reshape(2, 16, 16).mean(1), atol=1e-5)


@pytest.mark.parametrize(
    ("pool", "extra", "shape"),
    [("grid", {"grid": 2}, (4, 16)), ("cls", {}, (1, 16)), ("all", {}, (17, 16)), ("cls", {"frames": 3}, (3, 16))],
)
def test_picture_pooling_decides_the_shape(pool: str, extra: dict, shape: tuple[int, int], tmp_path: Path) -> None:
    folder = save(tmp_path / "c", "CLIPVision", PICTURE, CROPPED)
    encoder = open_encoder("hf-image", weights=str(folder), options={"pool": pool, **extra})
    assert encoder.shape == encoder_class("hf-image").plan_shape(str(folder), {"pool": pool, **extra}) == shape
    assert tokens_of(encoder, pictures(encoder.view.count)).shape == shape


def test_a_network_without_cls_has_none_to_give(tmp_path: Path) -> None:
    folder = save(tmp_path / "s", "SiglipVision", PICTURE, {"size": {"height": 28, "width": 28}})
    with pytest.raises(EncoderError, match="without a CLS token"):
        open_encoder("hf-image", weights=str(folder), options={"pool": "cls"})


def test_every_option_changes_the_fingerprint_and_comes_back_from_the_spec(tmp_path: Path) -> None:
    speech_folder = save(tmp_path / "h", "Hubert", {**SPEECH, **STABLE}, {"sampling_rate": 16_000})
    clip_folder = save(tmp_path / "c", "CLIPVision", PICTURE, CROPPED)
    whisper_folder, eva_folder = save_whisper(tmp_path / "w"), save_eva(tmp_path / "e")
    cases = [
        ("hf-audio", speech_folder, {"tokens": 3, "pooling": "padded", "seconds": 9, "layer": 2, "norm": "none"}),
        ("hf-image", clip_folder, {"frames": 2, "rule": "middle", "pool": "cls", "grid": 3, "layer": 2}),
        ("whisper", whisper_folder, {"tokens": 128, "pooling": "valid", "layer": 1, "norm": "none", "batch": 5}),
        ("eva-temporal", eva_folder, {"frames": 2, "rule": "peak", "grid": 8, "layer": 1, "norm": "none", "batch": 2}),
        ("eva-global", eva_folder, {"frame": "first", "layer": 1, "batch": 3}),
    ]
    for name, folder, options in cases:
        plain = open_encoder(name, weights=str(folder)).spec("float16").fingerprint
        for key, value in options.items():
            spec = open_encoder(name, weights=str(folder), options={key: value}).spec("float16")
            assert spec.fingerprint != plain, (name, key)
            again = open_encoder(name, weights=str(folder), options=encoder_class(name).options_of(spec))
            assert again.spec("float16").fingerprint == spec.fingerprint, (name, key)
            assert Spec.from_json(spec.to_json()) == spec


def test_a_whisper_checkpoint_under_hf_audio_is_the_encoder_whisper(tmp_path: Path) -> None:
    folder = save_whisper(tmp_path)
    named = open_encoder(f"hf-audio:{folder}").spec("float16")
    assert named.fingerprint == open_encoder("whisper", weights=str(folder)).spec("float16").fingerprint


def test_missing_and_surplus_blocks_are_named_and_heads_are_not(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", "CLIPVision", PICTURE, CROPPED)
    tensors = load_file(folder / "model.safetensors")
    prefix = next(key for key in tensors if "layers.2" in key).partition("encoder.")[0]
    tensors["visual_projection.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    open_encoder("hf-image", weights=str(folder))
    missing = f"{prefix}encoder.layers.2.mlp.fc1.bias"
    surplus = f"{prefix}encoder.layers.3.mlp.fc1.bias"
    tensors[surplus] = tensors.pop(missing)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError) as caught:
        open_encoder("hf-image", weights=str(folder))
    assert any("layers.2.mlp.fc1.bias" in problem and "missing" in problem for problem in caught.value.problems)
    assert any("layers.3.mlp.fc1.bias" in problem and "unexpected" in problem for problem in caught.value.problems)


def test_another_family_and_too_many_blocks_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "c", "CLIPVision", PICTURE, CROPPED)
    with pytest.raises(WeightsError, match="clip_vision_model"):
        open_encoder("hf-audio", weights=str(folder))
    with pytest.raises(EncoderError, match="at most 3"):
        open_encoder("hf-image", weights=str(folder), options={"layer": 4})
    with pytest.raises(EncoderError, match='Did you mean "hf-image"'):
        open_encoder("hf-imag:x/y")


def lavis_file(path: Path, blocks: int = 40, *, norm: str = "norm.") -> Path:
    """Save a small network under LAVIS' names: one head, 88 channels."""
    generator = torch.Generator().manual_seed(5)
    width, inner = 88, 16

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    state = {"cls_token": made(1, 1, width), "pos_embed": made(1, 257, width)}
    state |= {"patch_embed.proj.weight": made(width, 3, 14, 14), "patch_embed.proj.bias": made(width)}
    for number in range(blocks):
        block = f"blocks.{number}."
        state |= {block + name: made(width) for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
        state |= {block + f"attn.{name}": made(width) for name in ("q_bias", "v_bias", "proj.bias")}
        state |= {block + "attn.qkv.weight": made(3 * width, width), block + "attn.proj.weight": made(width, width)}
        state |= {block + "mlp.fc1.weight": made(inner, width), block + "mlp.fc1.bias": made(inner)}
        state |= {block + "mlp.fc2.weight": made(width, inner), block + "mlp.fc2.bias": made(width)}
    if norm:
        state |= {norm + "weight": made(width), norm + "bias": made(width)}
    torch.save(state, path)
    return path


def published_eva(state: dict[str, torch.Tensor], pixels: torch.Tensor, blocks: int) -> torch.Tensor:
    """EVA-ViT-g in plain words: (N, 3, 224, 224) -> (N, 257, D) after `blocks` blocks, one head."""
    norm = torch.nn.functional.layer_norm
    patches = torch.nn.functional.conv2d(
        pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14
    )
    x = torch.cat([state["cls_token"].expand(len(pixels), -1, -1), patches.flatten(2).mT], 1) + state["pos_embed"]
    for number in range(blocks):
        part = {key.split(".", 2)[2]: value for key, value in state.items() if key.startswith(f"blocks.{number}.")}
        y = norm(x, x.shape[-1:], part["norm1.weight"], part["norm1.bias"], 1e-6)
        bias = torch.cat([part["attn.q_bias"], torch.zeros_like(part["attn.v_bias"]), part["attn.v_bias"]])
        q, k, v = (y @ part["attn.qkv.weight"].mT + bias).chunk(3, -1)
        attended = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + attended @ part["attn.proj.weight"].mT + part["attn.proj.bias"]
        y = norm(x, x.shape[-1:], part["norm2.weight"], part["norm2.bias"], 1e-6)
        y = torch.nn.functional.gelu(y @ part["mlp.fc1.weight"].mT + part["mlp.fc1.bias"])
        x = x + y @ part["mlp.fc2.weight"].mT + part["mlp.fc2.bias"]
    return x


def test_a_lavis_file_gives_what_the_published_architecture_gives(tmp_path: Path) -> None:
    path = lavis_file(tmp_path / "eva_vit_g.pth")
    state = torch.load(path, weights_only=True)
    temporal = open_encoder("eva-temporal", weights=str(path), options={"frames": 2})
    frames = temporal.preprocess(pictures(2))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((torch.from_numpy(frames) / 255 - mean) / std).permute(0, 3, 1, 2)
    hidden = published_eva(state, pixels, 40)
    hidden = torch.nn.functional.layer_norm(hidden, (88,), state["norm.weight"], state["norm.bias"], 1e-6)
    got = temporal.forward(frames[None])[0].reshape(2, 257, 88)
    assert (got - hidden).norm() / hidden.norm() < 1e-5
    assert temporal.spec("float16").tap["blocks"] == 40
    everywhere = open_encoder("eva-global", weights=str(path))
    assert everywhere.spec("float16").tap["blocks"] == 39
    assert everywhere.network.module is temporal.network.module
    assert encoder_class("eva-global").plan_shape(str(path), {}) == everywhere.shape == (1025, 88)
    renamed = path.rename(tmp_path / "other.pth")
    assert open_encoder("eva-global", weights=str(renamed)).spec("float16") == everywhere.spec("float16")


def test_a_lavis_file_without_final_norm_serves_only_taps_that_need_none(tmp_path: Path) -> None:
    path = lavis_file(tmp_path / "eva_vit_g.pth", 2, norm="")
    open_encoder("eva-global", weights=str(path))
    with pytest.raises(WeightsError, match=r"eva-temporal\.norm=none"):
        open_encoder("eva-temporal", weights=str(path))
    open_encoder("eva-temporal", weights=str(path), options={"norm": "none"})


def test_a_lavis_file_with_other_names_or_with_code_in_it_is_refused(tmp_path: Path) -> None:
    path = lavis_file(tmp_path / "eva_vit_g.pth", 2)
    state = torch.load(path, weights_only=True)
    state["blocks.1.attn.extra"] = torch.zeros(1)
    del state["blocks.0.attn.q_bias"]
    torch.save(state, path)
    with pytest.raises(WeightsError) as caught:
        open_encoder("eva-global", weights=str(path))
    assert {"unexpected: blocks.1.attn.extra", "missing: encoder.layers.0.self_attn.qkv.bias"} <= set(
        caught.value.problems
    )
    torch.save({"model": Path("x")}, path)
    with pytest.raises(WeightsError, match="a state dict that holds only tensors"):
        open_encoder("eva-global", weights=str(path))


def test_valid_pooling_averages_over_the_clips_own_time(whisper_folder: Path) -> None:
    padded = open_encoder("whisper", weights=str(whisper_folder))
    valid = open_encoder("whisper", weights=str(whisper_folder), options={"pooling": "valid", "tokens": 16})
    assert valid.network.module is padded.network.module
    wave = speech(1.0)
    tokens = valid.forward(valid.preprocess(wave)[None])
    assert valid.num_valid(wave) == 50  # 20 ms a token
    assert torch.equal(valid.pool(tokens, [50]), average_over_time(tokens[:, :50], 16))
    assert valid.num_valid(speech(30.0)) == 250
    with pytest.raises(EncoderError, match="number of valid tokens"):
        valid.pool(tokens)


def test_a_whisper_tap_is_the_hidden_state_of_its_block(whisper_folder: Path) -> None:
    model = transformers.WhisperModel.from_pretrained(whisper_folder).get_encoder().eval()
    tapped = open_encoder("whisper", weights=str(whisper_folder), options={"layer": 1, "norm": "none"})
    mel = tapped.preprocess(speech())[None]
    with torch.no_grad():
        states = model(torch.from_numpy(mel), output_hidden_states=True).hidden_states
    assert torch.equal(tapped.forward(mel), states[1])


def test_consecutive_frames_lie_inside_the_clip_and_hold_the_one_meant() -> None:
    def chosen(rule: str, count: int, num_frames: int, peak: int | None = None) -> list[int]:
        return frame_indices(FramesView(count, rule, still=False), num_frames, peak)  # type: ignore[arg-type]

    assert chosen("window", 4, 20) == chosen("middle", 4, 20) == [8, 9, 10, 11]
    assert chosen("first", 3, 20) == [0, 1, 2]
    assert chosen("peak", 4, 20, 19) == [16, 17, 18, 19]
    assert chosen("peak", 4, 20, 0) == [0, 1, 2, 3]
    assert chosen("peak", 4, 20) == [8, 9, 10, 11]
    assert chosen("window", 4, 2) == [0, 1, 1, 1]
    assert chosen("peak", 1, 20, 7) == [7]
    assert chosen("middle", 1, 1) == [0]
