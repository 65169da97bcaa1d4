"""Several layers of an encoder from one forward, and one vector per clip: equal to features that are made alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import recordings as rec
import torch
from checkpoints import save_whisper
from click.testing import CliRunner
from hf_networks import AUDIO, CROPPED, PICTURE, SMALL, save, save_text

from featurecache import ClipList, load_clips, open_store
from featurecache.cli import main
from featurecache.encoders import Encoder, encoder_class, open_encoder
from featurecache.encoders.network import FrozenNetwork
from featurecache.errors import EncoderError
from featurecache.extract.pipeline import forward_key
from featurecache.extract.run import extract
from featurecache.testing import encode_batch, random_views

VIDEO = {**PICTURE, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False}
BATCH = 2


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, eva_folder: Path) -> dict[str, str]:
    """Checkpoints by kind."""
    folder = tmp_path_factory.mktemp("networks")
    found = {"whisper": save_whisper(folder / "whisper", encoder_layers=3), "eva": eva_folder}
    for kind, (family, settings) in AUDIO.items():
        preprocessor = {"do_normalize": True, "return_attention_mask": kind == "hubert-stable"}
        found[kind] = save(folder / kind, family, settings, preprocessor)
    found["text"] = save_text(folder / "text")
    found["clip"] = save(folder / "clip", "CLIPVision", PICTURE, CROPPED)
    found["videomae"] = save(folder / "videomae", "VideoMAE", VIDEO, CROPPED)
    return {kind: str(place) for kind, place in found.items()}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipList:
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for number, seconds in enumerate((0.4, 2.6, 1.1)):
        rec.write_clip(folder / f"{number}.mp4", num_frames=10, sound=rec.sine(seconds, 200 + 90 * number))
        rows.append({"id": f"c{number}", "video": f"{number}.mp4", "text": "No! " * (number + 1)})
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_clips(folder / "clips.jsonl")


LAYERED = {
    "whisper": ("whisper", {}),
    "whisper, no norm": ("whisper", {"norm": "none", "pooling": "valid"}),
    "whisper, mel on the device": ("whisper", {"mel": "device", "tokens": 3}),
    **{kind: ("hf-audio", {"seconds": 3}) for kind in AUDIO},
    "hubert-stable, no norm": ("hf-audio", {"seconds": 3, "norm": "none"}),
    "whisper, disturbed": ("whisper", {"perturb": "noise:20"}),
    "text": ("hf-text", {"tokens": 5}),
}


def opened(kind: str, checkpoints: dict[str, str], **more: object) -> Encoder:
    name, options = LAYERED[kind]
    place = checkpoints[kind.partition(",")[0]]
    return open_encoder(name, weights=place, options={**options, "batch": BATCH, **more})


@pytest.mark.parametrize("kind", LAYERED)
def test_layers_of_one_forward_equal_those_that_are_extracted_alone(
    kind: str, checkpoints: dict[str, str], clips: ClipList, tmp_path: Path
) -> None:
    encoders = {f"L{layer}": opened(kind, checkpoints, layer=layer) for layer in (1, 2, 3)}
    encoders["few"] = opened(kind, checkpoints, layer=2, **({} if kind.startswith("data2vec") else {"tokens": 2}))
    assert len({forward_key(encoder) for encoder in encoders.values()}) == 1
    together = extract(open_store(tmp_path / "s", "a"), clips, encoders, stored_dtype="float32")
    assert together.num_forwards == -(-len(clips) // BATCH)
    rows = set()
    for name, encoder in encoders.items():
        extract(open_store(tmp_path / name, "a"), clips, {name: encoder}, stored_dtype="float32")
        alone, shared = open_store(tmp_path / name)[name], open_store(tmp_path / "s")[name]
        assert shared.fingerprint == alone.fingerprint
        for clip_id in clips.ids:
            assert np.array_equal(alone[clip_id], shared[clip_id]), (name, clip_id)
        rows.add(alone["c1"].tobytes())
    assert len(rows) >= 3


def test_compiled_blocks_give_their_layers_too(checkpoints: dict[str, str]) -> None:
    encoder = opened("whisper", checkpoints)
    view = random_views(encoder.view)[0]
    batch = np.stack([encoder.preprocess(view)] * BATCH)
    called = []

    def compiled(layer: int, block: torch.nn.Module) -> Callable[..., object]:
        return lambda *inputs, **options: called.append(layer) or block.forward(*inputs, **options)

    blocks = encoder.network.module.layers  # type: ignore[attr-defined]
    for layer, block in enumerate(blocks, 1):
        block._compiled_call_impl = compiled(layer, block)
    layers = encoder.forward_layers(batch, [1, 3])
    for block in blocks:
        block._compiled_call_impl = None
    assert called == [1, 2, 3]
    assert torch.equal(layers[3], encoder.forward(batch))


def test_a_network_with_an_adapter_after_its_blocks_gives_each_layer_alone(tmp_path: Path) -> None:
    settings = {
        **AUDIO["wav2vec2"][1],
        "add_adapter": True,
        "num_adapter_layers": 1,
        "output_hidden_size": SMALL["hidden_size"],
    }
    folder = str(save(tmp_path / "network", "Wav2Vec2", settings, {"do_normalize": True}))
    assert encoder_class("hf-audio").plan_layers(folder, {}) == 0
    one, two = (open_encoder("hf-audio", weights=folder, options={"seconds": 3, "layer": layer}) for layer in (1, 2))
    assert one.output_layer is None
    assert forward_key(one) != forward_key(two)


def test_layer_all_names_a_feature_per_layer(
    checkpoints: dict[str, str], clips: ClipList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clips[0].video.parent)  # type: ignore[union-attr]
    store = str(tmp_path / "s")
    weights = ("--weights", f"hubert={checkpoints['hubert']}", "--weights", f"whisper={checkpoints['whisper']}")
    command = [
        *("--encoder", "hubert=hf-audio", "--encoder", "whisper", "--store", store, *weights),
        *("--option", "hubert.layer=all", "--option", "hubert.seconds=3", "--option", "hubert.pool=mean"),
        *("--option", "whisper.layer=all", "--option", "whisper.tokens=4"),
    ]
    planned = CliRunner().invoke(main, ["plan", *command, "--calibrate", "0"])
    assert planned.exit_code == 0, planned.output
    assert "hubert.L03" in planned.output
    run = CliRunner().invoke(main, ["extract", *command])
    assert run.exit_code == 0, run.output
    names = [f"{name}.L0{layer}" for name in ("hubert", "whisper") for layer in (1, 2, 3)]
    found = open_store(store)
    assert found.names == names
    assert [found[name].shape[0] for name in names] == [1, 1, 1, 4, 4, 4]
    assert [found[name].spec.tap["blocks"] for name in names] == [1, 2, 3] * 2
    assert len({found[name]["c1"].tobytes() for name in names}) == 6
    # `retry` opens the encoder of each feature with the options that its spec states
    weights = ("--weights", f"hf-audio={checkpoints['hubert']}", "--weights", f"whisper={checkpoints['whisper']}")
    again = CliRunner().invoke(main, ["retry", "--store", store, "--id", "c1", *weights])
    assert again.exit_code == 0, again.output
    retried = open_store(store)
    assert all(np.array_equal(retried[name]["c1"], found[name]["c1"]) for name in names)


def test_layer_all_is_refused_for_an_encoder_that_gives_one_layer_per_forward(checkpoints: dict[str, str]) -> None:
    arguments = [
        "extract",
        "--encoder",
        "eva-global",
        "--weights",
        checkpoints["eva"],
        "--option",
        "eva-global.layer=all",
    ]
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 2
    assert "eva-global.layer: expected the number of a layer" in " ".join(run.output.split())


VECTORS = {
    "whisper": ("whisper", {}, {"tokens": 1, "pooling": "valid"}),
    "hubert": ("hf-audio", {"seconds": 3}, {"tokens": 1, "pooling": "valid"}),
    "text": ("hf-text", {}, {"tokens": 1}),
    "eva": ("eva-temporal", {"frames": 4}, {"grid": 1}),
    "eva, one frame": ("eva-global", {}, {}),
    "clip": ("hf-image", {"frames": 3, "rule": "uniform"}, {"grid": 1}),
    "videomae": ("hf-video", {}, {"grid": 1}),
}
"""Encoder, options, and options of tokens whose average is the vector."""


@pytest.mark.parametrize("kind", VECTORS)
def test_pool_mean_is_one_vector_the_average_of_the_clips_own_tokens(kind: str, checkpoints: dict[str, str]) -> None:
    name, options, other = VECTORS[kind]
    place = checkpoints[kind.partition(",")[0]]
    vector = open_encoder(name, weights=place, options={**options, "pool": "mean"})
    tokens = open_encoder(name, weights=place, options={**options, **other})
    assert vector.shape == (1, tokens.shape[1]) == encoder_class(name).plan_shape(place, {**options, "pool": "mean"})
    assert forward_key(vector) == forward_key(tokens)
    for view in random_views(vector.view)[:2]:
        expected = encode_batch(tokens, {0: view})[0][1 if name == "eva-global" else 0 :].mean(axis=0, keepdims=True)
        np.testing.assert_allclose(encode_batch(vector, {0: view})[0], expected, atol=1e-5, rtol=1e-4)
    spec = vector.spec("float16")
    same = {"whisper", "hf-audio"}
    assert (spec.fingerprint == tokens.spec("float16").fingerprint) == (name in same)
    kind_class = encoder_class(name)
    assert open_encoder(name, weights=place, options=kind_class.options_of(spec)).spec("float16") == spec  # type: ignore[attr-defined]
    settings = json.loads(json.dumps(vector.settings))  # type: ignore[attr-defined]
    network = kind_class.empty_network(settings)  # type: ignore[attr-defined]
    network.load_state_dict(vector.network.module.state_dict())  # type: ignore[attr-defined]
    rebuilt = kind_class.from_spec(spec, settings, FrozenNetwork(network, torch.device("cpu"), "float32"))  # type: ignore[attr-defined]
    assert rebuilt.spec("float16") == spec


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [("whisper", "tokens", 4), ("hubert", "pooling", "padded"), ("eva", "grid", 2), ("clip", "grid", 2)],
)
def test_an_option_that_pool_mean_decides_is_refused(
    kind: str, option: str, value: object, checkpoints: dict[str, str]
) -> None:
    name = VECTORS[kind][0]
    with pytest.raises(EncoderError, match=rf"{name}\.{option}: expected to be left out, since pool=mean"):
        open_encoder(name, weights=checkpoints[kind], options={"pool": "mean", option: value})
