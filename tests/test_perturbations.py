"""Perturbed features: another fingerprint, the same encoder, and tokens that still depend on media and spec alone."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest

from featurecache.encoders import open_encoder
from featurecache.encoders.perturbation import parse_perturbation, unperturbed
from featurecache.errors import EncoderError

SOUND = np.sin(np.arange(16_000) / 20).astype(np.float32) * 0.3


def pictures(count: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 12, 10, 3), np.uint8)


def test_noise_has_the_ratio_asked_for() -> None:
    noisy = parse_perturbation("noise:10").apply(SOUND)
    assert noisy.dtype == np.float32
    ratio = np.mean(SOUND**2) / np.mean((noisy - SOUND) ** 2)
    assert 10 * np.log10(ratio) == pytest.approx(10, abs=0.2)


def test_silence_and_no_sound_stay_what_they_are() -> None:
    noise = parse_perturbation("noise:0")
    assert not noise.apply(np.zeros(100, np.float32)).any()
    assert len(noise.apply(np.zeros(0, np.float32))) == 0


def test_low_light_keeps_black_black_and_darkens_white_as_linear_light() -> None:
    dark = parse_perturbation("low-light:0.5").apply(np.array([[[[0, 128, 255]]]], np.uint8))
    assert dark.ravel().tolist() == [0, 92, 188]  # half the linear light of sRGB 128 and 255
    frames = pictures()
    assert np.array_equal(parse_perturbation("low-light:1").apply(frames), frames)


def test_a_dropped_frame_shows_the_one_before_it() -> None:
    frames = pictures()
    dropped = parse_perturbation("drop-frames:0.5").apply(frames)
    source = [int(np.flatnonzero((frames == frame).all(axis=(1, 2, 3)))[0]) for frame in dropped]
    assert source == sorted(source)
    assert 1 < len(set(source)) < len(frames)
    assert len(np.unique(parse_perturbation("drop-frames:1").apply(frames), axis=0)) == 1
    assert np.array_equal(parse_perturbation("drop-frames:0").apply(frames), frames)


@pytest.mark.parametrize("text", ["noise:10", "low-light:0.2", "drop-frames:0.5"])
def test_what_is_drawn_depends_on_the_content_alone(text: str) -> None:
    view = SOUND if text.startswith("noise") else pictures()
    original = view.copy()
    first, second = (parse_perturbation(text).apply(view) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(view, original)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nois:10", 'Did you mean "noise"?'),
        ("noise", "snr_db"),
        ("noise:nan", "snr_db"),
        ("low-light:2", "from 0 to 1"),
    ],
)
def test_what_cannot_be_applied_is_refused(text: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message.replace("?", r"\?")):
        parse_perturbation(text)


def test_a_perturbed_encoder_is_the_encoder_under_another_fingerprint(whisper_folder: Path) -> None:
    plain = open_encoder("whisper", weights=str(whisper_folder))
    noisy = open_encoder("whisper", weights=str(whisper_folder), options={"perturb": "noise:5"})
    assert noisy.spec("float16").fingerprint != plain.spec("float16").fingerprint
    assert unperturbed(noisy.spec("float16")) == plain.spec("float16")
    assert noisy.spec("float16").differences(plain.spec("float16"))[0].startswith("preprocessing.perturbation")
    disturbed = parse_perturbation("noise:5").apply(SOUND)
    assert np.array_equal(noisy.preprocess(SOUND), plain.preprocess(disturbed))
    noisy.batch_size = 3
    assert plain.batch_size != 3
    assert copy.copy(noisy).shape == plain.shape


def test_a_perturbation_of_what_the_encoder_is_not_shown_is_refused(whisper_folder: Path, eva_folder: Path) -> None:
    for encoder, folder, text in (
        ("whisper", whisper_folder, "low-light:0.1"),
        ("eva-global", eva_folder, "noise:3"),
        ("eva-global", eva_folder, "drop-frames:0.5"),
    ):
        with pytest.raises(EncoderError, match="perturb"):
            open_encoder(encoder, weights=str(folder), options={"perturb": text})
