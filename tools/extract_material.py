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


WHISPER_SIZES = {
    "tiny": {"d_model": 64, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 128},
    "small": {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    "full": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120},
}
EVA_SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2},
    "small": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 6},
    "full": {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16},
}


def save_encoders(folder: Path, size: str) -> dict[str, str]:
    """Save both checkpoints with random weights in the hub's layout; return weights by encoder name.

    "full" is whisper-large-v3 and EVA-ViT-g, in float16 as published.
    """
    import torch
    from transformers import (
        Blip2VisionConfig,
        Blip2VisionModel,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperModel,
    )

    torch.manual_seed(0)
    dtype = torch.float16 if size == "full" else torch.float32
    bins = 128 if size == "full" else 80
    shape = WHISPER_SIZES[size]
    decoder = {"decoder_layers": 1, "decoder_attention_heads": shape["encoder_attention_heads"], "decoder_ffn_dim": 64}
    config = WhisperConfig(**shape, **decoder, num_mel_bins=bins, max_source_positions=1500, vocab_size=51_866)
    whisper = WhisperModel(config).to(dtype)
    whisper.save_pretrained(folder / "whisper", max_shard_size="5GB")
    del whisper
    WhisperFeatureExtractor(feature_size=bins).save_pretrained(folder / "whisper")
    tower = Blip2VisionConfig(**EVA_SIZES[size], image_size=224, patch_size=14)
    eva = Blip2VisionModel(tower).to(dtype)
    eva.save_pretrained(folder / "eva", max_shard_size="5GB")
    return {"whisper": str(folder / "whisper"), "eva-global": str(folder / "eva"), "eva-temporal": str(folder / "eva")}


def forward_tflop(size: str) -> dict[str, float]:
    """Multiply-adds of one clip's forward × 2, in 10^12, by encoder: blocks alone, which are over 99 %."""
    whisper, eva = WHISPER_SIZES[size], EVA_SIZES[size]

    def blocks(tokens: int, width: int, inner: int, count: int) -> float:
        return count * 2 * tokens * (4 * width * width + 2 * width * inner + 2 * tokens * width) / 1e12

    width, inner, count = eva["hidden_size"], eva["intermediate_size"], eva["num_hidden_layers"]
    return {
        "whisper": blocks(1500, whisper["d_model"], whisper["encoder_ffn_dim"], whisper["encoder_layers"]),
        "eva-global": blocks(1025, width, inner, min(count, 39)),
        "eva-temporal": 16 * blocks(257, width, inner, count),
    }
