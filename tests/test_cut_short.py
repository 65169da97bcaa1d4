"""A file cut short is refused whatever holds it, and one that is whole is not, whatever its headers or its tail say."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest
import recordings as rec
from test_channels import written

from featurecache.clips.clip_list import Clip
from featurecache.errors import MediaError
from featurecache.media.decode import decode, decode_each
from featurecache.media.extent import extent_of
from featurecache.media.item_sequences import ITEM_FORMATS
from featurecache.media.stated_sizes import STATED_SIZES
from featurecache.views import AudioView, FramesView

AUDIO = AudioView()
EIGHT = FramesView(8, "uniform", still=False)
SECONDS = 4.0
H264, MPEG4, MJPEG = ("libx264", {"crf": "20", "bf": "2"}), ("mpeg4", {"b": "500k"}), ("mjpeg", {"b": "1M"})
FASTSTART = {"movflags": "faststart"}

Kind = tuple[str, str, int, tuple[str, dict[str, str]] | None, dict[str, str] | None]
KINDS: dict[str, Kind] = {
    **{f"wav {codec}": ("wav", codec, 16_000, None, None) for codec in (
        "pcm_s16le", "pcm_u8", "pcm_s24le", "pcm_f32le", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav", "mp2",
        "libmp3lame")},
    **{f"{form} {codec}": (form, codec, 16_000, None, None) for form, codec in (
        ("w64", "pcm_s16le"), ("aiff", "pcm_s16be"), ("aiff", "adpcm_ima_qt"), ("au", "pcm_s16be"),
        ("caf", "pcm_s16be"), ("caf", "alac"), ("sox", "pcm_s32le"), ("voc", "pcm_u8"), ("flac", "flac"),
        ("tta", "tta"), ("wv", "wavpack"), ("mp3", "libmp3lame"), ("mp2", "mp2"), ("aac", "aac"), ("m4a", "aac"),
        ("m4a", "alac"), ("mka", "aac"), ("mka", "flac"), ("mka", "pcm_s16le"), ("ogg", "flac"))},
    **{f"{form} {codec}": (form, codec, 48_000, None, None) for form, codec in (
        ("ogg", "libopus"), ("opus", "libopus"), ("mka", "libopus"), ("ac3", "ac3"), ("eac3", "eac3"), ("mpg", "mp2"))},
    "amr": ("amr", "libopencore_amrnb", 8000, None, None),
    "3gp amr": ("3gp", "libopencore_amrnb", 8000, None, FASTSTART),
    "mp3 without xing": ("mp3", "libmp3lame", 16_000, None, {"write_xing": "0"}),
    "m4a faststart": ("m4a", "aac", 16_000, None, FASTSTART),
    "m4a fragments": ("m4a", "aac", 16_000, None, {"movflags": "frag_keyframe+empty_moov"}),
    "avi of sound": ("avi", "pcm_s16le", 16_000, None, None),
    **{f"avi {codec}": ("avi", codec, 48_000 if codec in ("libmp3lame", "mp2", "ac3") else 16_000, video, None)
       for codec, video in (("pcm_s16le", MPEG4), ("pcm_s16le", MJPEG), ("pcm_u8", MPEG4), ("pcm_mulaw", MJPEG),
                            ("adpcm_ms", MPEG4), ("adpcm_ima_wav", MJPEG), ("libmp3lame", MPEG4), ("mp2", MJPEG),
                            ("ac3", MPEG4), ("aac", MPEG4))},
    "mp4": ("mp4", "aac", 44_100, H264, None),
    "mp4 faststart": ("mp4", "aac", 44_100, H264, FASTSTART),
    "mp4 fragments": ("mp4", "aac", 44_100, H264, {"movflags": "frag_keyframe+empty_moov"}),
    "mp4 opus": ("mp4", "libopus", 48_000, H264, FASTSTART),
    "mov pcm": ("mov", "pcm_s16le", 44_100, MPEG4, FASTSTART),
    "3gp": ("3gp", "aac", 44_100, MPEG4, FASTSTART),
    "mkv": ("mkv", "aac", 44_100, H264, None),
    "mkv pcm": ("mkv", "pcm_s16le", 44_100, H264, None),
    "webm": ("webm", "libopus", 48_000, ("libvpx", {"b": "500k"}), None),
    "ts": ("ts", "aac", 44_100, H264, None),
    "m2ts": ("m2ts", "ac3", 48_000, H264, None),
    "vob": ("vob", "ac3", 48_000, ("mpeg2video", {}), None),
    "flv": ("flv", "aac", 44_100, ("flv", {}), None),
    "asf": ("asf", "libmp3lame", 44_100, MPEG4, None),
}  # fmt: skip
EXACT = ("pcm", "flac", "alac", "wavpack", "tta", "libopus")
CODEC_DELAY_S = 0.2
ITEMS = {"amr": (6, 13), "ts": (0, 188), "m2ts": (0, 192), "ac3 ac3": (0, 768), "mp2 mp2": (0, 576)}
"""Where items of one length begin, and their length, in bytes."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Files by kind, made once."""
    folder, files = tmp_path_factory.mktemp("kinds"), {}

    def make(kind: str) -> Path:
        if kind not in files:
            form, codec, rate, video, options = KINDS[kind]
            if {codec, video[0] if video else codec} - set(av.codecs_available):
                pytest.skip(f"this libav has no {codec}")
            tone = rec.sine(SECONDS, 440, rate) + 0.1 * np.random.default_rng(1).standard_normal(round(SECONDS * rate))
            files[kind] = rec.write_interleaved(
                folder / f"{kind.replace(' ', '_')}.{form}", tone.astype(np.float32), rate, codec, video, options
            )
        return files[kind]

    return make


def sound_of(path: Path) -> np.ndarray | MediaError:
    return decode_each(Clip("a", video=path), [AUDIO], limit_s=20)[0]  # type: ignore[return-value]


def as_file(source: Path, data: bytes) -> Path:
    path = source.with_stem("changed_" + source.stem)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_taken_and_cut_ones_refused(made, kind: str) -> None:  # type: ignore[no-untyped-def]
    path = made(kind)
    data, has_frames = path.read_bytes(), KINDS[kind][3] is not None
    whole = sound_of(path)
    assert isinstance(whole, np.ndarray), whole
    exact = any(name in KINDS[kind][1] for name in EXACT)
    assert len(whole) == pytest.approx(SECONDS * 16_000, abs=1600 if exact else 16_000 * CODEC_DELAY_S)
    frames = decode(Clip("a", video=path), [EIGHT])[0] if has_frames else None
    for numerator in (5, 11, 29, 53, 71, 83, 91):
        size = len(data) * numerator // 97
        begin, item = ITEMS.get(kind, (0, size + 1))
        size += (size - begin) % item == 0  # between two items nothing tells of a cut
        cut = as_file(path, data[:size])
        sound, *pictures = decode_each(Clip("a", video=cut), [AUDIO, EIGHT] if has_frames else [AUDIO], limit_s=20)
        assert isinstance(sound, MediaError), (numerator, sound)
        for picture in pictures:
            assert isinstance(picture, MediaError) or np.array_equal(picture, frames), numerator
        if numerator > 50 and kind not in ("mp4", "m4a aac", "m4a alac", "caf alac"):  # whose index comes last
            assert "cut short" in str(sound), (numerator, sound)


@pytest.mark.parametrize("kind", KINDS)
def test_short_files_and_silence_are_whole(tmp_path: Path, kind: str) -> None:
    """Their last items are smaller than others' headers."""
    form, codec, rate, video, options = KINDS[kind]
    if {codec, video[0] if video else codec} - set(av.codecs_available):
        pytest.skip(f"this libav has no {codec}")
    for seconds in (0.3, 2.2):
        path = tmp_path / f"a.{form}"
        rec.write_interleaved(path, np.zeros(round(seconds * rate)), rate, codec, video, options)
        found = sound_of(path)
        assert isinstance(found, np.ndarray), found
        assert len(found) == pytest.approx(seconds * 16_000, abs=16_000 * CODEC_DELAY_S)
        if form == "mpg":  # writers other than libav end with a code of four bytes
            assert np.array_equal(sound_of(as_file(path, path.read_bytes() + b"\0\0\1\xb9")), found)


def tag(kind: str) -> bytes:
    """What is found after the last frame of sound files."""
    id3 = b"TAG" + b"Title".ljust(125, b"\0")
    item = struct.pack("<II", 60, 0) + b"Title\0" + b"x" * 60
    header = b"APETAGEX" + struct.pack("<IIII", 2000, len(item) + 32, 1, 0xA0000000) + bytes(8)
    footer = b"APETAGEX" + struct.pack("<IIII", 2000, len(item) + 32, 1, 0x80000000) + bytes(8)
    noise = np.random.default_rng(5).bytes(300_000)
    return {
        "id3": id3,
        "ape": header + item + footer,
        "ape and id3": header + item + footer + id3,
        "byte": b"\0",
        "zeros": bytes(5000),
        "many zeros": bytes(400_000),
        "noise": noise[:5000],
        "much noise": noise,
        "text": b"hello world\n" * 100,
        "ones": b"\xff" * 3000,
        "lyrics": b"LYRICSBEGIN" + b"la " * 99 + b"LYRICS200" + id3,
    }[kind]


TAGS = ("id3", "ape", "ape and id3", "byte", "zeros", "many zeros", "noise", "much noise", "text", "ones", "lyrics")


@pytest.mark.parametrize(
    "kind",
    ["mp3 libmp3lame", "mp3 without xing", "mp2 mp2", "aac aac", "ac3 ac3", "amr", "wav pcm_s16le", "au pcm_s16be",
     "aiff pcm_s16be", "flac flac", "wv wavpack", "ogg libopus", "m4a aac", "mkv", "avi pcm_s16le", "ts", "flv"],
)  # fmt: skip
def test_what_follows_the_last_frame_is_no_sound(made, kind: str) -> None:  # type: ignore[no-untyped-def]
    path = made(kind)
    whole, data = sound_of(path), path.read_bytes()
    for name in TAGS:
        found = sound_of(as_file(path, data + tag(name)))
        assert isinstance(found, np.ndarray), (name, found)
        assert np.array_equal(found, whole), name


def test_a_truncated_mp3_with_a_tag_is_cut_and_a_tagged_one_is_seekable(made) -> None:  # type: ignore[no-untyped-def]
    path = made("mp3 libmp3lame")
    data = path.read_bytes()
    assert "cut short" in str(sound_of(as_file(path, data[: len(data) * 3 // 4 + 7])))
    tagged = as_file(path, data + tag("much noise"))
    part = decode(Clip("a", audio=tagged, start_s=2.0, end_s=3.0), [AUDIO])[0]
    assert np.array_equal(part, decode(Clip("a", audio=path, start_s=2.0, end_s=3.0), [AUDIO])[0])


def patched(data: bytes, riff: int, sound: int) -> bytes:
    changed, place = bytearray(data), data.index(b"data")
    changed[4:8] = struct.pack("<I", riff & 0xFFFFFFFF)
    changed[place + 4 : place + 8] = struct.pack("<I", sound & 0xFFFFFFFF)
    return bytes(changed)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("wav")])
def test_sizes_that_a_wav_writer_could_not_know_or_miscounted(made, kind: str) -> None:  # type: ignore[no-untyped-def]
    path = made(kind)
    data, whole = path.read_bytes(), sound_of(path)
    size, place = len(data), data.index(b"data")
    sound = struct.unpack("<I", data[place + 4 : place + 8])[0]
    sizes = {
        "zero": (0, 0),
        "streamed": (-1, -1),
        "streamed less its header": (-1, -1 - 36),
        "largest signed": (2**31 - 1, 2**31 - 1),
        "one more": (2**31, 2**31),
        "sox": (0x7FFFF000 + 36, 0x7FFFF000),
        "file": (size - 8, size),
        "file twice": (size, size),
        "header counted": (size + place, sound + place + 8),
        "eight more": (size - 8, sound + 8),
        "too large": (size - 8, 2 * sound),
        "riff zero": (0, sound),
        "riff too large": (2 * size, sound),
        "riff streamed": (-1, sound),
        "data streamed": (size - 8, -1),
    }
    for name, (riff, stated) in sizes.items():
        found = sound_of(as_file(path, patched(data, riff, stated)))
        assert isinstance(found, np.ndarray), (name, found)
        assert np.array_equal(found, whole), name
    if "pcm" in kind:  # a recorder that was killed: what it wrote is whole
        half = sound_of(as_file(path, patched(data, 0, 0)[: size // 2 + 1]))
        assert len(half) == pytest.approx(len(whole) / 2, abs=1024)


def test_rf64_is_judged_by_its_long_sizes(tmp_path: Path) -> None:
    data = rec.write_wav(tmp_path / "a.wav", rec.sine(2.0)[None]).read_bytes()
    body = data[12:]
    long_sizes = struct.pack("<QQQI", len(data) + 28, 64_000, 32_000, 0)
    start = b"RF64\xff\xff\xff\xffWAVEds64" + struct.pack("<I", 28) + long_sizes
    big = start + body[:24] + b"data\xff\xff\xff\xff" + body[32:]
    for path, content in ((tmp_path / "b.wav", big), (tmp_path / "c.wav", big[: len(big) // 2])):
        path.write_bytes(content)
    assert sound_of(tmp_path / "b.wav").shape == (32_000,)
    assert "cut short" in str(sound_of(tmp_path / "c.wav"))


@pytest.mark.parametrize("kind", ["avi pcm_s16le", "avi adpcm_ms", "avi libmp3lame", "avi of sound"])
def test_avi_files_of_recorders_that_could_not_finish_their_headers(made, kind: str) -> None:  # type: ignore[no-untyped-def]
    path = made(kind)
    data, whole = path.read_bytes(), sound_of(path)
    place = data.index(b"movi") - 4
    movi = struct.unpack("<I", data[place : place + 4])[0]
    without_index = data[: place + 4 + movi]
    for name, riff, stated, content in (
        ("riff zero", 0, movi, data),
        ("zero", 0, 0, data),
        ("streamed", 2**32 - 1, 2**32 - 1, data),
        ("riff of the file", len(data), movi, data),
        ("riff too large", 2 * len(data), movi, data),
        ("movi too large", len(data) - 8, 2 * movi, data),
        ("no index", 0, 0, without_index),
        ("no index, sizes right", len(without_index) - 8, movi, without_index),
    ):
        changed = bytearray(content)
        changed[4:8], changed[place : place + 4] = struct.pack("<I", riff), struct.pack("<I", stated)
        found = sound_of(as_file(path, bytes(changed)))
        assert isinstance(found, np.ndarray), (name, found)
        assert np.array_equal(found, whole), name


def test_frames_of_a_cut_file_are_those_of_the_whole_or_none(made) -> None:  # type: ignore[no-untyped-def]
    """How many frames an AVI file lacks is a guess, so frames chosen by their share of all are refused."""
    path = made("avi pcm_s16le")
    cut = as_file(path, path.read_bytes()[: path.stat().st_size * 9 // 10])
    first, eight = FramesView(1, "first", still=True), EIGHT
    results = decode_each(Clip("a", video=cut), [first, eight])
    assert np.array_equal(results[0], decode(Clip("a", video=path), [first])[0])
    assert "cut short" in str(results[1])


def test_sound_before_the_cut_is_what_it_was(made) -> None:  # type: ignore[no-untyped-def]
    for kind in ("wav pcm_s16le", "mp3 libmp3lame", "avi pcm_s16le", "ogg libopus", "mkv"):
        path = made(kind)
        cut = as_file(path, path.read_bytes()[: path.stat().st_size * 3 // 4])
        early = {"start_s": 0.5, "end_s": 1.5}
        whole = decode(Clip("a", video=path, **early), [AUDIO])[0]
        assert np.array_equal(decode(Clip("a", video=cut, **early), [AUDIO])[0], whole), kind


def test_written_files_are_what_is_heard(tmp_path: Path) -> None:
    tones = np.stack([rec.sine(1.0, 300), rec.sine(1.0, 300)])
    sound = decode(Clip("a", audio=written(tmp_path / "a.aiff", "pcm_s16be", tones, "stereo")), [AUDIO])[0]
    assert np.abs(sound - tones[0]).max() < 1e-3


def test_no_bytes_make_the_search_for_an_end_fail(made, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(7)
    forms = [*STATED_SIZES, *ITEM_FORMATS, "amr"]
    sources = [
        made(kind).read_bytes()[:20_000]
        for kind in (
            "wav pcm_s16le",
            "avi pcm_s16le",
            "mkv",
            "mp4 faststart",
            "ogg libopus",
            "mp3 libmp3lame",
            "aiff pcm_s16be",
            "caf alac",
            "asf",
            "flv",
            "ts",
            "amr",
        )
    ]
    path = tmp_path / "a"
    for number in range(120):
        data = bytearray(sources[number % len(sources)] if number % 5 else rng.bytes(int(rng.integers(0, 3000))))
        for _ in range(int(rng.integers(0, 40))):
            if data:
                data[int(rng.integers(min(len(data), 400)))] = int(rng.choice((0, 1, 0x7F, 0x80, 0xFF)))
        path.write_bytes(data[: int(rng.integers(0, len(data) + 1))] if number % 2 else data)
        size = path.stat().st_size
        for form in forms:
            extent = extent_of(path, form)
            assert 0 <= extent.end <= size
            assert extent.missing_bytes is None or extent.missing_bytes >= 0
