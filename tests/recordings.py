"""Small recordings with known content, made with PyAV.

Frame n of a picture made here is a flat grey of level `grey(n)`, with a red left half where `marked`; sound is a sine.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT = 64, 48
RATE = 16_000
GREY_STEP = 5


def grey(number: int) -> int:
    """The level of frame `number`; neighbouring frames differ by more than the codec's error."""
    return 20 + GREY_STEP * (number % 44)


def frame_numbers(frames: np.ndarray) -> list[int]:
    """Read back which frames (F, H, W, 3) are, for recordings of at most 44 frames."""
    middle = frames[:, HEIGHT // 2, :, :].astype(float).mean(axis=(1, 2))
    return [round((level - 20) / GREY_STEP) for level in middle]


def sine(seconds: float, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    """(S,) float32."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def picture(number: int, marked: bool = False, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """(H, W, 3) uint8 of frame `number`."""
    image = np.full((size[1], size[0], 3), grey(number), np.uint8)
    if marked:
        image[:, : size[0] // 2] = (230, 20, 20)
    return image


def write_clip(
    path: Path,
    *,
    num_frames: int = 20,
    rate: int = 10,
    sound: np.ndarray | None = None,
    channels: Sequence[np.ndarray] | None = None,
    sound_rate: int = RATE,
    times: Sequence[int] | None = None,
    codec: str = "libx264",
    audio_codec: str = "aac",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    marked: bool = False,
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Path:
    """Write a recording; `times` (in 1/1000 s) makes the frame rate variable; no frames, or no sound, no stream."""
    if sound is not None and channels is None:
        channels = [sound]
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        video = audio = None
        if num_frames:
            video = container.add_stream(codec, rate=rate, options=options or {"crf": "10", "bf": "2"})
            video.width, video.height = size
            video.pix_fmt = "yuv420p"
            if times:
                video.codec_context.time_base = Fraction(1, 1000)
        if channels is not None:
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(channels)]
            audio = container.add_stream(audio_codec, rate=sound_rate, layout=layout)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, marked, size), format="rgb24")
            frame.pts = times[number] if times else number * 1000 // rate
            frame.time_base = Fraction(1, 1000)
            container.mux(video.encode(frame))
        if video is not None:
            container.mux(video.encode(None))
        if audio is not None and channels is not None:
            write_sound(container, audio, np.stack(channels), layout, sound_rate)
    return path


def write_sound(container, stream, samples: np.ndarray, layout: str, rate: int) -> None:  # type: ignore[no-untyped-def]
    for begin in range(0, samples.shape[1], 1024):
        part = np.ascontiguousarray(samples[:, begin : begin + 1024], np.float32)
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate = rate
        frame.pts = begin
        frame.time_base = Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_interleaved(
    path: Path,
    sound: np.ndarray,
    rate: int,
    codec: str,
    video: tuple[str, dict[str, str]] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write (S,) samples, and 10 noisy frames a second beside them, packet by packet in the order of their times."""
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        pictures = None
        if video is not None:
            pictures = container.add_stream(video[0], rate=10, options=video[1])
            pictures.width, pictures.height = WIDTH, HEIGHT
            pictures.pix_fmt = "yuvj420p" if video[0] == "mjpeg" else "yuv420p"
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None].astype(np.float32), format="flt", layout="mono")
        frame.sample_rate = rate
        context = stream.codec_context
        resampler = av.AudioResampler(
            format=context.format, layout="mono", rate=rate, frame_size=context.frame_size or 1024
        )
        heard = shown = 0
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            while pictures is not None and shown * rate <= heard * 10:
                _write_noise(container, pictures, shown)
                shown += 1
            part.pts, part.time_base = heard, Fraction(1, rate)
            heard += part.samples
            container.mux(stream.encode(part))
        if pictures is not None:
            container.mux(pictures.encode(None))
        container.mux(stream.encode(None))
    return path


def _write_noise(container, stream, number: int) -> None:  # type: ignore[no-untyped-def]
    noise = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, format="rgb24")
    frame.pts, frame.time_base = number, Fraction(1, 10)
    container.mux(stream.encode(frame))


def write_wav(path: Path, channels: np.ndarray, *, rate: int = RATE, kind: str = "i2", mask: int | None = None) -> Path:
    """Write (C, S) samples in [-1, 1] as a WAV file; kind is u1, i2, i3, i4, i8, f4 or f8, `mask` names channels."""
    num_channels, num_bytes = len(channels), int(kind[1])
    if kind == "u1":
        data = np.round(channels * 127 + 128).astype(np.uint8).T.tobytes()
    elif kind == "i3":
        data = np.round(channels * (2**23 - 1)).astype("<i4").T.reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    elif kind[0] == "i":
        data = (
            np.round(channels * (2.0 ** (8 * num_bytes - 1) - 1024 * (kind == "i8") - 1)).astype(f"<{kind}").T.tobytes()
        )
    else:
        data = channels.astype(f"<{kind}").T.tobytes()
    tag, block = 3 if kind[0] == "f" else 1, num_channels * num_bytes
    rest = struct.pack("<HIIHH", num_channels, rate, rate * block, block, 8 * num_bytes)
    header = struct.pack("<H", tag) + rest
    if mask is not None:  # WAVE_FORMAT_EXTENSIBLE
        guid = struct.pack("<H", tag) + bytes.fromhex("000000001000800000aa00389b71")
        header = struct.pack("<H", 0xFFFE) + rest + struct.pack("<HHI", 22, 8 * num_bytes, mask) + guid
    body = b"WAVEfmt " + struct.pack("<I", len(header)) + header + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return path


def rotate_metadata(source: Path, target: Path, degrees: int) -> Path:
    """Copy an mp4 with a display matrix that turns it clockwise by `degrees` (90 or 270), as a telephone writes."""
    return set_display_matrix(source, target, {90: (0, 1, -1, 0), 270: (0, -1, 1, 0)}[degrees])


def set_display_matrix(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Copy an mp4 so that its pixel (x, y) is displayed at (a·x + c·y, b·x + d·y) for a `matrix` (a, b, c, d)."""
    a, b, c, d = (value * 0x00010000 for value in matrix)
    data = bytearray(source.read_bytes())
    header = data.index(b"tkhd") + 4
    place = header + 40  # version 0: flags, times, id, reserved, duration, reserved, layer, group, volume
    data[place : place + 24] = b"".join(value.to_bytes(4, "big", signed=True) for value in (a, b, 0, c, d, 0))
    target.write_bytes(bytes(data))
    return target
