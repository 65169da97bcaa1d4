"""Material of the training benchmark: a random language model, a store and a clip list with the published sizes.

Lengths follow the published recipe: 448 soft tokens; subtitles of a median 20 words, at most 200; half of the questions
ask for a label, half for a reason of a median 60 words.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import featurecache
from featurecache.files.jsonl import dump_lines
from featurecache.importers.npy import unverified_spec

SHAPES = {"whisper": (64, 1280), "eva-global": (1025, 1408), "eva-temporal": (64, 1408)}
LABELS = ("angry", "happy", "neutral", "sad", "surprised", "worried")
WORDS = [f"w{number}" for number in range(2000)]
SOURCE = "00" * 31 + "01"


def save_tokenizer(folder: Path) -> int:
    """A word tokenizer with Llama's special tokens; returns the size of its vocabulary."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", *LABELS, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder)
    return len(vocabulary)


def save_llm(folder: Path, *, width: int, layers: int) -> Path:
    """A random Llama of this size and its tokenizer."""
    vocabulary = save_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=4096,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_clips(file: Path, count: int, *, uniform: bool = False) -> Path:
    """A clip list; `uniform`: every text and reason has the median length."""
    random = np.random.default_rng(0)
    same = _sentence(random, 20), _sentence(random, 60)
    with file.open("wb") as lines:
        for number in range(count):
            said, why = same
            if not uniform:
                said, why = (
                    _sentence(random, int(n)) for n in np.clip(random.lognormal(np.log([20, 60]), [0.9, 0.5]), 1, 200)
                )
            lines.write(
                dump_lines(
                    [
                        {
                            "id": f"clip_{number:07d}",
                            "text": said,
                            "split": "train",
                            "dataset": "bench",
                            "labels": {"emotion": LABELS[number % len(LABELS)]},
                            "responses": {"reason": why, "think": why},
                        }
                    ]
                )
            )
    return file


def save_store(folder: Path, ids: list[str], shapes: dict[str, tuple[int, int]] = SHAPES) -> Path:
    """Random float16 tokens of every clip."""
    store = featurecache.open_store(folder, "a")
    random = np.random.default_rng(1)
    for name, shape in shapes.items():
        some = random.standard_normal((8, *shape), np.float32).astype(np.float16)
        writer = store.writer(name, unverified_spec(name, shape, "float16"))
        writer.plan(ids)
        for shard in writer.pending():
            with writer.begin(shard) as open_shard:
                for slot in range(len(shard.ids)):
                    open_shard.put(slot, some[slot % len(some)], SOURCE)
                open_shard.commit()
    return folder


def _sentence(random: np.random.Generator, count: int) -> str:
    return " ".join(WORDS[k] for k in random.integers(len(WORDS), size=count))
