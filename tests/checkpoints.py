"""Tiny encoders with random weights, saved in the layouts of the real ones."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    Blip2VisionModel,
    OPTConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

WHISPER_WIDTH = 16
EVA_WIDTH = 24


def whisper_config(**changes: object) -> WhisperConfig:
    """A Whisper of 5 s: 250 tokens of width 16 from 80 mel bins."""
    values = {
        "d_model": WHISPER_WIDTH,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "vocab_size": 64,
        "max_source_positions": 250,
        "max_target_positions": 16,
        "num_mel_bins": 80,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
        "init_std": 0.2,
    }
    return WhisperConfig(**{**values, **changes})


def save_whisper(folder: Path, *, generation: bool = False, seed: int = 0, **changes: object) -> Path:
    """Save a tiny WhisperModel (or, as the hub has it, WhisperForConditionalGeneration)."""
    torch.manual_seed(seed)
    config = whisper_config(**changes)
    model = (WhisperForConditionalGeneration if generation else WhisperModel)(config)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    return folder


def eva_config(blocks: int = 2) -> Blip2VisionConfig:
    """An EVA of width 24 with patches of 14 at 224 pixels."""
    return Blip2VisionConfig(
        hidden_size=EVA_WIDTH,
        intermediate_size=32,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        image_size=224,
        patch_size=14,
        initializer_range=0.2,
    )


def save_eva(folder: Path, *, blocks: int = 2, seed: int = 0) -> Path:
    """Save a tiny Blip2VisionModel."""
    torch.manual_seed(seed)
    Blip2VisionModel(eva_config(blocks)).save_pretrained(folder)
    return folder


def save_blip2(folder: Path, *, blocks: int = 2, seed: int = 0) -> Path:
    """Save a whole tiny BLIP-2, in several safetensors shards with an index."""
    torch.manual_seed(seed)
    config = Blip2Config(
        vision_config=eva_config(blocks).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=32,
            encoder_hidden_size=EVA_WIDTH,
        ).to_dict(),
        text_config=OPTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=16,
            vocab_size=64,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
        ).to_dict(),
    )
    Blip2ForConditionalGeneration(config).save_pretrained(folder, max_shard_size="40KB")
    return folder
