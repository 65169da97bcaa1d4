"""Released checkpoints: renamed whole, read without running anything, refused when they differ."""

from __future__ import annotations

import pickle
import re
from argparse import Namespace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from test_train import run_training
from toy import make_config

from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.errors import CheckpointError
from fusion_train.presets import load_config
from fusion_train.released import read_released, rename
from fusion_train.run import Run

BACK = (
    (r"projectors\.image\.", "llama_proj."),
    (r"projectors\.(video|audio|fusion)\.", r"llama_proj_\1."),
    (r"fusion\.prepare\.", "conv_pro_module.feats_prep."),
    (r"fusion\.attention_mlp\.", "conv_pro_module.attention_mlp."),
    (r"fusion\.attention_weights\.", "conv_pro_module.fc_att."),
    (r"fusion\.conv_branch\.entry\.", "conv_pro_module.conv_entry."),
    (r"fusion\.conv_branch\.blocks\.(\d+)\.", r"conv_pro_module.conv_module.conv_blocks.\1.conv_block.0."),
    (r"fusion\.output\.", "conv_pro_module.fc_final."),
    (r"llm\.(base_model\..*lora_[AB])\.default\.", r"llama_model.\1."),
)


def released_name(ours: str) -> str:
    """The released code's name, restated the other way round."""
    for pattern, theirs in BACK:
        if re.match(pattern, ours):
            return re.sub(pattern, theirs, ours, count=1)
    raise AssertionError(ours)


@pytest.fixture(scope="module")
def trained(llama, material, tmp_path_factory) -> Run:
    return run_training(make_config(llama), material, tmp_path_factory.mktemp("origin") / "run")


@pytest.fixture(scope="module")
def weights(trained) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.choose(trained.checkpoints, "last") / "model.safetensors")


@pytest.fixture
def base(llama, tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(make_config(llama).to_yaml())
    return path


def import_file(path, base, material, out):
    return CliRunner().invoke(
        main,
        [
            "import-released",
            str(path),
            "--out",
            str(out),
            "--stage",
            "perception",
            "--config",
            str(base),
            "--store",
            str(material / "features.zarr"),
            "--clips",
            str(material / "clips.jsonl"),
        ],
    )


def save(weights, path, **more):
    state = {released_name(name): tensor for name, tensor in weights.items()} | more
    torch.save({"model": state, "epoch": 3, "config": {"run": {"lr": 1e-4}}}, path)
    return path


def test_a_released_checkpoint_becomes_a_run_with_the_same_weights(weights, base, material, tmp_path):
    result = import_file(save(weights, tmp_path / "released.pth"), base, material, tmp_path / "run")
    assert result.exit_code == 0, result.output
    kept = load_file(checkpoint.choose(Run(tmp_path / "run").checkpoints, "best") / "model.safetensors")
    assert kept.keys() == weights.keys()
    assert all(torch.equal(kept[name], weights[name]) for name in weights)
    scored = CliRunner().invoke(main, ["eval", "--run", str(tmp_path / "run"), "--split", "val"])
    assert scored.exit_code == 0, scored.output


def test_a_minigpt_checkpoint_brings_image_projection_and_lora(weights, base, material, tmp_path):
    part = {name: tensor for name, tensor in weights.items() if name.startswith(("projectors.image.", "llm."))}
    result = import_file(save(part, tmp_path / "minigpt.pth"), base, material, tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert f"{len(weights) - len(part)} parameters are not in a MiniGPT-v2 checkpoint" in result.output
    kept = load_file(checkpoint.choose(Run(tmp_path / "run").checkpoints, "best") / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in part.items())


def test_buffers_without_training_and_wrappers_are_left_out_with_a_notice(weights, base, material, tmp_path):
    buffers = {
        "llama_model.base_model.model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "llama_model.base_model.model.model.layers.1.self_attn.rotary_emb.inv_freq": torch.full((4,), torch.nan),
        "ln_vision.weight": torch.ones(3),
        "ln_vision.bias": torch.ones(3),
        "visual_encoder.pos_embed": torch.zeros(1),
    }
    state = {f"module.{released_name(name)}": tensor for name, tensor in weights.items()}
    path = tmp_path / "released.pth"
    torch.save({"model": state | {f"module.{name}": t for name, t in buffers.items()}, "config": Namespace(lr=1)}, path)
    result = import_file(path, base, material, tmp_path / "run")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "left out, not trained: 2 tensors of rotary positions" in said
    assert "1 tensor of the frozen image encoder" in said
    assert "ln_vision.bias: not the identity" in said
    kept = load_file(checkpoint.choose(Run(tmp_path / "run").checkpoints, "best") / "model.safetensors")
    assert all(torch.equal(kept[name], weights[name]) for name in weights)


def test_unknown_names_are_all_listed(weights, base, material, tmp_path):
    path = save(weights, tmp_path / "released.pth", **{"Qformer.x": torch.zeros(1), "visual.y": torch.zeros(2, 3)})
    result = import_file(path, base, material, tmp_path / "run")
    assert result.exit_code == 2
    assert "unknown: Qformer.x (1,)" in result.output
    assert "unknown: visual.y (2, 3)" in result.output
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_or_quantised_are_named(weights, tmp_path):
    changed = {name: tensor.clone() for name, tensor in weights.items()}
    changed["fusion.output.bias"][:2] = torch.tensor([torch.nan, -torch.inf])
    changed["projectors.audio.bias"] = torch.zeros_like(changed["projectors.audio.bias"], dtype=torch.int8)
    with pytest.raises(CheckpointError) as caught:
        read_released(save(changed, tmp_path / "released.pth"))
    assert "conv_pro_module.fc_final.bias: 2 of 16 values are NaN or infinite" in str(caught.value)
    assert "llama_proj_audio.bias: expected floating-point numbers, got torch.int8" in str(caught.value)


def test_missing_and_misshapen_tensors_are_all_listed(weights, base, material, tmp_path):
    changed = dict(weights)
    del changed["fusion.output.bias"]
    changed["projectors.audio.weight"] = torch.zeros(3, 3)
    result = import_file(save(changed, tmp_path / "released.pth"), base, material, tmp_path / "run")
    assert result.exit_code == 2
    assert "missing: fusion.output.bias (16,)" in result.output
    assert "projectors.audio.weight: expected" in result.output


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_called_truncated(zipped, tmp_path):
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save({"model": {"x": torch.zeros(1000)}}, whole, _use_new_zipfile_serialization=zipped)
    for length in (100, 300, len(whole.read_bytes()) - 5):
        cut.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(CheckpointError, match=f"truncated file of {length:,} bytes"):
            read_released(cut)


def test_a_flipped_bit_a_pointer_and_a_web_page_are_told_apart(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": {"x": torch.zeros(1000)}}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    for content, got in (
        (bytes(data), "checksum"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!doctype html>", "a web page"),
        (b"", "an empty file"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=got):
            read_released(path)


def test_the_default_configuration_is_the_released_one(weights, llama, material, tmp_path):
    save(weights, tmp_path / "released.pth")
    settings = [
        "model.lora.r=4",
        "model.fusion.hidden=[16, 8]",
        "model.fusion.out_dim=16",
        f"model.llm={llama}",
        "model.llm_dtype=float32",
        "features.absent=hidden",
    ]
    command = [
        "import-released",
        str(tmp_path / "released.pth"),
        "--out",
        str(tmp_path / "run"),
        "--store",
        str(material / "features.zarr"),
        "--clips",
        str(material / "clips.jsonl"),
    ]
    result = CliRunner().invoke(main, command + [part for text in settings for part in ("--set", text)])
    assert result.exit_code == 0, result.output
    assert Run(tmp_path / "run").config().prompt == load_config("released", "cognition").prompt


class Trap:
    def __reduce__(self):
        return print, ("the trap went off",)


def test_a_file_that_wants_to_run_code_is_not_opened(base, material, tmp_path, capsys):
    path = tmp_path / "trap.pth"
    path.write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    torch.save({"model": Trap(), "config": Namespace(trap=Trap())}, tmp_path / "zipped.pth")
    for file in (path, tmp_path / "zipped.pth"):
        with pytest.raises(CheckpointError, match="contains only weights") as caught:
            read_released(file)
        assert re.search(r"a file that names \w+\.print", str(caught.value))
    assert "trap" not in capsys.readouterr().out


def test_adapters_are_known_under_both_spellings():
    stem = "llama_model.base_model.model.model.layers.31.self_attn.v_proj.lora_B"
    ours = "llm.base_model.model.model.layers.31.self_attn.v_proj.lora_B.default.weight"
    assert rename(f"{stem}.weight") == rename(f"{stem}.default.weight") == ours
    assert rename("llama_model.base_model.model.model.layers.0.self_attn.q_proj.weight") is None
