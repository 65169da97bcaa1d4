"""The reference procedure, restated: three passes over the clips, one clip at a time, in float32.

    sound   moviepy writes the sound track to a wav of 16 kHz; Whisper's feature extractor and encoder; average to 64
    video   OpenCV seeks each of 16 frames; Pillow resizes to 224; EVA; average to 2 × 2; one .npy of (1, 64, D) a clip
    image   OpenCV seeks the peak frame; Pillow resizes to 448; EVA's first 39 blocks, LayerNorm

It runs the very networks that our encoders hold, so that only the procedure differs. Needs the extra `bench`.
Source: REFERENCE behaviour of the released code (scripts of features, one a modality); written anew.
"""

from __future__ import annotations

import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

RATE = 16_000
FRAMES = 16


def waveform(path: Path) -> np.ndarray:
    """(S,) float32 of a film's sound track, by moviepy through a wav file."""
    from moviepy import VideoFileClip

    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        with VideoFileClip(str(path)) as clip:
            clip.audio.write_audiofile(file.name, fps=RATE, nbytes=2, codec="pcm_s16le", logger=None)
        with wave.open(file.name) as sound:
            samples = np.frombuffer(sound.readframes(sound.getnframes()), np.int16)
            return samples.reshape(-1, sound.getnchannels()).mean(1).astype(np.float32) / 32768


def sixteen_frames(path: Path) -> list[np.ndarray]:
    """16 frames (H, W, 3), each sought by its number."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    frames = [_sought(capture, (2 * i + 1) * count // (2 * FRAMES)) for i in range(FRAMES)]
    capture.release()
    return frames


def peak_frame(path: Path, peak: int) -> np.ndarray:
    """(H, W, 3) of the peak frame."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    frame = _sought(capture, peak)
    capture.release()
    return frame


def _sought(capture: Any, number: int) -> np.ndarray:
    import cv2

    capture.set(cv2.CAP_PROP_POS_FRAMES, number)
    ok, frame = capture.read()
    if not ok:
        raise RuntimeError(f"OpenCV gives no frame {number}")
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def extract(clips: list[tuple[str, Path, int]], encoders: dict[str, Any], folder: Path) -> None:
    """All three passes over (id, path, peak frame), each clip alone, a .npy a clip and pass."""
    passes = {"whisper": _sound, "eva-temporal": _video, "eva-global": _image}
    for name, run in passes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for clip_id, path, peak in clips:
            np.save(folder / name / f"{clip_id}.npy", run(encoders[name], path, peak))


def _sound(encoder: Any, path: Path, peak: int) -> np.ndarray:
    return _encoded(encoder, encoder.preprocess(waveform(path)))


def _video(encoder: Any, path: Path, peak: int) -> np.ndarray:
    return _encoded(encoder, _resized(sixteen_frames(path), 224, Image.Resampling.BILINEAR))


def _image(encoder: Any, path: Path, peak: int) -> np.ndarray:
    return _encoded(encoder, _resized([peak_frame(path, peak)], 448, Image.Resampling.BICUBIC))


def _resized(frames: list[np.ndarray], side: int, how: Image.Resampling) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(frame).resize((side, side), how)) for frame in frames])


def _encoded(encoder: Any, one: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return encoder.pool(encoder.forward(one[None])).float().cpu().numpy()
