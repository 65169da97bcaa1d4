"""Sound of any number of channels, in any sample format, layout and container, gives the mean of its channels."""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import recordings as rec

from featurecache.clips.clip_list import Clip
from featurecache.explore.calibration_run import AUGMENTATIONS, augment
from featurecache.media.decode import decode, decode_each
from featurecache.media.waveform import WaveformCollector
from featurecache.views import AudioView

AUDIO = AudioView()
FORMATS = ("u8", "s16", "s32", "s64", "flt", "dbl")
PRECISION = {"u8": 0.01, "u1": 0.01}  # of a step of one in 256; others are finer


def voices(num_channels: int, seconds: float = 0.25, rate: int = rec.RATE) -> np.ndarray:
    """(C, S): noise around a level per channel, all different, of both signs."""
    values = [(number + 1) / (num_channels + 2) * (-1 if number % 3 == 1 else 1) for number in range(num_channels)]
    noise = np.random.default_rng(num_channels).uniform(-1, 1, (num_channels, round(seconds * rate)))
    return 0.8 * np.array(values)[:, None] + 0.1 * noise


def frame_of(samples: np.ndarray, form: str) -> av.AudioFrame:
    """A frame of (C, S) samples in any format; planes are never touched from Python."""
    interleaved = np.ascontiguousarray(samples.T, np.float64).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, format="dbl", layout=f"{len(samples)} channels")
    frame.sample_rate = rec.RATE
    if form != "dbl":
        (frame,) = av.AudioResampler(format=form, layout=frame.layout, rate=rec.RATE).resample(frame)
    frame.pts, frame.time_base = 0, Fraction(1, rec.RATE)
    return frame


@pytest.mark.parametrize("form", [*FORMATS, *(f"{form}p" for form in FORMATS)])
def test_every_number_of_channels_in_every_sample_format(form: str) -> None:
    for num_channels in [*range(1, 33), 48, 64]:
        samples = voices(num_channels)
        for start_s, end_s in ((0.0, float("inf")), (0.05, 0.15)):
            collector = WaveformCollector(rec.RATE, 30.0, start_s, end_s)
            collector.add(frame_of(samples, form))
            collector.finish()
            assert collector.problem is None
            found = collector.samples()
            expected = samples.mean(axis=0)[800:2400] if start_s else samples.mean(axis=0)
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < PRECISION.get(form.removesuffix("p"), 1e-4)


@pytest.mark.parametrize("num_channels", [1, 2, 3, 6, 7, 8, 9, 12, 16, 17, 24, 32, 64])
@pytest.mark.parametrize("kind", ["u1", "i2", "i3", "i4", "i8", "f4", "f8"])
def test_wav_files_of_many_channels(tmp_path: Path, num_channels: int, kind: str) -> None:
    samples = voices(num_channels)
    for mask in (None, 0, (1 << min(num_channels, 18)) - 1, 0b1011):
        path = rec.write_wav(tmp_path / "a.wav", samples, kind=kind, mask=mask)
        for clip in (Clip("a", audio=path), Clip("a", audio=path, start_s=0.05, end_s=0.15)):
            found = decode(clip, [AUDIO])[0]
            expected = samples.mean(axis=0) if clip.start_s is None else samples.mean(axis=0)[800:2400]
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < PRECISION.get(kind, 1e-4)


def written(path: Path, codec: str, samples: np.ndarray, layout: str, rate: int = rec.RATE) -> Path:
    """Encode (C, S) samples without touching planes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        interleaved = np.ascontiguousarray(samples.T, np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.codec_context.format,
            layout=layout,
            rate=rate,
            frame_size=stream.codec_context.frame_size or 1024,
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "exact"),
    [
        ("a.caf", "pcm_s24be", True), ("a.aiff", "pcm_s16be", True), ("a.mov", "pcm_s16le", True),  # labelled channels
        ("a.nut", "pcm_s16le_planar", True), ("a.flac", "flac", True), ("a.wv", "wavpack", True),
        ("a.tta", "tta", True), ("a.m4a", "aac", False), ("a.mkv", "libopus", False), ("a.ogg", "libopus", False),
    ],
)  # fmt: skip
def test_containers_of_eight_channels(tmp_path: Path, name: str, codec: str, exact: bool) -> None:
    """Each channel its own tone: 200, 300 … 900 Hz, all of one loudness in the mean."""
    rate = 48_000
    tones = np.stack([rec.sine(1.0, 200 + 100 * number, rate) for number in range(8)])
    path = written(tmp_path / name, codec, tones, "7.1", rate)
    whole, half = decode(Clip("a", audio=path), [AUDIO, AudioView(sampling_rate=8000)])
    part = decode(Clip("a", audio=path, start_s=0.25, end_s=0.75), [AUDIO])[0]
    assert len(whole) == pytest.approx(2 * len(half), abs=2)
    assert part.shape == (8000,)
    spectrum = np.abs(np.fft.rfft(part)) / 4000
    for number in range(8):
        if exact or number != 3:  # lossy codecs cut the LFE channel
            assert spectrum[100 + 50 * number] == pytest.approx(0.5 / 8, rel=0.02 if exact else 0.2)
    if exact:
        assert whole.shape == (16_000,)
        assert np.abs(whole[200:-200] - tones.mean(axis=0)[::3][200:-200]).max() < 2e-3


def test_labelled_channels_do_not_end_the_process(tmp_path: Path) -> None:
    """PyAV frees their layout twice; in a process of its own, since memory is what would be damaged."""
    tones = np.stack([rec.sine(0.5, 200 + 100 * number, 16_000) for number in range(8)])
    paths = [written(tmp_path / f"a.{kind}", "pcm_s16be", tones, "7.1") for kind in ("caf", "aiff", "mov")]
    program = (
        "import gc, sys\nfrom pathlib import Path\nfrom featurecache.clips.clip_list import Clip\n"
        "from featurecache.encoders import AudioView\nfrom featurecache.media.decode import decode, header_problem\n"
        "for path in sys.argv[1:] * 20:\n"
        "    clip = Clip('a', audio=Path(path), start_s=0.1, end_s=0.3)\n"
        "    assert decode(clip, [AudioView()])[0].shape == (3200,) and header_problem(clip) is None\n"
        "    gc.collect()\n"
    )
    environment = {**os.environ, "MALLOC_CHECK_": "3"}
    done = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr[-500:]
    augment(Clip("a", audio=paths[0]), AUGMENTATIONS[0], tmp_path / "copy.mp4")
    assert len(decode(Clip("a", video=tmp_path / "copy.mp4"), [AUDIO])[0]) == pytest.approx(8000, abs=2200)


def test_more_channels_than_libav_resamples_are_an_error_of_the_sound_alone(tmp_path: Path) -> None:
    path = rec.write_wav(tmp_path / "a.wav", voices(65))
    (sound,) = decode_each(Clip("a", audio=path), [AUDIO])
    assert "got 65 channels" in str(sound)


def test_two_rates_of_a_part_of_a_clip_come_from_one_pass(tmp_path: Path) -> None:
    path = rec.write_wav(tmp_path / "a.wav", np.stack([rec.sine(2.0, 500)] * 2))
    fast, slow = decode(Clip("a", audio=path, start_s=0.5, end_s=1.5), [AUDIO, AudioView(sampling_rate=8000)])
    assert (len(fast), len(slow)) == (16_000, 8000)
    assert np.abs(fast[200:-200:2] - slow[100:-100]).max() < 1e-2
