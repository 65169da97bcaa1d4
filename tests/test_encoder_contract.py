"""Every registered encoder keeps the contract that a package of a user's own inherits (`featurecache.testing`)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import ClassVar

import pytest
from hf_networks import AUDIO, CROPPED, PICTURE, save

from featurecache.encoders import ENTRY_POINTS, Encoder, open_encoder
from featurecache.testing import EncoderContract


def opener(name: str, weights: Path) -> Callable[..., Encoder]:
    """Return a function of options that opens a registered encoder."""
    return lambda **options: open_encoder(name, weights=str(weights), options=options)


class TestWhisper(EncoderContract):
    encoder_name = "whisper"
    changed_options: ClassVar = {
        "tokens": 8, "pooling": "valid", "layer": 1, "norm": "none", "mel": "device", "channels": "standard",
    }  # fmt: skip

    @pytest.fixture
    def open_encoder(self, whisper_folder):
        return opener("whisper", whisper_folder)


class TestEvaGlobal(EncoderContract):
    encoder_name = "eva-global"
    changed_options: ClassVar = {"frame": "middle", "layer": 1}

    @pytest.fixture
    def open_encoder(self, eva_folder):
        return opener("eva-global", eva_folder)


class TestEvaTemporal(EncoderContract):
    encoder_name = "eva-temporal"
    changed_options: ClassVar = {"frames": 4, "rule": "window", "grid": 1, "layer": 1, "norm": "none"}

    @pytest.fixture
    def open_encoder(self, eva_folder):
        return opener("eva-temporal", eva_folder)


class TestHfAudio(EncoderContract):
    encoder_name = "hf-audio"
    changed_options: ClassVar = {"tokens": 8, "pooling": "padded", "layer": 1, "norm": "none", "channels": "standard"}

    @pytest.fixture(params=["hubert", "hubert-stable"])
    def open_encoder(self, request, tmp_path):
        family, settings = AUDIO[request.param]
        preprocessor = {"do_normalize": True, "return_attention_mask": request.param == "hubert-stable"}
        folder = save(tmp_path / "network", family, settings, preprocessor)
        return lambda **options: opener("hf-audio", folder)(**{"seconds": 2, **options})


class TestHfImage(EncoderContract):
    encoder_name = "hf-image"
    changed_options: ClassVar = {"frames": 2, "rule": "middle", "pool": "cls", "grid": 2, "layer": 1}

    @pytest.fixture
    def open_encoder(self, tmp_path):
        return opener("hf-image", save(tmp_path / "network", "ViT", PICTURE, CROPPED))


class TestHfVideo(EncoderContract):
    encoder_name = "hf-video"
    changed_options: ClassVar = {"rule": "window", "grid": 1, "layer": 1}

    @pytest.fixture
    def open_encoder(self, tmp_path):
        settings = {**PICTURE, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": False}
        return opener("hf-video", save(tmp_path / "network", "VideoMAE", settings, CROPPED))


def test_every_registered_encoder_has_a_contract_test():
    tested = {suite.encoder_name for suite in EncoderContract.__subclasses__() if hasattr(suite, "encoder_name")}
    ours = {point.name for point in entry_points(group=ENTRY_POINTS) if point.value.startswith("featurecache.")}
    assert ours == tested
