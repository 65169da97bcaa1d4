"""What each kind of recording gives, and what is never given silently."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import recordings as rec
from PIL import Image

from featurecache.clips.clip_list import Clip
from featurecache.clips.crop import Crop
from featurecache.errors import MediaError
from featurecache.media.decode import Absent, decode, decode_each, frame_indices, frame_times_s, media_files
from featurecache.media.frames import FramePicker
from featurecache.views import AudioView, FramesView

AUDIO = AudioView()
ALL_FRAMES = FramesView(20, "uniform", still=False)
SIXTEEN = FramesView(16, "uniform", still=False)
PEAK = FramesView(1, "peak", still=True)
FIRST = FramesView(1, "first", still=True)


def frames_of(clip: Clip, view: FramesView = ALL_FRAMES) -> list[int]:
    return rec.frame_numbers(decode(clip, [view])[0])


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames at 10 a second with B-frames, and 2 s of a 440 Hz sine."""
    return rec.write_clip(tmp_path_factory.mktemp("media") / "talking.mp4", sound=rec.sine(2.0))


def test_one_pass_gives_frames_and_sound_together(talking: Path) -> None:
    sound, frames, peak = decode(Clip("a", video=talking, peak_frame=7), [AUDIO, SIXTEEN, PEAK])
    assert sound.dtype == np.float32
    assert sound.shape == pytest.approx((32_000,), abs=1024)
    assert frames.shape == (16, rec.HEIGHT, rec.WIDTH, 3)
    assert frames.dtype == np.uint8
    assert rec.frame_numbers(frames) == [(2 * i + 1) * 20 // 32 for i in range(16)]
    assert rec.frame_numbers(peak) == [7]


def test_the_sound_of_a_mute_clip_is_absent_and_its_frames_are_as_ever(talking: Path) -> None:
    sound, frames = decode(Clip("a", video=talking, mute=True), [AUDIO, SIXTEEN])
    assert sound == Absent("the clip is mute: its sound is not that of the person")
    assert np.array_equal(frames, decode(Clip("a", video=talking), [SIXTEEN])[0])


def test_every_frame_is_the_frame_of_its_number_despite_b_frames(talking: Path) -> None:
    assert frames_of(Clip("a", video=talking)) == list(range(20))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mkv", "libx264", {"crf": "10", "bf": "3"}),
        ("a.avi", "mpeg4", {"b": "4M", "bf": "0"}),
        ("a.webm", "libvpx", {"crf": "4", "b": "2M", "auto-alt-ref": "1", "lag-in-frames": "10"}),
        ("a.webm", "libvpx-vp9", {"crf": "4", "b": "0", "lag-in-frames": "10"}),
        ("a.ts", "libx264", {"crf": "10", "bf": "2"}),
        ("a.mov", "mjpeg", {"strict": "unofficial", "b": "4M"}),
    ],
)
def test_containers_without_frame_counts_or_exact_times_give_every_frame(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this libav has no {codec}")
    path = rec.write_clip(tmp_path / name, codec=codec, options=options)
    assert frames_of(Clip("a", video=path)) == list(range(20))


def test_a_transport_stream_that_does_not_begin_at_zero_is_cut_from_its_own_beginning(tmp_path: Path) -> None:
    path = rec.write_clip(tmp_path / "a.ts", sound=rec.sine(2.0), audio_codec="aac")
    clip = Clip("a", video=path, start_s=1.0)
    assert frames_of(clip, FramesView(10, "uniform", False)) == list(range(10, 20))
    assert decode(clip, [AUDIO])[0].shape == pytest.approx((16_000,), abs=2100)  # AAC pads its ends


def test_frames_of_a_variable_rate_are_numbered_in_display_order(tmp_path: Path) -> None:
    times = [n * 20 if n < 15 else 300 + (n - 15) * 500 for n in range(20)]
    clip = Clip("a", video=rec.write_clip(tmp_path / "a.mp4", times=times))
    assert frames_of(clip) == list(range(20))
    # The first 15 frames are shown within 0.3 s, so a clip that begins there holds the last five.
    late = Clip("a", video=clip.video, start_s=0.299)
    assert frames_of(late, FramesView(5, "uniform", False)) == [15, 16, 17, 18, 19]


def test_frames_have_the_times_that_the_file_states(talking: Path, tmp_path: Path) -> None:
    four = FramesView(4, "uniform", still=False)
    assert frame_times_s(Clip("a", video=talking), four) == pytest.approx([0.2, 0.7, 1.2, 1.7], abs=1e-3)
    part = Clip("a", video=talking, start_s=0.5, end_s=1.5)
    assert frame_times_s(part, four) == pytest.approx([0.1, 0.3, 0.6, 0.8], abs=1e-3)
    few = Clip("a", video=rec.write_clip(tmp_path / "few.mp4", num_frames=3, times=[0, 100, 700]))
    assert frame_times_s(few, four) == pytest.approx([0.0, 0.1, 0.7, 0.7], abs=1e-3)
    shifted = Clip("a", video=rec.write_clip(tmp_path / "a.ts", sound=rec.sine(2.0), audio_codec="aac"))
    assert frame_times_s(shifted, four) == pytest.approx([0.2, 0.7, 1.2, 1.7], abs=0.1)


def test_what_has_no_frames_or_cannot_be_read_has_no_times_of_frames(tmp_path: Path) -> None:
    one = FramesView(1, "middle", still=True)
    sound = rec.write_clip(tmp_path / "a.wav", num_frames=0, sound=rec.sine(1.0), audio_codec="pcm_s16le")
    (tmp_path / "b.mp4").write_bytes(b"no film")
    Image.fromarray(rec.picture(3)).save(tmp_path / "c.png")
    assert frame_times_s(Clip("a", video=sound), one) is None
    assert frame_times_s(Clip("b", video=tmp_path / "b.mp4"), one) is None
    assert frame_times_s(Clip("c", image=tmp_path / "c.png"), one) is None
    assert frame_times_s(Clip("d", text="only words"), one) is None


def test_start_and_end_cut_both_frames_and_sound(tmp_path: Path) -> None:
    tone = np.concatenate([rec.sine(1.0, 300), rec.sine(0.5, 1200), rec.sine(0.5, 300)])
    path = rec.write_clip(tmp_path / "a.mkv", sound=tone, audio_codec="pcm_s16le")
    clip = Clip("a", video=path, start_s=1.0, end_s=1.5)
    sound, frames = decode(clip, [AUDIO, FramesView(5, "uniform", False)])
    assert rec.frame_numbers(frames) == [10, 11, 12, 13, 14]
    assert sound.shape == (8_000,)
    spectrum = np.abs(np.fft.rfft(sound))
    assert np.argmax(spectrum) == pytest.approx(600, abs=2)  # 1200 Hz at 2 Hz a bin
    assert spectrum[150] < spectrum[600] / 100  # nothing of the 300 Hz around it


def test_a_clip_late_in_a_long_file_is_the_same_as_when_the_file_is_read_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rec.write_clip(
        tmp_path / "a.mp4", num_frames=200, sound=rec.sine(20.0, 500), options={"crf": "10", "g": "25", "bf": "2"}
    )
    clip = Clip("a", video=path, start_s=12.3, end_s=14.1)
    sought = decode(clip, [AUDIO, ALL_FRAMES])
    monkeypatch.setattr("featurecache.media.recording.SEEK_FROM_S", float("inf"))
    read = decode(clip, [AUDIO, ALL_FRAMES])
    assert np.array_equal(sought[1], read[1])
    assert sought[0].shape == read[0].shape == (28_800,)
    assert np.abs(sought[0] - read[0]).max() < 1e-3


def test_a_crop_cuts_the_pictures_of_every_view_and_leaves_the_sound(tmp_path: Path) -> None:
    path = rec.write_clip(tmp_path / "a.mp4", marked=True, sound=rec.sine(2.0), size=(66, 48))
    whole = decode(Clip("a", video=path), [AUDIO, SIXTEEN, PEAK])
    left = decode(Clip("a", video=path, crop=Crop(right=0.5)), [AUDIO, SIXTEEN, PEAK])
    right = decode(Clip("a", video=path, crop=Crop(left=0.5)), [AUDIO, SIXTEEN, PEAK])
    assert np.array_equal(left[0], whole[0])
    for view in (1, 2):
        assert np.array_equal(np.concatenate([left[view], right[view]], axis=2), whole[view])
        assert left[view].shape[2] == 33
    assert left[1][..., 0].mean() > 180 > right[1][..., 0].mean()
    still = tmp_path / "a.png"
    Image.fromarray(rec.picture(0, marked=True)).save(still)
    face = decode(Clip("a", image=still, crop=Crop(0.25, 0.5, 0.75, 1.0)), [PEAK])[0]
    assert np.array_equal(face, rec.picture(0, marked=True)[None, 24:, 16:48])


def test_a_crop_leaves_at_least_one_pixel_and_halves_share_none() -> None:
    for width in (1, 2, 3, 5, 719):
        pictures = np.arange(width)[None, None, :, None]
        left, right = Crop(right=0.5).apply(pictures), Crop(left=0.5).apply(pictures)
        assert width == 1 or left.shape[2] + right.shape[2] == width
        assert Crop(left=0.999, right=1.0).apply(pictures).shape[2] == 1


def test_a_clip_of_fewer_frames_than_asked_repeats_its_last(tmp_path: Path) -> None:
    clip = Clip("a", video=rec.write_clip(tmp_path / "a.mp4", num_frames=3))
    assert frames_of(clip, SIXTEEN) == [0, 1] + [2] * 14


def test_the_middle_frame_serves_where_no_peak_is_named(talking: Path) -> None:
    assert frames_of(Clip("a", video=talking), PEAK) == [10]
    assert frames_of(Clip("a", video=talking), FramesView(1, "middle", True)) == [10]
    assert frames_of(Clip("a", video=talking), FIRST) == [0]


def test_a_peak_frame_counts_from_the_start_of_the_clip(talking: Path) -> None:
    assert frames_of(Clip("a", video=talking, start_s=0.5, peak_frame=3), PEAK) == [8]


def test_a_peak_frame_beyond_the_clip_is_an_error_that_names_both_numbers(talking: Path) -> None:
    with pytest.raises(MediaError, match=r'clip "a": expected peak_frame below 20.*got 20'):
        decode(Clip("a", video=talking, peak_frame=20), [PEAK])


@pytest.mark.parametrize("degrees", [90, 270])
def test_rotation_metadata_is_applied(tmp_path: Path, degrees: int) -> None:
    plain = rec.write_clip(tmp_path / "plain.mp4", marked=True)
    turned = rec.rotate_metadata(plain, tmp_path / "turned.mp4", degrees)
    frame = decode(Clip("a", video=turned), [FIRST])[0][0]
    assert frame.shape == (rec.WIDTH, rec.HEIGHT, 3)
    # Red was left: turned clockwise by 90 degrees it is on top, by 270 at the bottom.
    red_on_top = frame[4, :, 0].mean() > frame[-4, :, 0].mean()
    assert red_on_top == (degrees == 90)


def test_channels_are_averaged_after_resampling_each(tmp_path: Path) -> None:
    left, right = rec.sine(1.0, 440, 44_100), np.zeros(44_100, np.float32)
    path = rec.write_clip(
        tmp_path / "a.mkv", num_frames=0, channels=[left, right], sound_rate=44_100, audio_codec="pcm_f32le"
    )
    sound = decode(Clip("a", audio=path), [AUDIO])[0]
    assert sound.shape == pytest.approx((16_000,), abs=2)
    assert np.abs(sound[1000:15_000]).max() == pytest.approx(0.25, abs=0.005)
    assert np.argmax(np.abs(np.fft.rfft(sound))) == pytest.approx(440, abs=1)


def test_opposite_channels_cancel(tmp_path: Path) -> None:
    tone = rec.sine(0.5, 440, 48_000)
    path = rec.write_clip(
        tmp_path / "a.mkv", num_frames=0, channels=[tone, -tone], sound_rate=48_000, audio_codec="pcm_f32le"
    )
    assert np.abs(decode(Clip("a", audio=path), [AUDIO])[0]).max() < 1e-6


def test_sound_is_cut_at_the_longest_duration(talking: Path) -> None:
    sound = decode(Clip("a", video=talking), [AudioView(max_duration_s=0.75)])[0]
    whole = decode(Clip("a", video=talking), [AUDIO])[0]
    assert np.array_equal(sound, whole[:12_000])


def test_two_rates_of_one_clip_come_from_one_pass(talking: Path) -> None:
    fast, slow = decode(Clip("a", video=talking), [AUDIO, AudioView(sampling_rate=8_000)])
    assert len(fast) == pytest.approx(2 * len(slow), abs=2)


def test_a_clip_without_sound_is_absent_and_not_silent(tmp_path: Path) -> None:
    path = rec.write_clip(tmp_path / "a.mp4")
    sound, frames = decode(Clip("a", video=path), [AUDIO, FIRST])
    assert sound == Absent("no audio stream")
    assert frames.shape[0] == 1


def test_silence_is_sound(tmp_path: Path) -> None:
    path = rec.write_clip(tmp_path / "a.mkv", sound=np.zeros(16_000, np.float32), audio_codec="pcm_s16le")
    sound = decode(Clip("a", video=path), [AUDIO])[0]
    assert sound.shape == (16_000,)
    assert not sound.any()


def test_a_clip_of_sound_alone_has_no_frames(tmp_path: Path) -> None:
    path = rec.write_clip(tmp_path / "a.wav", num_frames=0, sound=rec.sine(1.0), audio_codec="pcm_s16le")
    sound, frames, peak = decode(Clip("a", audio=path), [AUDIO, SIXTEEN, PEAK])
    assert sound.shape == (16_000,)
    assert frames == peak == Absent("no video file in the clip list")
    as_video = decode(Clip("a", video=path), [SIXTEEN])
    assert as_video == [Absent("no video stream")]


def test_a_sound_file_of_its_own_overrides_the_track(tmp_path: Path, talking: Path) -> None:
    path = rec.write_clip(tmp_path / "a.wav", num_frames=0, sound=rec.sine(0.5, 900), audio_codec="pcm_s16le")
    sound, frames = decode(Clip("a", video=talking, audio=path), [AUDIO, FIRST])
    assert sound.shape == (8_000,)
    assert np.argmax(np.abs(np.fft.rfft(sound))) == 450
    assert frames.shape[0] == 1


def test_a_sound_file_without_sound_is_an_error(tmp_path: Path) -> None:
    path = rec.write_clip(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="expected an audio stream in its audio file"):
        decode(Clip("a", audio=path), [AUDIO])


def test_a_still_is_one_frame_for_the_global_view_and_absent_for_the_temporal(tmp_path: Path, talking: Path) -> None:
    still = tmp_path / "a.png"
    Image.fromarray(rec.picture(3, marked=True)).save(still)
    peak, many = decode(Clip("a", image=still), [PEAK, SIXTEEN])
    assert np.array_equal(peak[0], rec.picture(3, marked=True))
    assert many == Absent("no video file in the clip list")
    beside_video = decode(Clip("a", image=still, video=talking), [PEAK, SIXTEEN])
    assert np.array_equal(beside_video[0], peak)
    assert beside_video[1].shape[0] == 16


def test_a_still_is_turned_the_way_its_exif_says(tmp_path: Path) -> None:
    image = Image.fromarray(rec.picture(0, marked=True))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    frame = decode(Clip("a", image=tmp_path / "a.jpg"), [PEAK])[0][0]
    assert frame.shape == (rec.WIDTH, rec.HEIGHT, 3)
    assert frame[4, 20, 0] > 200


def test_cover_art_is_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    if "libmp3lame" not in av.codecs_available:
        pytest.skip("this libav has no MP3 encoder")
    with av.open(str(path), "w") as container:
        sound = container.add_stream("libmp3lame", rate=rec.RATE, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = rec.WIDTH, rec.HEIGHT, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(rec.picture(0), format="rgb24")))
        container.mux(cover.encode(None))
        rec.write_sound(container, sound, rec.sine(1.0)[None], "mono", rec.RATE)
    found, frames = decode(Clip("a", video=path), [AUDIO, FIRST])
    assert frames == Absent("no video stream")
    assert len(found) == pytest.approx(16_000, abs=2500)


def test_nothing_but_text_is_absent_everywhere() -> None:
    results = decode(Clip("a", text="Hello."), [AUDIO, SIXTEEN, PEAK])
    assert all(isinstance(result, Absent) for result in results)


def test_a_missing_file_a_folder_and_nonsense_are_errors_without_a_path(tmp_path: Path) -> None:
    nonsense = tmp_path / "nonsense.mp4"
    nonsense.write_bytes(b"not a film" * 500)
    for path in (tmp_path / "missing.mp4", tmp_path, nonsense):
        for view in (AUDIO, FIRST):
            with pytest.raises(MediaError, match='clip "a": expected its video file') as caught:
                decode(Clip("a", video=path), [view])
            assert str(tmp_path) not in str(caught.value)
    with pytest.raises(MediaError, match="expected its image file to be a picture"):
        decode(Clip("a", image=nonsense), [PEAK])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_file_cut_short_never_gives_earlier_frames_for_missing_ones(tmp_path: Path, suffix: str) -> None:
    whole = rec.write_clip(
        tmp_path / f"whole.{suffix}",
        num_frames=40,
        sound=rec.sine(4.0),
        options={"crf": "1", "g": "5", "bf": "0"},
        container_options={"movflags": "faststart"} if suffix == "mp4" else None,
    )
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    sound, frames, first = decode_each(Clip("a", video=cut), [AUDIO, SIXTEEN, FIRST])
    assert isinstance(frames, MediaError)
    assert "expected 40 frames" in str(frames)
    assert "cut short" in str(frames)
    assert isinstance(sound, MediaError)
    assert "cut short" in str(sound)
    assert rec.frame_numbers(first) == [0]  # before the damage, and so what it always was


def test_a_wav_file_cut_short_is_an_error(tmp_path: Path) -> None:
    whole = rec.write_clip(tmp_path / "a.wav", num_frames=0, sound=rec.sine(8.0), audio_codec="pcm_s16le")
    cut = tmp_path / "cut.wav"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(MediaError, match="cut short"):
        decode(Clip("a", audio=cut), [AUDIO])
    early = decode(Clip("a", audio=cut, end_s=2.0), [AUDIO])[0]
    assert early.shape == (32_000,)


def test_a_part_beyond_the_end_of_the_file_is_an_error(talking: Path) -> None:
    clip = Clip("a", video=talking, start_s=5.0)
    sound, frames = decode_each(clip, [AUDIO, SIXTEEN])
    assert "no samples" in str(sound)
    assert "between start_s and end_s" in str(frames)


def test_sound_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    samples = rec.sine(1.0)
    samples[5000] = np.nan
    path = rec.write_clip(tmp_path / "a.mkv", num_frames=0, sound=samples, audio_codec="pcm_f32le")
    with pytest.raises(MediaError, match="expected finite samples"):
        decode(Clip("a", audio=path), [AUDIO])


def test_a_bad_sound_file_leaves_the_frames_usable(tmp_path: Path, talking: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    sound, frames = decode_each(Clip("a", video=talking, audio=tmp_path / "a.wav"), [AUDIO, SIXTEEN])
    assert isinstance(sound, MediaError)
    assert frames.shape[0] == 16


def test_decoding_stops_after_the_last_frame_needed(talking: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    add = FramePicker.add
    monkeypatch.setattr(FramePicker, "add", lambda self, frame: (seen.append(frame.pts), add(self, frame)))
    decode(Clip("a", video=talking), [FIRST])
    assert len(seen) == 1


def test_views_name_the_files_they_depend_on(tmp_path: Path) -> None:
    clip = Clip("a", video=tmp_path / "v.mp4", audio=tmp_path / "a.wav", image=tmp_path / "i.png")
    assert media_files(clip, AUDIO) == [clip.audio]
    assert media_files(clip, SIXTEEN) == [clip.video]
    assert media_files(clip, PEAK) == [clip.image]
    assert media_files(Clip("b", text="x"), AUDIO) == []


@pytest.mark.parametrize("num_frames", [1, 2, 15, 16, 17, 100, 1001])
def test_uniform_frames_are_the_middles_of_equal_parts(num_frames: int) -> None:
    chosen = frame_indices(SIXTEEN, num_frames, None)
    if num_frames < 16:
        assert chosen == [min(i, num_frames - 1) for i in range(16)]
    else:
        assert chosen == [int((i + 0.5) * num_frames / 16) for i in range(16)]
    assert chosen == sorted(chosen)


def test_real_recordings_decode(recordings: Path) -> None:
    nasa = Clip("nasa", video=recordings / "nasa_13013.mp4")
    sound, frames, peak = decode(nasa, [AUDIO, SIXTEEN, PEAK])
    assert sound.shape == (208_896,)  # libav's best streams of two: 480 x 270, AAC of 16 kHz
    assert frames.shape == (16, 270, 480, 3)
    assert np.abs(np.diff(frames.astype(int), axis=0)).mean() > 1
    assert peak.shape == (1, 270, 480, 3)
    assert decode(Clip("jfk", audio=recordings / "jfk.flac"), [AUDIO])[0].shape == (176_000,)
    assert decode(Clip("sine", audio=recordings / "sine_mono_s32_8000.wav"), [AUDIO])[0].shape == (64_000,)
    for name in ("av1_video.mkv", "h265_10bits.mp4", "bt709_full_range.mp4"):
        sound, frames = decode(Clip(name, video=recordings / name), [AUDIO, SIXTEEN])
        assert sound == Absent("no audio stream")
        assert frames.std() > 5


def test_colours_follow_the_stated_matrix_and_range(recordings: Path) -> None:
    path = recordings / "bt709_full_range.mp4"
    with av.open(str(path)) as container:
        planes = next(container.decode(video=0)).to_ndarray().astype(float)
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    luma = planes[:height]
    chroma = planes[height:].reshape(2, height // 2, width // 2).repeat(2, 1).repeat(2, 2) - 128
    red, blue = luma + 1.5748 * chroma[1], luma + 1.8556 * chroma[0]  # BT.709, full range
    frame = decode(Clip("a", video=path), [FIRST])[0][0].astype(float)
    assert np.abs(frame[..., 0] - red.clip(0, 255)).mean() < 2
    assert np.abs(frame[..., 2] - blue.clip(0, 255)).mean() < 2
