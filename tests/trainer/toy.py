"""A small language model saved in the real layout, and a feature store whose tokens tell the label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import featurecache
from featurecache.spec import Spec
from fusion_train.config import Config
from fusion_train.data.packing import Packed
from fusion_train.models.emotion_llama import EmotionLlama, ModelOutput
from fusion_train.presets import load_config
from fusion_train.prompts.prompt import TASKS

LABELS = ("angry", "happy", "sad")
SHAPES = {"whisper": (4, 12), "eva-global": (17, 10), "eva-temporal": (4, 10)}


def save_llama(folder: Path, config: LlamaConfig | None = None) -> Path:
    """Write a random tiny Llama and a tokenizer with Llama-2's special tokens."""
    words = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    texts = [task.instruction for task in TASKS.values()] + [*LABELS, "[INST] <Vid></Vid> The person in video says:"]
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    words.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = config or LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def feature_spec(name: str, shape: tuple[int, int]) -> Spec:
    return Spec(
        encoder=name,
        implementation=1,
        weights={"model.safetensors": "0" * 64},
        architecture={},
        tap={},
        preprocessing={},
        pooling={},
        compute_dtype="float32",
        stored_dtype="float16",
        shape=shape,
    )


def write_features(folder: Path, labels: dict[str, str], absent: dict[str, str] | None = None) -> Path:
    """Write every feature of SHAPES: noise plus a direction of the label; `absent`: clip id -> feature it lacks."""
    directions = np.random.default_rng(7).normal(size=(len(LABELS), 16)) * 3
    store = featurecache.open_store(folder, mode="a")
    for name, shape in SHAPES.items():
        writer = store.writer(name, feature_spec(name, shape))
        writer.plan(list(labels))
        for shard in writer.pending():
            with writer.begin(shard) as open_shard:
                for slot, clip_id in enumerate(shard.ids):
                    if (absent or {}).get(clip_id) == name:
                        open_shard.absent(slot, "no audio stream", source="1" * 64)
                        continue
                    noise = np.random.default_rng([len(clip_id), *clip_id.encode()]).normal(size=shape)
                    tokens = noise + directions[LABELS.index(labels[clip_id])][: shape[1]]
                    open_shard.put(slot, tokens.astype(np.float32), source="1" * 64)
                open_shard.commit()
    return folder


def make_config(llama: Path, *overrides: str, stage: str = "perception") -> Config:
    settings = [
        f"model.llm={llama}",
        "model.llm_dtype=float32",
        "model.lora.r=4",
        "model.fusion.hidden=[16, 8]",
        "model.fusion.out_dim=16",
        "optim.steps=6",
        "optim.batch_size=4",
        "optim.micro_batch_size=2",
        "optim.warmup_steps=2",
        "optim.lr=3e-3",
        "optim.precision=fp32",
        "checkpoint.every=2",
        "log.every=1",
        "log.eval_every=1000",
        "log.tensorboard=false",
        "features.normalise=null",
        "optim.ema_decay=null",
    ]
    return load_config(None, stage, [*settings, *overrides])


def forward_packed(
    model: EmotionLlama, packed: Packed, features: dict[str, torch.Tensor], present: torch.Tensor
) -> ModelOutput:
    """What a training step computes of a row of samples."""
    return model(
        token_ids=packed.token_ids,
        position_ids=packed.layout.position_ids(),
        kept=packed.kept,
        targets=packed.targets,
        owners=packed.owners,
        layout=packed.layout,
        num_samples=len(packed.own_tokens),
        features=features,
        present=present,
    )
