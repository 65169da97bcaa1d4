"""Every encoder of the package is exported: networks of the Hugging Face families too, and two of one name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exporting import Trained, train_on
from hf_networks import AUDIO, CROPPED, IMAGE, PICTURE, save, save_text

from featurecache.encoders import open_encoder
from featurecache.errors import FingerprintError
from fusion_train.errors import ExportError
from fusion_train.export.export_run import ExportSources, export_run
from fusion_train.predict.opening import open_model
from fusion_train.run_context import load_context

VIDEO = {**PICTURE, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False}
SOUND = {"sampling_rate": 16_000, "do_normalize": True}
OPTIONS = {"hf-audio": {"seconds": 3}, "hf-image": {"pool": "all"}, "hf-video": {"layer": 2, "norm": "none"}}
FEATURES = ("features.audio=hf-audio", "features.image=hf-image", "features.video=hf-video")


def checkpoints(folder: Path, audio: str = "hubert", image: str = "clip") -> dict[str, str]:
    """Encoder name -> a tiny checkpoint of a family."""
    family, settings = AUDIO[audio]
    return {
        "hf-audio": str(save(folder / "audio", family, settings, SOUND)),
        "hf-image": str(save(folder / "image", IMAGE[image], PICTURE, CROPPED)),
        "hf-video": str(save(folder / "video", "VideoMAE", VIDEO, CROPPED)),
    }


def train_hf(folder: Path, llama: Path | None, weights: dict[str, str], *overrides: str, **options) -> Trained:
    encoders = {name: open_encoder(name, weights=place, options=OPTIONS[name]) for name, place in weights.items()}
    return train_on(folder / "material", encoders, weights, llama, *FEATURES, *overrides, **options)


def export(trained: Trained, out: Path, **options) -> dict:
    export_run(trained.run, out, trained.weights, ExportSources(**options), say=lambda _: None)
    return json.loads((out / "certificate.json").read_text())


@pytest.mark.parametrize(
    ("audio", "image"),
    [
        ("hubert", "clip"),
        pytest.param("hubert-stable", "dinov2", marks=pytest.mark.slow),
        pytest.param("wav2vec2", "vit", marks=pytest.mark.slow),
        pytest.param("wavlm", "clip", marks=pytest.mark.slow),
        pytest.param("data2vec", "clip", marks=pytest.mark.slow),
    ],
)
def test_networks_of_hugging_face_are_exported(tmp_path, llama, audio, image):
    said: list[str] = []
    trained = train_hf(tmp_path, llama, checkpoints(tmp_path, audio, image), say=said.append)
    assert not any("exported" in line for line in said)
    certificate = export(trained, tmp_path / "model")
    assert certificate["passed"]
    rows = certificate["clips"]
    assert all(feature["equal"] for row in rows for feature in row["features"].values())
    assert {name for row in rows for name in row["features"]} == {"audio", "image", "video"}


@pytest.mark.parametrize("with_llm", [False, True], ids=["probe", "language model"])
def test_a_text_feature_is_trained_on_and_exported_beside_sound(tmp_path, llama, whisper_folder, with_llm):
    weights = {"whisper": str(whisper_folder), "hf-text": str(save_text(tmp_path / "words"))}
    encoders = {
        "whisper": open_encoder("whisper", weights=weights["whisper"]),
        "words": open_encoder("hf-text", weights=weights["hf-text"], options={"pool": "mean"}),
    }
    features = ("features.text=words", "features.image=null", "features.video=null")
    trained = train_on(tmp_path / "material", encoders, weights, llama if with_llm else None, *features)
    context = load_context(trained.run)
    assert context.reader.modalities == ("audio", "text")
    assert context.reader.presence("t1") == {"audio": True, "text": False}  # the clip without words
    certificate = export(trained, tmp_path / "model")
    assert certificate["passed"]
    rows = certificate["clips"]
    assert {name for row in rows for name in row["features"]} == {"audio", "text"}
    assert all(feature["equal"] for row in rows for feature in row["features"].values())
    opened = open_model(tmp_path / "model", "cpu")
    scores = []
    for text in ("I see.", "She never told me!", None):
        inputs = opened.processor(audio=trained.video("v0"), text=text, task="emotion", dataset="toy")
        assert inputs["present"].tolist() == [[True, text is not None]]
        scores.append(tuple(opened.model(**inputs).logits.flatten().tolist()))
    assert len(set(scores)) == 3


def test_two_checkpoints_of_one_encoder_are_named_by_modality(tmp_path):
    """Image and video both come from hf-image, with other weights."""
    other = save(tmp_path / "other", IMAGE["dinov2"], PICTURE, CROPPED)
    image = save(tmp_path / "image", IMAGE["clip"], PICTURE, CROPPED)
    encoders = {
        "clip": open_encoder("hf-image", weights=str(image)),
        "dinov2": open_encoder("hf-image", weights=str(other), options={"frames": 4, "rule": "uniform"}),
    }
    settings = ("features.audio=null", "features.image=clip", "features.video=dinov2")
    weights = {"image": str(image), "video": str(other)}
    trained = train_on(tmp_path / "material", encoders, weights, None, *settings)
    assert export(trained, tmp_path / "model")["passed"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {name: entry["network"] for name, entry in config["encoders"].items()} == {
        "image": "hf_image",
        "video": "hf_image_2",
    }
    with pytest.raises(FingerprintError, match=r"video encoder \(hf-image\).*\(or video=FOLDER\)"):
        export_run(trained.run, tmp_path / "out", {"hf-image": str(image)}, ExportSources(), say=lambda _: None)
    with pytest.raises(ExportError, match=r"hf-image, or of the modalities image, video, got another"):
        export_run(trained.run, tmp_path / "out", {"clip": str(image)}, ExportSources(), say=lambda _: None)
