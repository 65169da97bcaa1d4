"""How several channels become one: alike by default, or by the standard down-mix; and parts of sound without times."""

from __future__ import annotations

import re
from pathlib import Path

import av
import checkpoints
import numpy as np
import pytest
import recordings as rec

from featurecache.clips.clip_list import Clip
from featurecache.encoders import open_encoder
from featurecache.encoders.whisper import WhisperEncoder
from featurecache.errors import EncoderError, MediaError
from featurecache.extract.pipeline import forward_key
from featurecache.media.channels import channel_weights
from featurecache.media.decode import decode, decode_each
from featurecache.views import AudioView

MEAN, STANDARD = AudioView(), AudioView(channels="standard")
SIDE, BOTH = 0.5, 0.5**0.5
WEIGHTS = {"FL": SIDE, "FR": SIDE, "FC": BOTH, "LFE": 0.0, "BL": SIDE * BOTH, "BR": SIDE * BOTH}
"""ITU-R BS.775, then the mean of the two sides: the centre is 3 dB down, a surround 9 dB."""


def write_sound(path: Path, samples: np.ndarray, layout: str, codec: str = "pcm_f32le", rate: int = rec.RATE) -> Path:
    """Write (C, S) float32."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        rec.write_sound(container, stream, samples, layout, rate)
    return path


def level(sound: np.ndarray) -> float:
    """Amplitude of a sine, away from its ends."""
    return float(np.abs(sound[2000:-2000]).max())


@pytest.mark.parametrize("channel", WEIGHTS)
def test_each_channel_of_five_point_one_counts_what_the_down_mix_says(tmp_path: Path, channel: str) -> None:
    samples = np.zeros((6, rec.RATE), np.float32)
    samples[list(WEIGHTS).index(channel)] = rec.sine(1.0)
    clip = Clip("a", audio=write_sound(tmp_path / "a.mkv", samples, "5.1"))
    mean, standard = decode(clip, [MEAN, STANDARD])
    assert level(mean) == pytest.approx(0.5 / 6, abs=1e-4)
    assert level(standard) == pytest.approx(0.5 * WEIGHTS[channel], abs=1e-4)


@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_mono_and_stereo_are_the_same_either_way(tmp_path: Path, layout: str) -> None:
    samples = np.stack([rec.sine(1.0, 300), rec.sine(1.0, 700)])[: 1 if layout == "mono" else 2]
    mean, standard = decode(Clip("a", audio=write_sound(tmp_path / "a.mkv", samples, layout)), [MEAN, STANDARD])
    assert np.array_equal(mean, standard)


@pytest.mark.parametrize(
    ("layout", "mask"), [("3.0", 0x7), ("5.0", 0x37), ("5.1(side)", 0x60F), ("6.1", 0x70F), ("7.1", 0x63F)]
)
def test_speech_in_the_centre_comes_three_decibels_down_in_every_layout(tmp_path: Path, layout: str, mask: int) -> None:
    samples = np.zeros((av.AudioLayout(layout).nb_channels, rec.RATE), np.float32)
    samples[2] = rec.sine(1.0)
    path = rec.write_wav(tmp_path / "a.wav", samples, kind="f4", mask=mask)
    with av.open(str(path)) as file:
        assert file.streams.audio[0].layout.name == layout
    assert level(decode(Clip("a", audio=path), [STANDARD])[0]) == pytest.approx(0.5 * BOTH, abs=1e-3)


def test_the_layout_that_ac3_gives_is_known(tmp_path: Path) -> None:
    if "ac3" not in av.codecs_available:
        pytest.skip("this libav has no AC-3")
    samples = np.zeros((6, 48_000), np.float32)
    samples[2] = rec.sine(1.0, rate=48_000)
    path = write_sound(tmp_path / "a.ac3", samples, "5.1(side)", "ac3", 48_000)
    assert level(decode(Clip("a", audio=path), [STANDARD])[0]) == pytest.approx(0.5 * BOTH, abs=0.02)


def test_channels_that_the_down_mix_does_not_know_are_refused_in_words(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.mkv", np.stack([rec.sine(1.0)] * 5), "5.0")  # which has no names of channels
    mean, standard = decode_each(Clip("a", audio=path), [MEAN, STANDARD])
    assert level(mean) == pytest.approx(0.5, abs=1e-4)
    assert isinstance(standard, MediaError)
    assert "expected channels that the standard down-mix knows (channels=mean takes any)" in str(standard)
    assert "the layout 5 channels" in str(standard)


def test_channels_of_no_known_place_or_order_are_not_guessed() -> None:
    for layout, in_order in (("5.1.2(back)", True), ("6 channels", False), ("4 channels", True)):
        assert channel_weights("mean", av.AudioLayout(layout), in_order) is None
        with pytest.raises(ValueError, match=re.escape(f"the layout {layout}")):
            channel_weights("standard", av.AudioLayout(layout), in_order)
    assert channel_weights("standard", av.AudioLayout("6 channels")) == pytest.approx(list(WEIGHTS.values()))


def test_the_option_is_in_the_fingerprint_and_its_default_changes_none(tmp_path: Path) -> None:
    folder = checkpoints.save_whisper(tmp_path / "whisper")
    default = open_encoder("whisper", weights=str(folder))
    standard = open_encoder("whisper", weights=str(folder), options={"channels": "standard"})
    specs = default.spec("float16"), standard.spec("float16")
    assert specs[0].preprocessing["channels"] == "mean"
    assert specs[0].implementation == 1
    assert specs[0].differences(specs[1]) == ['preprocessing.channels: "mean" != "standard"']
    assert (default.view.channels, standard.view.channels) == ("mean", "standard")
    assert forward_key(default) != forward_key(standard)
    again = WhisperEncoder.from_spec(specs[1], standard.settings, None)  # what an exported folder does
    assert again.view == standard.view
    with pytest.raises(EncoderError, match=r"expected mean \| standard"):
        open_encoder("whisper", weights=str(folder), options={"channels": "stereo"})


@pytest.mark.parametrize(
    ("codec", "layout"), [("adpcm_ima_wav", "stereo"), ("adpcm_ms", "stereo"), ("adpcm_swf", "mono")]
)
def test_a_part_of_adpcm_is_cut_by_its_samples(tmp_path: Path, codec: str, layout: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this libav has no {codec}")
    rate = 22_050
    tone = np.concatenate([rec.sine(1.0, 300, rate), rec.sine(1.0, 1200, rate), rec.sine(1.0, 300, rate)])
    path = tmp_path / "a.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        count = 1 if layout == "mono" else 2
        rec.write_sound(container, stream, np.stack([tone] * count), layout, rate)
    with av.open(str(path)) as container:
        assert codec == "adpcm_ms" or any(frame.pts is None for frame in container.decode(audio=0))
    sound = decode(Clip("a", audio=path, start_s=1.0, end_s=2.0), [MEAN])[0]
    assert sound.shape == pytest.approx((16_000,), abs=2)
    spectrum = np.abs(np.fft.rfft(sound))
    assert np.argmax(spectrum) == pytest.approx(1200, abs=2)
    assert spectrum[300] < spectrum[1200] / 20
    rest = decode(Clip("a", audio=path, start_s=2.0), [MEAN])[0]
    assert np.argmax(np.abs(np.fft.rfft(rest[:16_000]))) == pytest.approx(300, abs=2)


def test_a_part_of_sound_whose_times_begin_again_is_refused(tmp_path: Path) -> None:
    part = rec.write_clip(tmp_path / "part.ts", num_frames=0, sound=rec.sine(3.0))
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * 2)
    assert decode(Clip("a", audio=joined, start_s=0.5, end_s=1.0), [MEAN])[0].shape == pytest.approx((8000,), abs=2)
    late = decode_each(Clip("a", audio=joined, start_s=2.5), [MEAN])[0]
    assert isinstance(late, MediaError)
    assert "times that go back" in str(late)
