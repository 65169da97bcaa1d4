"""Released checkpoints: renamed whole, read without running anything, refused when they differ."""

from __future__ import annotations

import pickle
import re

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from test_train import run_training
from toy import make_config

from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.errors import CheckpointError
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
        ["import-released", str(path), "--out", str(out), "--stage", "perception", "--config", str(base),
         "--store", str(material / "features.zarr"), "--clips", str(material / "clips.jsonl")],
    )  # fmt: skip


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


def test_unknown_names_are_all_listed(weights, base, material, tmp_path):
    path = save(
        weights, tmp_path / "released.pth", **{"visual_encoder.x": torch.zeros(1), "ln_vision.y": torch.zeros(1)}
    )
    result = import_file(path, base, material, tmp_path / "run")
    assert result.exit_code == 2
    assert "unknown: visual_encoder.x" in result.output
    assert "unknown: ln_vision.y" in result.output
    assert not (tmp_path / "run").exists()


def test_missing_and_misshapen_tensors_are_all_listed(weights, base, material, tmp_path):
    changed = dict(weights)
    del changed["fusion.output.bias"]
    changed["projectors.audio.weight"] = torch.zeros(3, 3)
    result = import_file(save(changed, tmp_path / "released.pth"), base, material, tmp_path / "run")
    assert result.exit_code == 2
    assert "missing: fusion.output.bias" in result.output
    assert "projectors.audio.weight: expected" in result.output


class Trap:
    def __reduce__(self):
        return print, ("the trap went off",)


def test_a_file_that_wants_to_run_code_is_not_opened(base, material, tmp_path, capsys):
    path = tmp_path / "trap.pth"
    path.write_bytes(pickle.dumps({"model": Trap()}, protocol=2))
    torch.save({"model": Trap()}, tmp_path / "zipped.pth")
    for file in (path, tmp_path / "zipped.pth"):
        with pytest.raises(CheckpointError, match="weights alone"):
            read_released(file)
    assert "trap" not in capsys.readouterr().out


def test_adapters_are_known_under_both_spellings():
    stem = "llama_model.base_model.model.model.layers.31.self_attn.v_proj.lora_B"
    ours = "llm.base_model.model.model.layers.31.self_attn.v_proj.lora_B.default.weight"
    assert rename(f"{stem}.weight") == rename(f"{stem}.default.weight") == ours
    assert rename("llama_model.base_model.model.model.layers.0.self_attn.q_proj.weight") is None
