"""Damaged and absurd media, made from sound recordings: a seeded generator.

`mutate(sources, seed)` gives one file after another, each a pure function of (sources, seed, number): bit flips,
truncations, bytes cut out or repeated, overwritten headers, one container's beginning on another's end, wrong endings,
zero-length files, lists and scripts under a film's name. `awkward` writes sound files that are merely unusual: large
frames, odd pixel formats, negative times, no frames at all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import recordings as rec

SUFFIXES = (".mp4", ".mkv", ".avi", ".wav", ".webm", ".ts", ".mp3", ".flac", ".png", ".bin", "")
NUMBER_FIELDS = (0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000)
BOXES = (b"stts", b"stsz", b"stco", b"stsc", b"tkhd", b"mdhd", b"mvhd", b"elst", b"avcC", b"esds", b"ctts", b"stsd")
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://192.0.2.1/a.ts\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\nfile pipe:0\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="90000" height="90000"><image href="file:///etc/passwd"/></svg>'

Mutation = Callable[[bytearray, np.random.Generator, Sequence[bytes]], bytes]


def flip_bits(data: bytearray, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    for _ in range(int(2 ** rng.uniform(0, 10))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def flip_header_bits(data: bytearray, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    edge = min(len(data), 2000)
    for _ in range(int(rng.integers(1, 30))):
        place = int(rng.integers(edge))
        data[place if rng.random() < 0.5 else -1 - place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def cut_short(data: bytearray, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    return bytes(data[: int(rng.integers(len(data)))])


def cut_out(data: bytearray, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    first, last = sorted(int(place) for place in rng.integers(0, len(data), 2))
    return bytes(data[:first] + data[last:])


def repeat(data: bytearray, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    first, last = sorted(int(place) for place in rng.integers(0, len(data), 2))
    return bytes(data[:last] + data[first:last] * int(rng.integers(1, 4)) + data[last:])


def overwrite(data: bytearray, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    first = int(rng.integers(len(data)))
    length = int(rng.integers(1, 4096))
    fill = bytes(length) if rng.random() < 0.5 else rng.bytes(length)
    data[first : first + length] = fill[: len(data) - first]
    return bytes(data)


def absurd_numbers(data: bytearray, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """Overwrite 32-bit numbers: in boxes of an mp4 where it has them, anywhere near the edges otherwise."""
    boxes = [place for box in BOXES for place in [bytes(data).find(box)] if place >= 0]
    for _ in range(int(rng.integers(1, 8))):
        start = int(rng.choice(boxes)) + 4 if boxes else int(rng.integers(min(400, len(data) - 4)))
        place = min(start + 4 * int(rng.integers(0, 24)), len(data) - 4)
        struct.pack_into(">I" if rng.random() < 0.7 else "<I", data, place, int(rng.choice(NUMBER_FIELDS)))
    return bytes(data)


def swap_container(data: bytearray, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    other = others[int(rng.integers(len(others)))]
    head = int(rng.integers(1, min(len(data), len(other))))
    return bytes(other[:head] + data[head:])


def other_kind(data: bytearray, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    return (b"", b"\0", PLAYLIST, CONCAT, SVG, bytes(100_000), rng.bytes(5000))[int(rng.integers(7))]


def unchanged(data: bytearray, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    return bytes(data)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, flip_header_bits, cut_short, cut_out, repeat, overwrite, absurd_numbers, swap_container, other_kind,
    unchanged,
)  # fmt: skip
"""`unchanged` stands for a wrong ending alone."""


def mutate(sources: Sequence[Path], seed: int, count: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield (name of the mutation, file ending, bytes) `count` times."""
    contents = [path.read_bytes() for path in sources]
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        mutation = MUTATIONS[number % len(MUTATIONS)]
        chosen = int(rng.integers(len(sources)))
        data = mutation(bytearray(contents[chosen]), rng, contents)
        while rng.random() < 0.2:
            data = flip_bits(bytearray(data or b"\0"), rng, contents)
        wrong = mutation is unchanged or rng.random() < 0.2
        suffix = SUFFIXES[int(rng.integers(len(SUFFIXES)))] if wrong else sources[chosen].suffix
        yield mutation.__name__, suffix, data


def sources(folder: Path) -> list[Path]:
    """Sound recordings of many kinds, small, to start from."""
    sound = rec.sine(1.5)
    kinds = {
        "h264.mp4": {"sound": sound},
        "fragmented.mp4": {"sound": sound, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
        "h264.mkv": {"sound": sound},
        "h264.ts": {"sound": sound},
        "mpeg4.avi": {"sound": sound, "codec": "mpeg4", "audio_codec": "mp2", "options": {"b": "1M"}},
        "vp9.webm": {
            "codec": "libvpx-vp9",
            "sound": rec.sine(1.5, rate=48_000),
            "sound_rate": 48_000,
            "audio_codec": "libopus",
            "options": {"b": "300k", "deadline": "realtime"},
        },
        "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
        "mjpeg.mov": {"codec": "mjpeg", "options": {"strict": "unofficial"}},
        "pcm.wav": {"num_frames": 0, "sound": sound, "audio_codec": "pcm_s16le"},
        "sound.flac": {"num_frames": 0, "sound": sound, "audio_codec": "flac"},
        "sound.mp3": {"num_frames": 0, "sound": sound, "audio_codec": "libmp3lame"},
        "sound.ogg": {"num_frames": 0, "sound": sound, "audio_codec": "libvorbis"},
    }
    made = []
    for name, how in kinds.items():
        needed = {how.get("codec", "libx264"), how.get("audio_codec", "aac")}
        if needed <= set(av.codecs_available):
            made.append(rec.write_clip(folder / name, **how))  # type: ignore[arg-type]
    return made


def awkward(folder: Path) -> dict[str, tuple[Path, bool]]:
    """Unusual files by name: path, and whether its frames are to be had."""
    made: dict[str, tuple[Path, bool]] = {}
    made["8k"] = rec.write_clip(folder / "8k.mp4", num_frames=2, size=(7680, 4320), options=FAST), True
    made["one pixel high"] = rec.write_clip(folder / "thin.mkv", size=(512, 1), codec="ffv1", options={}), True
    for name, codec, pixels in (
        ("10 bits", "libx264", "yuv420p10le"),
        ("4:4:4", "libx264", "yuv444p"),
        ("grey", "ffv1", "gray"),
        ("16 bits", "ffv1", "gbrp16le"),
        ("alpha", "ffv1", "yuva420p"),
        ("4:1:0", "ffv1", "yuv410p"),
    ):
        path = folder / f"{name.replace(':', '')}.mkv"
        made[name] = _written(path, codec, pixels, [0, 1, 2, 3]), True
    made["negative times"] = _written(folder / "negative.mkv", "ffv1", "yuv420p", [-3, -2, -1, 0, 1, 2]), True
    made["hours between frames"] = _written(folder / "hours.mkv", "ffv1", "yuv420p", [0, 36_000, 360_000]), True
    made["no frames"] = _written(folder / "none.mkv", "ffv1", "yuv420p", []), False
    return made


FAST = {"preset": "ultrafast", "crf": "30"}


def _written(path: Path, codec: str, pixels: str, times_s: Sequence[int]) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = rec.WIDTH, rec.HEIGHT, pixels
        stream.codec_context.time_base = Fraction(1, 1)
        container.start_encoding()
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(rec.picture(number), format="rgb24")
            frame.pts, frame.time_base = time_s, Fraction(1, 1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
