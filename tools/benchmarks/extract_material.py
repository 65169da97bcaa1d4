"""What extraction is measured on: clips of a common size, and encoders with random weights in the real layouts."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from make_demo_clips import render
from PIL import Image

FPS = 25
SOUND_RATE = 48_000
GRAIN = 3


def write_clip(path: Path, number: int, size: tuple[int, int], seconds: float) -> int:
    """Write a drawn face, enlarged, with grain: H.264 and AAC; return its peak frame.

    Three B-frames in a row, two references, a key frame every 10 s, about 2 Mbit/s at 720p.
    """
    frames, sound, peak = render(0, number, seconds)
    rng = np.random.default_rng(number)
    grain = rng.normal(0, GRAIN, (4, size[1], size[0], 1)).astype(np.int16)
    rate = round(len(sound) / seconds)
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS, options={"preset": "fast", "crf": "25"})
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        for index, frame in enumerate(frames):
            large = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
            noisy = np.clip(large + np.roll(grain[index % 4], 17 * index, axis=1), 0, 255).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(noisy, format="rgb24")))
        container.mux(video.encode(None))
        places = np.arange(round(seconds * SOUND_RATE)) * rate / SOUND_RATE
        wave = np.interp(places, np.arange(len(sound)), sound).astype(np.float32)
        block = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        block.sample_rate, block.pts, block.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
        container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    return peak
