"""Read EVA-ViT-g as LAVIS publishes it: `eva_vit_g.pth`, a state dict with LAVIS' own tensor names.

    blocks.I.norm1 | norm2 . weight | bias   blocks.I.attn.qkv.weight (3D, D)   blocks.I.attn.q_bias | v_bias (D)
    blocks.I.attn.proj   blocks.I.mlp.fc1 | fc2   cls_token (1, 1, D)   pos_embed (1, 257, D)   patch_embed.proj
    optionally norm, or fc_norm in its place, and a head, which is not read

No code in the file is executed (`torch_file`). Names are mapped strictly to those of Blip2VisionModel. The key part of
the qkv bias is zero, as in the published network. A file without a final norm (LAVIS removes it) serves only the
encoder `eva-global`. Depth, width and patch size follow the tensors; a head has 88 channels, as in EVA-ViT-g.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import Blip2VisionConfig

from featurecache.encoders.checkpoint import Checkpoint
from featurecache.files.torch_file import UnreadableFileError, read_torch_file

HEAD_WIDTH = 88  # 1408 / 16
IGNORED = re.compile(r"head\.(weight|bias)|mask_token")
RENAMED = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
    "fc_norm.weight": "post_layernorm.weight",
    "fc_norm.bias": "post_layernorm.bias",
}
BLOCK_PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")
SPLIT_BIAS = re.compile(r"blocks\.(\d+)\.attn\.(q|v)_bias")


def read_lavis(checkpoint: Checkpoint, path: Path) -> tuple[Blip2VisionConfig, dict[str, torch.Tensor], bool]:
    """Return the config, the tensors under Blip2VisionModel's names, and whether the file has the final norm.

    Unknown tensor names stay as they are, so that strict loading refuses them.

    Raises:
        WeightsError: not a state dict of tensors, or not of this network.
    """
    try:
        document = read_torch_file(path)
    except UnreadableFileError as error:
        raise checkpoint.error(expected="a state dict that holds only tensors", got=str(error)) from error
    state = document.get("model", document) if isinstance(document, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise checkpoint.error(expected="a state dict that holds only tensors", got="something else")
    absent = [
        name
        for name in ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
        if name not in state
    ]
    if absent:
        raise checkpoint.error(expected="the tensors of LAVIS' eva_vit_g", got="none of: " + ", ".join(absent))
    has_norm = "norm.weight" in state or "fc_norm.weight" in state
    tensors = _renamed(state)
    if not has_norm:  # never run: only eva-global opens such a file, and it has no final norm
        width = state["cls_token"].shape[-1]
        tensors |= {"post_layernorm.weight": torch.ones(width), "post_layernorm.bias": torch.zeros(width)}
    return _config(state), tensors, has_norm


def _config(state: dict[str, torch.Tensor]) -> Blip2VisionConfig:
    width, patch = state["patch_embed.proj.weight"].shape[0], state["patch_embed.proj.weight"].shape[-1]
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    return Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(block[1]) for name in state if (block := BLOCK.fullmatch(name))),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        image_size=side * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
        qkv_bias=True,
    )


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    biases: dict[str, dict[str, torch.Tensor]] = {}  # block number -> "q" | "v" -> bias
    for name, tensor in state.items():
        if IGNORED.fullmatch(name):
            continue
        split, block = SPLIT_BIAS.fullmatch(name), BLOCK.fullmatch(name)
        if split:
            biases.setdefault(split[1], {})[split[2]] = tensor
        elif block and block[2] in BLOCK_PARTS:
            tensors[f"encoder.layers.{block[1]}.{BLOCK_PARTS[block[2]]}.{block[3]}"] = tensor
        else:
            tensors[RENAMED.get(name, name)] = tensor
    for number, parts in biases.items():
        if {"q", "v"} <= parts.keys():
            whole = torch.cat([parts["q"], torch.zeros_like(parts["v"]), parts["v"]])
            tensors[f"encoder.layers.{number}.self_attn.qkv.bias"] = whole
        else:
            tensors |= {f"blocks.{number}.attn.{part}_bias": tensor for part, tensor in parts.items()}
    return tensors
