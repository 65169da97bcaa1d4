"""Absent modalities that the model sees, as released checkpoints want it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_train import run_training
from toy import SHAPES, make_config

import featurecache
from featurecache.encoders import open_encoder
from featurecache.errors import EncoderError
from featurecache.files.hashing import file_sha256
from featurecache.importers.npy import import_npy
from fusion_train.cli import main
from fusion_train.config import Config
from fusion_train.data.absent import absent_constants, read_zero_image, write_zero_image
from fusion_train.data.pool import list_hashes
from fusion_train.data.samples import Sample
from fusion_train.errors import ConfigError
from fusion_train.evaluation.evaluate import evaluate
from fusion_train.export.encoders import make_zero_image
from fusion_train.models.token_streams import SOFT_TOKEN
from fusion_train.prompts.prompt import find_task
from fusion_train.run_context import build_context

sys.path.append(str(Path(__file__).parents[1]))
from checkpoints import save_eva


def visible(llama, file: Path, *overrides: str) -> Config:
    return make_config(llama, "features.absent=visible", f"features.zero_image={file}", *overrides)


@pytest.fixture
def zero_image(material, tmp_path) -> Path:
    feature = featurecache.open_store(material / "features.zarr")["eva-global"]
    write_zero_image(tmp_path / "zero.safetensors", torch.full(SHAPES["eva-global"], 0.25), feature.fingerprint)
    return tmp_path / "zero.safetensors"


def open_bench(config: Config, material: Path):
    return build_context(config, str(material / "features.zarr"), str(material / "clips.jsonl"))


def test_an_absent_modality_has_its_places_and_is_read_as_the_stand_in(llama, material, zero_image):
    context = open_bench(visible(llama, zero_image), material)
    sample = Sample(
        context.clips.by_id("v03"), find_task("audio"), (), "low", hidden=("image", "video")
    )  # no sound either
    batch = context.collator([sample])
    assert (batch.buffer["token_ids"] == SOFT_TOKEN).sum() == sum(context.model.soft_counts.values())
    assert batch.present.all()
    assert not batch.features["audio"].any()
    assert not batch.features["video"].any()
    assert (batch.features["image"] == 0.25).all()


def test_the_tokens_of_an_all_zero_image_are_found_in_the_working_directory_and_beside_the_list(
    llama, material, zero_image, tmp_path, monkeypatch
):
    context = open_bench(make_config(llama), material)
    features = visible(llama, Path(zero_image.name)).features
    monkeypatch.chdir(tmp_path)
    found = [absent_constants(features, context.reader, material)]
    monkeypatch.chdir("/")
    found.append(absent_constants(features, context.reader, tmp_path))
    for constants in found:
        assert (constants["image"] == 0.25).all()
    with pytest.raises(ConfigError, match=r"zero\.safetensors"):
        absent_constants(features, context.reader, material)


def test_by_default_an_absent_modality_has_no_place(llama, material):
    context = open_bench(make_config(llama), material)
    sample = Sample(context.clips.by_id("v03"), find_task("emotion"), (), "sad")
    batch = context.collator([sample])
    assert batch.present.tolist() == [[False, True, True]]
    counts = context.model.soft_counts
    assert (batch.buffer["token_ids"] == SOFT_TOKEN).sum() == sum(counts.values()) - counts["audio"]


def test_training_and_scoring_see_the_same(llama, material, zero_image, tmp_path):
    run = run_training(visible(llama, zero_image, "optim.steps=2"), material, tmp_path / "run")
    assert run.finished
    context = open_bench(run.config(), material)
    rows = evaluate(context, context.clips.in_split("val"), "emotion", modalities=["audio"]).predictions
    assert len(rows) == 12


def test_a_zero_image_is_part_of_what_a_run_read_only_where_it_is_shown(llama, material, zero_image):
    config = visible(llama, zero_image)
    clips = material / "clips.jsonl"
    plain = list_hashes(make_config(llama), clips)
    assert list_hashes(config, clips) == plain | {str(zero_image): file_sha256(zero_image)}
    assert list_hashes(make_config(llama, f"features.zero_image={zero_image}"), clips) == plain


def test_a_stand_in_of_another_feature_is_refused(llama, material, tmp_path):
    write_zero_image(tmp_path / "other.safetensors", torch.zeros(SHAPES["eva-global"]), "f" * 64)
    with pytest.raises(ConfigError, match="got that of ffffffffffff"):
        open_bench(visible(llama, tmp_path / "other.safetensors"), material)
    with pytest.raises(ConfigError, match="fusion-train zero-image"):
        open_bench(visible(llama, tmp_path / "nowhere.safetensors"), material)


def test_the_zero_image_is_what_the_encoder_gives_for_zeros(tmp_path):
    weights = save_eva(tmp_path / "eva")
    encoder = open_encoder("eva-global", weights=str(weights))
    spec = encoder.spec("float32")
    writer = featurecache.open_store(tmp_path / "features.zarr", mode="a").writer("eva-global", spec)
    writer.plan(["a"])
    with writer.begin(writer.pending()[0]) as shard:
        shard.absent(0, "none", source="1" * 64)
        shard.commit()
    out = tmp_path / "zero.safetensors"
    result = CliRunner().invoke(
        main,
        [
            "zero-image",
            "--store",
            str(tmp_path / "features.zarr"),
            "--weights",
            str(weights),
            "--out",
            str(out),
            "--device",
            "cpu",
        ],
    )
    assert result.exit_code == 0, result.output
    module = encoder.network.module
    zeros = torch.zeros(1, 3, encoder.pixels, encoder.pixels)
    with torch.inference_mode():
        hidden = module.embeddings(zeros, interpolate_pos_encoding=True)
        for block in module.encoder.layers[: encoder.num_blocks]:
            hidden = block(hidden)
        wanted = torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=1e-5)[0]
    kept = read_zero_image(str(out), spec.fingerprint)
    torch.testing.assert_close(kept, wanted, atol=1e-4, rtol=1e-4)
    assert kept.abs().mean() > 0.1


def test_the_tokens_of_an_all_zero_image_need_an_encoder_that_is_known(tmp_path):
    (tmp_path / "eva-global").mkdir()
    np.save(tmp_path / "eva-global" / "clip.npy", np.ones((1, 5, 8), np.float32))
    import_npy(tmp_path, featurecache.open_store(tmp_path / "store.zarr", "a"))
    with pytest.raises(EncoderError, match=r"got one that was imported from .npy files"):
        make_zero_image(str(tmp_path / "store.zarr"), "eva-global", tmp_path / "out", weights=None, device="cpu")
    assert not (tmp_path / "out").exists()
