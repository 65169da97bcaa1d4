"""Memory of opening an exported folder of full size, with random weights, against the size of its files.

The folder is written shard by shard without ever holding the model: whisper-large-v3's encoder, EVA-ViT-g and a Llama
of `--layers` layers, encoders in float16 as on a GPU. A fresh process then opens it as `predict` does and reads its
peak resident memory, before and after every weight was touched.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from transformers import Blip2VisionConfig, LlamaConfig, WhisperConfig, WhisperFeatureExtractor

from featurecache.spec import Spec
from fusion_train.export.weights import align_file
from fusion_train.remote.configuration_emotion_llama import EmotionLlamaConfig
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM

OPTIONS = [
    click.Option(["--layers"], type=int, default=32, show_default=True, help="Of the language model; 7B has 32."),
    click.Option(["--dtype"], type=click.Choice(["float32", "float16", "bfloat16"]), default="bfloat16",
                 show_default=True, help="Of the language model."),
    click.Option(["--encoders/--no-encoders"], default=True, show_default=True, help="With the full-size encoders."),
    click.Option(["--folder"], default=None, help="Where to write; a temporary folder by default."),
]  # fmt: skip
WORKER = """
import json, sys, time
import torch
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024

before, anonymous = status("VmRSS"), status("RssAnon")
began = time.perf_counter()
model = EmotionLlamaForCausalLM.from_pretrained(sys.argv[1])
load_s = time.perf_counter() - began
loaded = {key: status(key) for key in ("VmHWM", "RssAnon")}
total = 0.0
for parameter in model.parameters():
    for part in parameter.detach().flatten().split(1 << 24):
        total += float(part[::1024].float().sum())
print(json.dumps({"before": before, "anonymous_before": anonymous, "load_s": load_s, "peak_loaded": loaded["VmHWM"],
                  "peak_touched": status("VmHWM"), "anonymous_touched": status("RssAnon")}))
"""


def measure(layers: int, dtype: str, encoders: bool, folder: str | None) -> dict[str, Any]:
    """File size, peaks and their ratios."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="load-memory-") as place:
        write_random(Path(place), layers, getattr(torch, dtype), encoders)
        size = sum(path.stat().st_size for path in Path(place).glob("*.safetensors"))
        done = subprocess.run([sys.executable, "-c", WORKER, place], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    own = {key: found[key] - found["before"] for key in ("peak_loaded", "peak_touched")}
    return {
        "file_bytes": size,
        "load_s": round(found["load_s"], 2),
        "peak_bytes_loaded": own["peak_loaded"],
        "peak_bytes_touched": own["peak_touched"],
        "anonymous_bytes": found["anonymous_touched"] - found["anonymous_before"],
        "peak_loaded_over_file": round(own["peak_loaded"] / size, 3),
        "peak_touched_over_file": round(own["peak_touched"] / size, 3),
    }


def write_random(folder: Path, layers: int, dtype: torch.dtype, encoders: bool) -> None:
    """Write config and weights of a full-size model, one shard in memory at a time."""
    config = full_size(layers, encoders)
    config.dtype = dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = EmotionLlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    for part in (model.emotion_llama.fusion, model.emotion_llama.projectors):
        part.float()
    config.save_pretrained(folder)
    state = model.state_dict()
    split = split_torch_state_dict_into_shards(state, max_shard_size="2GB")
    for name, keys in split.filename_to_tensors.items():
        tensors = {key: torch.empty(state[key].shape, dtype=state[key].dtype).fill_(0.01) for key in keys}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        align_file(folder / name)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def full_size(layers: int, encoders: bool) -> EmotionLlamaConfig:
    """LLaMA2-7B's shapes with `layers` layers, whisper-large-v3's encoder and EVA-ViT-g."""
    text = LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=32,
        tie_word_embeddings=False,
    )
    whisper = WhisperConfig(
        d_model=1280,
        encoder_layers=32,
        encoder_attention_heads=20,
        encoder_ffn_dim=5120,
        num_mel_bins=128,
        max_source_positions=1500,
    )
    eva = Blip2VisionConfig(
        hidden_size=1408,
        intermediate_size=6144,
        num_hidden_layers=39,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
    )
    specs = {
        "audio": _spec("whisper", (64, 1280)),
        "image": _spec("eva-global", (1025, 1408)),
        "video": _spec("eva-temporal", (64, 1408)),
    }
    networks = {
        "whisper": {"config": whisper.to_dict(), "preprocessor": WhisperFeatureExtractor(128).to_dict()},
        "eva": {"config": eva.to_dict()},
    }
    entries = {
        modality: {"spec": spec, "network": spec["encoder"].partition("-")[0]} for modality, spec in specs.items()
    }
    return EmotionLlamaConfig(
        text_config=text,
        encoders=entries if encoders else {},
        networks=networks if encoders else {},
        shapes={modality: list(spec["shape"]) for modality, spec in specs.items()},
        fusion={"name": "conv-attention", "options": {"hidden": [512, 128], "out_dim": 256, "dropout": 0.1}},
        tie_word_embeddings=False,
    )


def _spec(encoder: str, shape: tuple[int, int]) -> dict[str, Any]:
    spec = Spec(
        encoder=encoder,
        implementation=1,
        weights={},
        architecture={},
        tap={},
        preprocessing={},
        pooling={},
        compute_dtype="float16",
        stored_dtype="float16",
        shape=shape,
    )
    return {**spec.identity(), "provenance": {}, "fingerprint": spec.fingerprint}
