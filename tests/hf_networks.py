"""Tiny networks of the Hugging Face families with random weights, saved as their checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
SPEECH = {**SMALL, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
PICTURE = {**SMALL, "image_size": 28, "patch_size": 7}
AUDIO = {
    "hubert": ("Hubert", SPEECH),
    "hubert-stable": ("Hubert", {**SPEECH, **STABLE}),
    "wav2vec2": ("Wav2Vec2", SPEECH),
    "wavlm": ("WavLM", SPEECH),
    "data2vec": ("Data2VecAudio", SPEECH),
}
IMAGE = {"clip": "CLIPVision", "siglip": "SiglipVision", "dinov2": "Dinov2", "vit": "ViT"}
CROPPED = {"do_center_crop": True, "crop_size": 28, "size": {"shortest_edge": 30}, "resample": 3}


def save(folder: Path, family: str, settings: dict, preprocessor: dict) -> Path:
    """Save a small network of a family, with the preprocessing of its checkpoint."""
    torch.manual_seed(0)
    config = getattr(transformers, family + "Config")(**settings, initializer_range=0.2)
    getattr(transformers, family + "Model")(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder
