"""What the cases are measured on: a store, a clip list and recordings, made once per run; models made on the device.

Models have the published sizes and random weights. Tiny ones, for a CPU, have the same parts and other sizes.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from featurecache.files.jsonl import dump_lines
from featurecache.machine import usable_cores

NUM_CLIPS = 96
NUM_RECORDINGS = 8
RECORDINGS = "recordings.jsonl"
"""Name and peak frame of each recording."""
MEASURED_S = {"cuda": 12.0, "cpu": 0.3}
"""How long a part is measured after it is warm, by type of device."""
TINY_LLAMA = LlamaConfig(
    vocab_size=4096,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=4096,
)
TINY_SHAPES = {"whisper": (4, 128), "eva-global": (17, 176), "eva-temporal": (4, 176)}


class Material:
    """Files in a folder that all cases of a run share, and facts about the device."""

    def __init__(self, root: Path, *, tiny: bool) -> None:
        self.root, self.tiny = root, tiny
        self.deadline = float("inf")
        """Of the case, by `time.monotonic`."""

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() and not self.tiny else "cpu")

    @property
    def device_name(self) -> str:
        """Name of the card, or "cpu"."""
        return torch.cuda.get_device_properties(0).name if self.device.type == "cuda" else "cpu"

    @property
    def measured_s(self) -> float:
        return MEASURED_S[self.device.type]

    @property
    def left_s(self) -> float:
        """Seconds until the limit of the case."""
        return self.deadline - time.monotonic()

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @cached_property
    def training(self) -> Path:
        """Folder with a store of the published shapes, a clip list and a tokenizer."""
        return self._made("training", self._write_training)

    @cached_property
    def recordings(self) -> Path:
        """Folder with recordings of 720p and their peak frames."""
        return self._made("recordings", self._write_recordings)

    def _made(self, name: str, write: Callable[[Path], None]) -> Path:
        """A folder that is there completely or not at all."""
        folder = self.root / name
        if not folder.is_dir():
            unfinished = Path(tempfile.mkdtemp(dir=self.root))
            write(unfinished)
            unfinished.rename(folder)
        return folder

    def _write_training(self, folder: Path) -> None:
        from train_material import SHAPES, save_clips, save_store, save_tokenizer

        save_tokenizer(folder / "llm")
        ids = [f"clip_{number:07d}" for number in range(NUM_CLIPS)]
        save_store(folder / "features.zarr", ids, TINY_SHAPES if self.tiny else SHAPES)
        save_clips(folder / "clips.jsonl", NUM_CLIPS)

    def _write_recordings(self, folder: Path) -> None:
        from extract_material import write_clip

        size, seconds, count = ((320, 240), 1.0, 2) if self.tiny else ((1280, 720), 4.0, NUM_RECORDINGS)
        jobs = [(folder / f"{number}.mp4", number, size, seconds) for number in range(count)]
        if self.tiny:
            peaks = [write_clip(*job) for job in jobs]
        else:
            with ProcessPoolExecutor(min(count, usable_cores()), mp_context=get_context("spawn")) as pool:
                peaks = list(pool.map(write_clip, *zip(*jobs, strict=True)))
        rows = [{"video": job[0].name, "peak_frame": peak} for job, peak in zip(jobs, peaks, strict=True)]
        (folder / RECORDINGS).write_bytes(dump_lines(rows))


def random_llm(config: LlamaConfig, dtype: torch.dtype, device: torch.device, attention: str) -> nn.Module:
    """A causal LM of these sizes with random weights, made on the device."""
    config._attn_implementation = attention
    with default_dtype(dtype):
        with torch.device("meta"):
            llm = LlamaForCausalLM(config)
        llm.to_empty(device=device)
        for parameter in llm.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.ones_(parameter)
        with torch.device(device):  # its table of frequencies is computed, not stored
            llm.model.rotary_emb = type(llm.model.rotary_emb)(config)
    return llm


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of `dtype` inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide speed."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for name in ("transformers", "accelerate", "peft", "triton", "numpy", "av", "bitsandbytes"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found | {"system": f"{sys.platform} {platform.release()}"}
