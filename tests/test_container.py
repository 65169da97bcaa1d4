"""The decoder reads the file that a clip names: no second one, no pipe, no device, and not beyond its time."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import recordings as rec
from PIL import Image
from stub_encoders import StubEncoder, stub_encoders

from featurecache.clips.clip_list import Clip
from featurecache.errors import MediaError
from featurecache.explore.calibration_run import AUGMENTATIONS, augment
from featurecache.extract.prepare import prepare
from featurecache.media.container import FORMATS, open_container, unreadable_tags
from featurecache.media.decode import decode, decode_each, header_problem
from featurecache.media.durations import stated_duration_s
from featurecache.views import AudioView, FramesView

AUDIO = AudioView()
FIRST = FramesView(1, "first", still=True)
EIGHT = FramesView(8, "uniform", still=False)

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n{extra}#EXTINF:1,\n{name}\n"
DASH = (
    '<?xml version="1.0"?><MPD type="static" profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation><BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>'
)
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n"
POINTERS = {
    "a playlist (HLS)": [
        HLS.format(extra="", name="{name}"),  # without an end: it would be read again and again
        HLS.format(extra="#EXT-X-MAP:URI=\"{name}\"\n", name="{name}") + "#EXT-X-ENDLIST\n",
        HLS.format(extra="#EXT-X-KEY:METHOD=AES-128,URI=\"{name}\"\n", name="{name}") + "#EXT-X-ENDLIST\n",
    ],
    "a list of files (ffconcat)": ["ffconcat version 1.0\nfile {name}\n", "ffconcat version 1.0\nfile fd:0\n"],
    "a manifest (DASH)": [DASH],
    "a session description (SDP)": [SDP],
    "a playlist (PLS)": ["[playlist]\nFile1={name}\n"],
    "an index of subtitles (VobSub)": ["# VobSub index file, v7 (do not modify this line!)\n{name}"],
}  # fmt: skip


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that are nobody's to read but that playlists point to."""
    folder = tmp_path_factory.mktemp("secrets")
    rec.write_clip(folder / "secret.ts", sound=rec.sine(1.0), audio_codec="aac")
    for number in range(1, 9):
        Image.fromarray(rec.picture(number)).save(folder / f"still{number:03d}.png")
    return folder


@pytest.mark.parametrize("ending", [".mp4", ".m3u8", ".wav", ""])
@pytest.mark.parametrize("kind", POINTERS)
def test_what_points_to_other_files_is_refused_by_name(secrets: Path, tmp_path: Path, kind: str, ending: str) -> None:
    for number, text in enumerate(POINTERS[kind]):
        for target in ("secret.ts", str(secrets / "secret.ts")):
            path = secrets / f"list{number}{ending}"
            path.write_text(text.replace("{name}", target))
            for field in ("video", "audio"):
                began = time.monotonic()
                clip = Clip("a", **{field: path})
                results = decode_each(clip, [AUDIO, EIGHT] if field == "video" else [AUDIO], limit_s=60)
                assert time.monotonic() - began < 30
                for result in results:
                    assert isinstance(result, MediaError)
                    assert f'clip "a": expected its {field} file to be a recording itself, got {kind}' in str(result)
                assert kind in str(header_problem(clip))
                assert stated_duration_s(clip) is None


@pytest.mark.parametrize(
    "name",
    ["still%03d.png", "still*.png", "concat:a|b.wav", "data:x.wav", "subfile,,start,0,end,9,,:a", "pipe:0", "fd:0"],
)
def test_a_name_that_libav_could_read_as_a_pattern_or_an_address_names_one_file(secrets: Path, name: str) -> None:
    path = secrets / name
    path.write_bytes(b"nothing")
    assert all(isinstance(result, MediaError) for result in decode_each(Clip("a", video=path), [AUDIO, EIGHT]))
    sound = rec.write_clip(secrets / "good.wav", num_frames=0, sound=rec.sine(0.5), audio_codec="pcm_s16le")
    shutil.copy(sound, path)
    expected = decode(Clip("a", audio=sound), [AUDIO])[0]
    assert expected.shape == (8000,)
    assert np.array_equal(decode(Clip("a", audio=path), [AUDIO])[0], expected)


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_system_is_asked_for_no_second_file(secrets: Path, tmp_path: Path) -> None:
    lists = []
    for number, text in enumerate(text for texts in POINTERS.values() for text in texts):
        lists.append(secrets / f"traced{number}.mp4")
        lists[-1].write_text(text.replace("{name}", "secret.ts"))
    lists += [secrets / "still%03d.png", secrets / "concat:secret.ts|secret.ts"]
    for path in lists[-2:]:
        path.write_bytes(b"nothing")
    program = (
        "import sys\nfrom pathlib import Path\nfrom featurecache.clips.clip_list import Clip\n"
        "from featurecache.encoders import AudioView, FramesView\nfrom featurecache.media.decode import decode_each\n"
        "for name in sys.argv[1:]:\n"
        "    decode_each(Clip('a', video=Path(name)), [AudioView(), FramesView(4, 'uniform', False)], 5)\n"
    )
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-e", "trace=open,openat,socket,execve", "-o", str(trace)]
    subprocess.run([*command, sys.executable, "-c", program, *map(str, lists)], check=True, cwd=secrets)
    calls = trace.read_text(errors="replace").splitlines()
    opened = [line for line in calls if str(secrets) in line and "execve" not in line]
    assert len(opened) >= len(lists)
    assert not [line for line in calls if '"secret.ts"' in line or '/secret.ts"' in line or "still0" in line]
    assert not [line for line in calls if "AF_INET" in line]


def test_neither_copies_of_a_clip_nor_their_audit_follow_a_playlist(secrets: Path, tmp_path: Path) -> None:
    (secrets / "a.mp4").write_text("ffconcat version 1.0\nfile secret.ts\n")
    with pytest.raises(OSError, match="ffconcat"):
        augment(Clip("a", video=secrets / "a.mp4"), AUGMENTATIONS[0], tmp_path / "copy.mp4")


def test_formats_of_scripts_devices_and_lists_are_not_read() -> None:
    read = set(FORMATS.split(","))
    pointing = {
        "hls",
        "concat",
        "dash",
        "imf",
        "image2",
        "sdp",
        "rtp",
        "rtsp",
        "vobsub",
        "avisynth",
        "vapoursynth",
        "lavfi",
        "alsa",
        "v4l2",
        "x11grab",
        "webm_dash_manifest",
        "tty",
        "svg_pipe",
        "ffmetadata",
    }
    assert not pointing & read
    common = {
        "mov",
        "matroska",
        "avi",
        "asf",
        "flv",
        "mpeg",
        "mpegts",
        "ogg",
        "wav",
        "w64",
        "aiff",
        "au",
        "caf",
        "flac",
        "mp3",
        "aac",
        "ac3",
        "amr",
        "nistsphere",
        "rm",
        "voc",
        "wv",
        "ape",
        "tta",
        "dv",
    }
    assert common <= read
    assert common <= {name for known in av.formats_available for name in known.split(",")}


def test_a_drawing_program_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/etc/passwd) run\nshowpage\n")
    with pytest.raises(MediaError, match="a drawing program"):
        decode(Clip("a", image=path), [FIRST])


def test_pipes_devices_and_loops_of_links_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, target in (("zero", "/dev/zero"), ("linked", "pipe"), ("loop", "loop"), ("gone", "nowhere")):
        (tmp_path / name).symlink_to(target)
    began = time.monotonic()
    for name in ("pipe", "zero", "linked", "loop", "gone"):
        for field in ("video", "audio", "image"):
            clip = Clip("a", **{field: tmp_path / name})
            assert isinstance(header_problem(clip), MediaError)
            assert stated_duration_s(clip) is None
            encoders = {**stub_encoders(), "still": StubEncoder("still", FIRST)}
            reasons = {prepared.failed for prepared in prepare(clip, encoders, limit_s=60).by_feature.values()}
            said = "a pipe or a device" if name in ("pipe", "zero", "linked") else ""
            assert any(reason and said in reason for reason in reasons)
    assert time.monotonic() - began < 50


def test_a_file_that_grows_is_read_to_the_end_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It grows with every read, by more than was read."""
    path = rec.write_clip(tmp_path / "a.aac", num_frames=0, sound=rec.sine(1.0), audio_codec="aac")
    data, real, real_fstat = path.read_bytes(), os.pread, os.fstat
    sizes, beyond = {}, []

    def sized(descriptor: int) -> os.stat_result:
        sizes[descriptor] = (found := real_fstat(descriptor)).st_size
        return found

    def growing(descriptor: int, num_bytes: int, place: int) -> bytes:
        part = real(descriptor, num_bytes, place)
        beyond.append(place + len(part) - sizes[descriptor])
        with path.open("ab") as file:
            file.write(data + part)
        return part

    monkeypatch.setattr("featurecache.media.container.os.fstat", sized)
    monkeypatch.setattr("featurecache.media.container.os.pread", growing)
    prepared = prepare(Clip("a", audio=path), {"loudness": stub_encoders()["loudness"]}, limit_s=60)
    assert "a file that changes while it is read" in prepared.by_feature["loudness"].failed  # no file has its tokens
    assert max(beyond) == 0


@pytest.mark.parametrize("slow_from", [0, 3])
def test_the_limit_holds_while_a_file_is_opened_searched_and_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_from: int
) -> None:
    """A frame, then gigabytes that hold none, from a disk that is slow."""
    path = rec.write_clip(tmp_path / "a.mp3", num_frames=0, sound=rec.sine(0.5), audio_codec="libmp3lame")
    os.truncate(path, 8 << 30)
    real, reads, limit_s, read_s = os.pread, [], 0.4, 0.05

    def slowly(descriptor: int, num_bytes: int, place: int) -> bytes:
        reads.append(num_bytes)
        time.sleep(read_s if len(reads) > slow_from else 0)
        return real(descriptor, num_bytes, place)

    monkeypatch.setattr("featurecache.media.container.os.pread", slowly)
    for read in (
        lambda: decode_each(Clip("a", audio=path), [AUDIO], limit_s=limit_s)[0],
        lambda: decode_each(Clip("a", audio=path, start_s=20.0), [AUDIO], limit_s=limit_s)[0],
        lambda: stated_duration_s(Clip("a", audio=path), limit_s),
    ):
        reads.clear()
        result = read()
        # Counted, not timed: a loaded machine makes fewer reads within the limit, never more.
        assert 0 < len(reads) <= slow_from + limit_s / read_s + 1
        assert isinstance(result, float) or "expected decoding to take at most 0.4 s" in str(result)


def test_a_part_late_in_a_file_without_an_index_is_found(tmp_path: Path) -> None:
    tone = np.concatenate([rec.sine(9.0, 300), rec.sine(1.0, 1200)])
    path = rec.write_clip(tmp_path / "a.aac", num_frames=0, sound=tone, audio_codec="aac")
    sound = decode(Clip("a", audio=path, start_s=9.2, end_s=9.7), [AUDIO])[0]
    assert sound.shape == (8_000,)
    assert np.argmax(np.abs(np.fft.rfft(sound))) == pytest.approx(600, abs=2)


def wav_with_a_tag_of_no_known_encoding(path: Path) -> Path:
    """A second of 16 kHz mono, whose title is in no encoding that its bytes could be read by."""
    title = b"INFOINAM" + struct.pack("<I", 4) + b"\xe9\xe8\xff\xfe"
    sound = b"\1\0" * 16_000
    parts = (
        b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16),
        b"LIST" + struct.pack("<I", len(title)) + title,
        b"data" + struct.pack("<I", len(sound)) + sound,
    )
    content = b"WAVE" + b"".join(parts)
    path.write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    return path


def test_tags_in_an_unknown_encoding_are_no_reason_to_refuse(tmp_path: Path) -> None:
    with open_container(wav_with_a_tag_of_no_known_encoding(tmp_path / "a.wav")) as wav:
        assert wav.duration == 1_000_000


@pytest.mark.parametrize(("release", "settings"), [("18.1.0", {"metadata_errors": "ignore"}), ("19.0.2", {})])
def test_pyav_19_has_no_setting_for_unreadable_tags(release: str, settings: dict[str, str]) -> None:
    assert unreadable_tags(release) == settings
