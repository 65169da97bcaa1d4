"""Fixtures of the trainer's tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exporting import Trained, train_run
from toy import LABELS, make_config, save_llama, write_features

from fusion_train.config import Config
from fusion_train.export.export_run import ExportSources, export_run
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM
from fusion_train.remote.processing_emotion_llama import EmotionLlamaProcessor


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips.jsonl and features.zarr: 36 training and 12 validation clips; v03 has no sound."""
    folder = tmp_path_factory.mktemp("material")
    labels, lines = {}, []
    for split, count in (("train", 36), ("val", 12)):
        for number in range(count):
            clip_id, label = f"{split[0]}{number:02d}", LABELS[number % 3]
            labels[clip_id] = label
            entry = {
                "id": clip_id,
                "video": f"{clip_id}.mp4",
                "text": f"number {number}",
                "split": split,
                "dataset": "toy",
                "labels": {"emotion": label},
                "responses": {"reason": f"The person is {label}.", "think": f"It sounds {label}."},
            }
            lines.append(json.dumps(entry))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")
    write_features(folder / "features.zarr", labels, absent={"v03": "whisper"})
    return folder


@pytest.fixture
def config(llama: Path) -> Config:
    """A recipe that runs in a second or two."""
    return make_config(llama)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, whisper_folder, eva_folder, llama) -> Trained:
    """A run on features of tiny encoders, to be exported."""
    return train_run(tmp_path_factory.mktemp("export") / "material", whisper_folder, eva_folder, llama)


@pytest.fixture(scope="session")
def exported(trained: Trained) -> Path:
    """Its exported folder, certified."""
    out = trained.folder / "exported"
    export_run(trained.run, out, trained.weights, ExportSources(), say=lambda _: None)
    return out


@pytest.fixture(scope="session")
def probe(tmp_path_factory, whisper_folder, eva_folder) -> Trained:
    """A run without a language model on features of tiny encoders, to be exported."""
    return train_run(tmp_path_factory.mktemp("probe") / "material", whisper_folder, eva_folder, None)


@pytest.fixture(scope="session")
def exported_probe(probe: Trained) -> Path:
    """Its exported folder, certified."""
    out = probe.folder / "exported"
    export_run(probe.run, out, probe.weights, ExportSources(), say=lambda _: None)
    return out


@pytest.fixture(scope="session")
def model(exported: Path) -> EmotionLlamaForCausalLM:
    return EmotionLlamaForCausalLM.from_pretrained(exported).eval()


@pytest.fixture(scope="session")
def processor(exported: Path) -> EmotionLlamaProcessor:
    return EmotionLlamaProcessor.from_pretrained(exported, trust_remote_code=True)


FAST = ("optim.steps=2", "log.peak_tflops=1", "log.eval_every=100")


@pytest.fixture
def sweep(llama, material, tmp_path):
    """Write a sweep file, get the command that runs it."""

    def write(text: str, *overrides: str) -> list[str]:
        (tmp_path / "base.yaml").write_text(make_config(llama, *FAST, *overrides).to_yaml())
        (tmp_path / "mine.yaml").write_text(text)
        return [
            "sweep",
            str(tmp_path / "mine.yaml"),
            "--config",
            str(tmp_path / "base.yaml"),
            "--store",
            str(material / "features.zarr"),
            "--clips",
            str(material / "clips.jsonl"),
            "--out",
            str(tmp_path / "sweep"),
            "--engine",
            "here",
        ]

    return write
