"""A run that is killed and resumed on this device, against an uninterrupted one: every trained tensor, to the bit.

By `fusion_train/training/verify_resume`, whose runs are processes of their own: deterministic kernels, bf16, dropout,
two questions per clip, a small random Llama (weights of the published size would have to be saved first).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from train_material import save_llm

from benchmarks.gpu.material import Material
from benchmarks.gpu.training import configuration
from fusion_train.training.verify_resume import verify_resume

STEPS = {"cuda": 40, "cpu": 6}
WIDTH = {"cuda": 1024, "cpu": 128}
LAYERS = {"cuda": 4, "cpu": 2}


def measure(material: Material, case: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield how many tensors were compared, and how many differ."""
    kind, folder = material.device.type, material.training
    llm = save_llm(material.root / "resume-llm", width=WIDTH[kind], layers=LAYERS[kind])
    config = configuration(
        material,
        f"model.llm={llm}",
        "model.lora.r=8",
        "optim.precision=bf16",
        "optim.deterministic=true",
        "optim.batch_size=8",
        "optim.micro_batch_size=auto",
        "data.questions_per_clip=2",
    )
    began = time.perf_counter()
    result = verify_resume(
        config,
        store=str(folder / "features.zarr"),
        clips=str(folder / "clips.jsonl"),
        folder=material.root / "resume",
        steps=STEPS[kind],
        kills=1,
        seed=1,
        say=print,
    )
    yield (
        "",
        {
            "tensors": result.tensors,
            "differing": len(result.differing),
            "first_differing": "; ".join(result.differing[:3]),
            "killed_at_step": (result.kills or [None])[0],
            "steps": STEPS[kind],
            "seconds": round(time.perf_counter() - began, 1),
        },
    )
