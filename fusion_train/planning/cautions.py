"""Warn, before step 0, of settings that defeat a run of this length on these clips, with a setting that helps."""

from __future__ import annotations

from pathlib import Path

from featurecache.clips.clip_list import load_clips
from featurecache.clips.corrections import adjust
from fusion_train.config import Config

MANY_EPOCHS = 100
"""Warn above this; the published recipe draws 200,000 samples, about 3 epochs of its clips."""
SUGGESTED_EPOCHS = 20
FEW_SCORED = 30
"""Below this number of held-out clips, one answer moves the accuracy by more than three points."""


def cautions(config: Config, *, num_clips: int | None = None, num_scored: int | None = None, on_cpu: bool) -> list[str]:
    """Return one line per setting that keeps a run from learning, from validation, or from saving checkpoints.

    Args:
        num_clips: number of training clips; None if unknown.
        num_scored: number of validation clips; None if unknown.
        on_cpu: whether the run trains without a GPU.
    """
    return [
        *_length_cautions(config),
        *_clip_cautions(config, num_clips, num_scored),
        *_device_cautions(config, on_cpu),
    ]


def split_sizes(config: Config, clips: str) -> dict[str, int]:
    """Count `num_clips` and `num_scored`, arguments of `cautions`, in a clip list; empty if there is no list."""
    if not Path(clips).is_file():
        return {}
    data = config.data
    listed = adjust(load_clips(clips), Path(clips).parent, data.corrections, data.exclude)
    splits = [clip.split for clip in listed]
    sizes = {"num_clips": splits.count(data.train_split)}
    if data.eval_split is not None:
        sizes["num_scored"] = min(splits.count(data.eval_split), data.eval_clips or len(splits))
    return sizes


def _length_cautions(config: Config) -> list[str]:
    steps, optim, lines = config.optim.steps, config.optim, []
    if optim.warmup_steps >= steps:
        reached = optim.warmup_lr + (optim.lr - optim.warmup_lr) * (steps - 1) / optim.warmup_steps
        lines.append(
            f"optim.warmup_steps {optim.warmup_steps}: the run ends after {steps} steps, within the warm-up; the "
            f"learning rate reaches {reached:.1e} of {optim.lr:.1e}. Set optim.warmup_steps={steps // 50}."
        )
    if config.checkpoint.every > steps:
        lines.append(
            f"checkpoint.every {config.checkpoint.every}: the run ends after {steps} steps; a kill before that loses "
            f"everything. Set checkpoint.every={max(steps // 10, 1)}."
        )
    if config.data.eval_split is not None and config.log.eval_every > steps:
        lines.append(
            f"log.eval_every {config.log.eval_every}: the run ends after {steps} steps and is scored only there, so no "
            f"better checkpoint is chosen. Set log.eval_every={max(steps // 10, 1)}."
        )
    return lines


def _clip_cautions(config: Config, num_clips: int | None, num_scored: int | None) -> list[str]:
    optim, lines = config.optim, []
    clips_per_step = optim.batch_size / config.data.questions_per_clip
    if num_clips:
        epochs = optim.steps * clips_per_step / num_clips
        if epochs > MANY_EPOCHS:
            enough = max(round(SUGGESTED_EPOCHS * num_clips / clips_per_step), 1)
            lines.append(
                f"optim.steps {optim.steps}: {epochs:,.0f} epochs of {num_clips} clips, which the model memorises. "
                f"{SUGGESTED_EPOCHS} epochs are optim.steps={enough}; log.patience=3 stops early."
            )
    if num_clips and clips_per_step > num_clips:
        lines.append(
            f"optim.batch_size {optim.batch_size}: more than the {num_clips} clips of {config.data.train_split}, so "
            f"each occurs in a batch several times. Set optim.batch_size={max(num_clips // 4, 1)}."
        )
    if num_scored is not None and config.data.eval_split is not None and num_scored < FEW_SCORED:
        lines.append(
            f"data.eval_split {config.data.eval_split}: {num_scored} clip{'' if num_scored == 1 else 's'} to score, "
            f"where one answer moves the accuracy by {100 / max(num_scored, 1):.0f} points; the best checkpoint is "
            "chosen by it. Put more clips into that split, or set data.eval_split=null."
        )
    return lines


def _device_cautions(config: Config, on_cpu: bool) -> list[str]:
    if not on_cpu:
        return []
    lines = []
    if config.optim.precision == "fp16":
        lines.append(
            "optim.precision fp16: a CPU computes it slowly and small gradients vanish without a scaler. Set "
            "optim.precision=bf16, or fp32."
        )
    if config.model.llm is not None and config.model.llm_dtype == "float16":
        lines.append("model.llm_dtype float16: slow on a CPU. Set model.llm_dtype=float32, or bfloat16.")
    return lines
