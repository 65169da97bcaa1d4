"""Features of a probe are normalised by training clips, or by the clips of each speaker; draws may be balanced."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_probe import make_probe
from test_train import run_training, weights
from toy import LABELS, make_config

import featurecache
from featurecache.clips.clip_list import Clip, ClipList, load_clips
from fusion_train import checkpoint
from fusion_train.data.clip_draws import ClipDraws, balance_labels
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.data.probe_batches import ProbeCollator
from fusion_train.data.samples import Sample, SampleStream, label_sets
from fusion_train.errors import ConfigError, DataError, ExportError
from fusion_train.models.fusions import build_fusion
from fusion_train.models.normalisation import Normalisation, fold_into, statistics_of
from fusion_train.models.token_averages import token_average
from fusion_train.prompts.prompt import find_task
from fusion_train.remote.exportability import export_notices, refuse_speakers
from fusion_train.remote.probe_classes import Classes
from fusion_train.run_context import build_context

TRAINING = "features.normalise=training"


def test_statistics_are_over_clips_and_tokens_and_a_constant_has_scale_one():
    tokens = torch.randn(20, 3, 5).double() * 7 + 3
    tokens[..., 2] = 1.1
    mean, scale = statistics_of(tokens.half())
    rows = tokens.half().double().numpy().reshape(-1, 5)
    assert torch.allclose(mean.double(), torch.from_numpy(rows.mean(axis=0)), atol=1e-6)
    assert scale[2] == 1
    assert np.allclose(scale.numpy()[[0, 1, 3, 4]], rows.std(axis=0)[[0, 1, 3, 4]], rtol=1e-5)


def test_a_probe_takes_statistics_of_its_training_clips_only(llama, material, tmp_path):
    run = run_training(make_probe(llama, "optim.steps=2", TRAINING), material, tmp_path / "probe")
    feature = featurecache.open_store(material / "features.zarr")["whisper"]
    train = [clip.id for clip in load_clips(material / "clips.jsonl").in_split("train")]
    averages = token_average("audio", torch.from_numpy(feature.read(train)), 2).double().numpy()
    saved = weights(run)
    assert np.allclose(saved["normalisation.audio.mean"], averages.mean(axis=(0, 1)), atol=1e-5)
    assert np.allclose(saved["normalisation.audio.scale"], averages.std(axis=(0, 1)), atol=1e-5)
    plain = run_training(make_probe(llama, "optim.steps=2"), material, tmp_path / "plain")
    assert not [name for name in weights(plain) if name.startswith("normalisation")]


@pytest.mark.parametrize("name", ["attention", "conv", "q-former", "conv-attention"])
def test_a_fusion_that_read_normalised_features_computes_the_same_from_plain_ones(name):
    torch.manual_seed(0)
    fusion = build_fusion(name, (5, 7), hidden=(8, 4), out_dim=6, dropout=0.0, num_tokens=3)
    assert fusion is not None
    features = {"audio": torch.randn(4, 3, 5) * 9 + 2, "video": torch.randn(4, 3, 7) / 5}
    normalisation = Normalisation({"audio": 5, "video": 7})
    normalisation.fit(features)
    present = torch.ones(4, 2, dtype=torch.bool)
    present[1, 0] = False
    expected = fusion(list(normalisation(features).values()), present)
    saved = {modality: (item.mean, item.scale) for modality, item in normalisation.items()}
    assert fold_into(fusion, saved)
    assert torch.allclose(fusion(list(features.values()), present), expected, atol=1e-4)


def test_a_fusion_of_another_form_is_left_as_it_is():
    assert not fold_into(torch.nn.Linear(3, 3), {"audio": (torch.zeros(3), torch.ones(3))})


def test_a_language_model_starts_from_the_fusion_of_a_normalised_probe(llama, material, tmp_path):
    probe = run_training(make_probe(llama, "optim.steps=2", TRAINING), material, tmp_path / "probe")
    config = make_config(llama, "optim.steps=1", "model.frozen=[fusion]")
    started = weights(run_training(config, material, tmp_path / "run", initial=probe))
    folder = checkpoint.choose(probe.checkpoints, "best")
    name = checkpoint.best_weights(folder)
    kept, statistics = load_file(folder / name), checkpoint.read_normalisation(folder, name)
    mean, scale = statistics["audio"]
    expected = kept["fusion.prepare.0.0.weight"] / scale
    assert torch.equal(started["fusion.prepare.0.0.weight"], expected)
    assert torch.allclose(started["fusion.prepare.0.0.bias"], kept["fusion.prepare.0.0.bias"] - expected @ mean)


def test_a_language_model_refuses_to_normalise(llama, material):
    config = make_config(llama, "features.normalise=training")
    with pytest.raises(ConfigError, match="reads features as they are stored"):
        build_context(config, str(material / "features.zarr"), str(material / "clips.jsonl"))


def collator(material, clips: list[Clip]) -> ProbeCollator:
    reader = FeatureReader.open(str(material / "features.zarr"), {"audio": "whisper"})
    return ProbeCollator(reader, ClipList(clips), Classes(label_sets(ClipList(clips))), 2, by_speaker=True)


def test_each_speaker_is_normalised_by_their_own_clips_of_the_split(material):
    listed = [clip for clip in load_clips(material / "clips.jsonl") if clip.id != "v03"]
    spoken = [
        Clip(clip.id, split=clip.split, labels=clip.labels, speaker="ab"[number % 2])
        for number, clip in enumerate(listed)
    ]
    batch = collator(material, spoken)(
        [Sample(clip, find_task("emotion"), tuple(LABELS), LABELS[0]) for clip in spoken]
    )
    for split in ("train", "val"):
        for speaker in "ab":
            rows = [n for n, clip in enumerate(spoken) if (clip.split, clip.speaker) == (split, speaker)]
            tokens = batch.features["audio"][rows].double()
            assert torch.allclose(tokens.mean(dim=(0, 1)), torch.zeros(()).double(), atol=2e-3)
            assert torch.allclose(tokens.std(dim=(0, 1), unbiased=False), torch.ones(()).double(), atol=2e-3)


def test_clips_without_a_speaker_are_named(material):
    clips = [clip for clip in load_clips(material / "clips.jsonl") if clip.split == "train"]
    with pytest.raises(DataError, match="a speaker for every clip") as caught:
        collator(material, clips)([Sample(clips[0], find_task("emotion"), tuple(LABELS), LABELS[0])])
    assert len(caught.value.problems) == 36


def test_a_probe_normalised_by_speaker_is_not_exported_and_that_is_said_at_its_start():
    assert "speaker, which needs other clips of the speaker" in export_notices({}, [], "speaker")[0]
    assert export_notices({}, [], "training") == []
    with pytest.raises(ExportError, match=r"features\.normalise=training"):
        refuse_speakers("speaker")


def test_balanced_draws_take_every_label_of_a_dataset_equally_often():
    labels = ["happy"] * 60 + ["sad"] * 6 + ["neutral"] * 30
    places = {"one": np.arange(66), "two": np.arange(66, 96)}
    divided, shares = balance_labels(places, {}, labels)
    assert shares == pytest.approx({"one, happy": 66 / 96 / 2, "one, sad": 66 / 96 / 2, "two, neutral": 30 / 96})
    draws = ClipDraws(0, divided, shares)
    counts = Counter(labels[draws[turn]] for turn in range(9600))
    assert counts["happy"] == pytest.approx(3300, abs=250)
    assert counts["sad"] == pytest.approx(3300, abs=250)
    rare = Counter(draws[turn] for turn in range(9600) if labels[draws[turn]] == "sad")
    assert max(rare.values()) - min(rare.values()) <= 1


def test_a_run_with_balanced_draws_sees_rare_labels_as_often(llama, material, tmp_path):
    clips = load_clips(material / "clips.jsonl")
    kept = [c for n, c in enumerate(clips.in_split("train")) if c.labels["emotion"] != LABELS[0] or n < 6]
    config = make_probe(llama, "data.balanced=true", "data.tasks=[emotion]")
    stream = SampleStream.for_training(
        config, ClipList(kept), label_sets(ClipList(kept)), tokenizer=None, modalities=("audio",)
    )
    counts = Counter(stream.draw(index).answer for index in range(900))
    assert all(count == pytest.approx(300, abs=60) for count in counts.values())
