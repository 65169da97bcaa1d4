"""Tiny networks of the Hugging Face families with random weights, saved as their checkpoints are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

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


SENTENCE = "i see . no ! she never told me that would leave what a lovely day , isn ' t it ?"
WORDS = SENTENCE.split()
READING = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


def save_text(folder: Path, family: str = "Bert", head: str = "Model", **changes: object) -> Path:
    """Save a small network of words and its tokenizer: WordPiece for BERT and ELECTRA, byte-level BPE for RoBERTa."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    if family == "Roberta":
        vocabulary = {
            token: n for n, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *bytes_to_unicode().values()])
        }
        tokenizer = transformers.RobertaTokenizer(vocab=vocabulary, merges=[])
        special = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    else:
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
        vocabulary = {token: n for n, token in enumerate(tokens)}
        tokenizer = transformers.BertTokenizer(vocab=vocabulary)
        special = {"pad_token_id": 0}
    tokenizer.save_pretrained(folder)
    settings = {**READING, "vocab_size": len(vocabulary), "max_position_embeddings": 64, **special, **changes}
    config = getattr(transformers, family + "Config")(**settings, initializer_range=0.2)
    getattr(transformers, family + head)(config).save_pretrained(folder)
    return folder
