"""Sound lies where its file says: behind encoder delays, after late beginnings, over changes of rate and channels."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import recordings as rec
from test_channels import written

from featurecache.clips.clip_list import Clip
from featurecache.errors import MediaError
from featurecache.media.decode import decode, decode_each
from featurecache.views import AudioView

AUDIO = AudioView()
BURST = (np.sin(2 * np.pi * 1000 * np.arange(320) / rec.RATE) * np.hanning(320)).astype(np.float32)  # 20 ms


def bursts(rate: int) -> np.ndarray:
    """Four seconds of silence with a burst at 1 s and at 3 s."""
    times = np.arange(0.02 * rate) / rate
    burst, sound = np.sin(2 * np.pi * 1000 * times) * np.hanning(len(times)), np.zeros(4 * rate, np.float32)
    for second in (1, 3):
        sound[second * rate : second * rate + len(burst)] = 0.8 * burst
    return sound


def place(sound: np.ndarray, near: int) -> int:
    """Where in (S,) a burst begins."""
    first = max(0, near - 3000)
    return first + int(np.argmax(np.correlate(sound[first : near + 3400], BURST, "valid")))


def pitches(sound: np.ndarray) -> list[int]:
    """Hertz in every half second."""
    return [2 * int(np.argmax(np.abs(np.fft.rfft(sound[i : i + 8000])))) for i in range(0, len(sound) - 7999, 8000)]


@pytest.mark.parametrize(
    ("form", "codec", "rate"),
    [("wav", "pcm_s16le", 16_000), ("flac", "flac", 44_100), ("mp3", "libmp3lame", 16_000), ("m4a", "aac", 16_000),
     ("m4a", "aac", 44_100), ("mp4", "aac", 48_000), ("opus", "libopus", 48_000), ("mka", "libopus", 48_000),
     ("mka", "aac", 48_000), ("mov", "pcm_s16le", 44_100), ("avi", "pcm_s16le", 44_100), ("3gp", "aac", 16_000)],
)  # fmt: skip
def test_the_delay_of_an_encoder_that_the_file_states_is_taken_off(
    tmp_path: Path, form: str, codec: str, rate: int
) -> None:
    path = rec.write_interleaved(tmp_path / f"a.{form}", bursts(rate), rate, codec)
    whole = decode(Clip("a", audio=path), [AUDIO])[0]
    assert abs(place(whole, 16_000) - 16_000) <= 2
    assert abs(place(whole, 48_000) - 48_000) <= 2
    part = decode(Clip("a", audio=path, start_s=2.5, end_s=3.5), [AUDIO])[0]
    assert part.shape == pytest.approx((16_000,), abs=16)  # Matroska's times are whole milliseconds
    assert abs(place(part, 8000) - 8000) <= 16


@pytest.mark.parametrize("form", ["mkv", "mp4", "mov", "ts"])
def test_sound_that_begins_after_the_pictures_is_cut_by_the_clock_of_the_file(tmp_path: Path, form: str) -> None:
    path, codec = tmp_path / f"a.{form}", {"mkv": "pcm_s16le", "mov": "pcm_s16le"}.get(form, "aac")
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("libx264", rate=10, options={"bf": "0"})
        pictures.width, pictures.height, pictures.pix_fmt = rec.WIDTH, rec.HEIGHT, "yuv420p"
        stream = container.add_stream(codec, rate=16_000, layout="mono")
        for number in range(60):
            frame = av.VideoFrame.from_ndarray(rec.picture(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        form_name, sound = stream.codec_context.format.name, bursts(16_000)
        for begin in range(0, len(sound), 1024):
            part = np.ascontiguousarray(sound[None, begin : begin + 1024])
            frame = av.AudioFrame.from_ndarray(part, format="flt", layout="mono")
            frame.sample_rate = 16_000
            (frame,) = av.AudioResampler(format=form_name, layout="mono", rate=16_000).resample(frame)
            frame.pts, frame.time_base = 24_000 + begin, Fraction(1, 16_000)  # 1.5 s late
            container.mux(stream.encode(frame))
        for each in (pictures, stream):
            container.mux(each.encode(None))
    whole = decode(Clip("a", video=path), [AUDIO])[0]
    assert 0 <= place(whole, 16_000) - 16_000 <= 1026  # nothing is put before it but an encoder's own delay
    part = decode(Clip("a", video=path, start_s=2.0, end_s=3.0), [AUDIO])[0]
    assert abs(place(part, 8000) - 8000) <= 32
    (early,) = decode_each(Clip("a", video=path, end_s=1.0), [AUDIO])
    assert "got no samples" in str(early)


@pytest.mark.parametrize(
    ("form", "codec", "second"),
    [("aac", "aac", (48_000, "stereo")), ("aac", "aac", (32_000, "mono")), ("ac3", "ac3", (32_000, "stereo")),
     ("ac3", "ac3", (48_000, "5.1")), ("mp2", "mp2", (44_100, "stereo")), ("ts", "aac", (44_100, "5.1")),
     ("mp3", "libmp3lame", (44_100, "stereo")), ("mp3", "libmp3lame", (48_000, "mono"))],
)  # fmt: skip
def test_a_change_of_rate_or_channels_within_a_stream_changes_no_pitch(
    tmp_path: Path, form: str, codec: str, second: tuple[int, str]
) -> None:
    rate, layout = second
    num_channels = {"mono": 1, "stereo": 2, "5.1": 6}[layout]
    first = written(tmp_path / f"a.{form}", codec, rec.sine(2.0, 400, 48_000)[None], "mono", 48_000)
    other = written(tmp_path / f"b.{form}", codec, np.stack([rec.sine(2.0, 1000, rate)] * num_channels), layout, rate)
    joined = tmp_path / f"joined.{form}"
    joined.write_bytes(first.read_bytes() + other.read_bytes())
    sound = decode(Clip("a", audio=joined), [AUDIO])[0]
    assert len(sound) == pytest.approx(64_000, abs=3200)
    assert pitches(sound[1600:]) == [400, 400, 400, 1000, 1000, 1000, 1000] or pitches(sound) == [400] * 4 + [1000] * 4


def test_a_gap_between_packets_is_not_filled_but_counted_in_times(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for begin in range(0, 32_000, 1600):
            frame = av.AudioFrame.from_ndarray(
                np.full((1, 1600), 1000 + begin // 1600, np.int16), format="s16", layout="mono"
            )
            frame.sample_rate, frame.time_base = 16_000, Fraction(1, 16_000)
            frame.pts = begin + (16_000 if begin >= 16_000 else 0)  # nothing for a second
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert decode(Clip("a", audio=path), [AUDIO])[0].shape == (32_000,)
    part = decode(Clip("a", audio=path, start_s=2.5, end_s=2.7), [AUDIO])[0]
    assert part.shape == (3200,)
    assert np.round(part * 32_768)[100] == 1000 + 15
    (gap,) = decode_each(Clip("a", audio=path, start_s=1.2, end_s=1.8), [AUDIO])
    assert "got no samples" in str(gap)


@pytest.mark.parametrize(
    ("form", "codec"),
    [("wav", "pcm_s16le"), ("aiff", "pcm_s16be"), ("mp3", "libmp3lame"), ("m4a", "aac"), ("mka", "flac"),
     ("flac", "flac"), ("avi", "pcm_s16le"), ("ogg", "flac"), ("aac", "aac"), ("ts", "ac3"),
     ("amr", "libopencore_amrnb")],
)  # fmt: skip
def test_a_part_beyond_the_end_is_no_file_cut_short(tmp_path: Path, form: str, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this libav has no {codec}")
    rate = {"amr": 8000, "ts": 48_000}.get(form, 16_000)
    path = rec.write_interleaved(tmp_path / f"a.{form}", rec.sine(3.0, 440, rate), rate, codec)
    for start_s in (3.5, 30.0):
        (beyond,) = decode_each(Clip("a", audio=path, start_s=start_s), [AUDIO])
        assert "expected sound in this part in its audio file, got no samples" in str(beyond)


@pytest.mark.parametrize("form", ["wav", "mp3", "ogg", "m4a", "flac", "aac", "avi", "mkv", "ts", "amr", "bin", ""])
def test_an_empty_file_says_that_it_is(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"a.{form}"
    path.touch()
    for clip in (Clip("a", audio=path), Clip("a", video=path)):
        (result,) = decode_each(clip, [AUDIO])
        assert isinstance(result, MediaError)
        assert "got an end before any content" in str(result)
