"""Read the released checkpoints: trained parts under the names of the released code -> a run of ours.

    llama_proj                            -> projectors.image       conv_pro_module.feats_prep.<i>.<j>  -> fusion.prepare.<i>.<j>
    llama_proj_{video,audio,fusion}       -> projectors.*           conv_pro_module.attention_mlp.<j>   -> fusion.attention_mlp.<j>
    llama_model.base_model….lora_{A,B}    -> llm.base_model….default  conv_pro_module.fc_att            -> fusion.attention_weights
                                                                    conv_pro_module.conv_entry          -> fusion.conv_branch.entry
                                                                    conv_pro_module.conv_module.conv_blocks.<i>.conv_block.0
                                                                                                        -> fusion.conv_branch.blocks.<i>
                                                                    conv_pro_module.fc_final            -> fusion.output
A MiniGPT-v2 checkpoint holds the image projection and LoRA alone; the other parts keep their first weights.
The released code drops frozen parameters but not buffers: what carries no training (`LEFT_OUT`) is left out with a notice.
Prefixes of wrappers (`module.`) are taken off. Nothing in a file is run (`featurecache.files.torch_file`).
Source: released code at commit 5f0a408.
"""  # noqa: E501 -- the table of names

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featurecache.files.torch_file import UnreadableFileError, read_torch_file
from fusion_train import checkpoint
from fusion_train.config import Config
from fusion_train.errors import CheckpointError
from fusion_train.models.parts import trained_parameters
from fusion_train.run import Run
from fusion_train.run_context import build_context
from fusion_train.training.optimizer import make_optimizer
from fusion_train.training.resume import make_record

RENAMED: tuple[tuple[str, str], ...] = (
    (r"llama_proj\.(weight|bias)", r"projectors.image.\1"),
    (r"llama_proj_(video|audio|fusion)\.(weight|bias)", r"projectors.\1.\2"),
    (r"conv_pro_module\.feats_prep\.(\d+)\.(\d+)\.(weight|bias)", r"fusion.prepare.\1.\2.\3"),
    (r"conv_pro_module\.attention_mlp\.(\d+)\.(weight|bias)", r"fusion.attention_mlp.\1.\2"),
    (r"conv_pro_module\.fc_att\.(weight|bias)", r"fusion.attention_weights.\1"),
    (r"conv_pro_module\.conv_entry\.(weight|bias)", r"fusion.conv_branch.entry.\1"),
    (
        r"conv_pro_module\.conv_module\.conv_blocks\.(\d+)\.conv_block\.0\.(weight|bias)",
        r"fusion.conv_branch.blocks.\1.\2",
    ),
    (r"conv_pro_module\.fc_final\.(weight|bias)", r"fusion.output.\1"),
    (
        r"llama_model\.base_model\.model\.model\.layers\.(\d+)\.self_attn\.([qv])_proj\.lora_([AB])(?:\.default)?\.weight",
        r"llm.base_model.model.model.layers.\1.self_attn.\2_proj.lora_\3.default.weight",
    ),
)
MINIGPT_PARTS = ("projectors.image.", "llm.")
LEFT_OUT: tuple[tuple[str, str], ...] = (
    (r".*\brotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)", "rotary positions, computed by model.llm"),
    (r"visual_encoder\..+", "the frozen image encoder, whose tokens the store has"),
    (r"ln_vision\..+", "the frozen norm after the image encoder, which eva-global computes without learned weights"),
    (r".*\b(position_ids|masked_bias|num_batches_tracked)", "buffers"),
)
"""Names that carry no training, and what they are."""
_WRAPPERS = re.compile(r"((module|_orig_mod)\.)+")


@dataclass(frozen=True)
class Released:
    """What a released checkpoint holds."""

    tensors: dict[str, Tensor]
    """Our parameter name -> tensor, float32."""
    notices: tuple[str, ...] = ()
    """What was left out, by kind."""


def read_released(path: str | Path) -> Released:
    """Read a released `.pth` file and rename its tensors.

    Raises:
        CheckpointError: no such file, truncated, not readable without running code, no tensors; names that are unknown
            or mean the same, tensors that are no floating-point numbers or hold NaN or infinity (all listed).
    """
    path = Path(path)
    renamed: dict[str, Tensor] = {}
    left_out: dict[str, Tensor] = {}
    problems: list[str] = []
    for written, tensor in _state_dict(path).items():
        name = _WRAPPERS.sub("", written, count=1) if _WRAPPERS.match(written) else written
        ours = rename(name)
        if ours is None and _kind_left_out(name):
            left_out[name] = tensor
        elif ours is None:
            problems.append(f"unknown: {written} {tuple(tensor.shape)}")
        elif ours in renamed:
            problems.append(f"twice: {written} also means {ours}")
        elif not tensor.is_floating_point():
            problems.append(f"{written}: expected floating-point numbers, got {tensor.dtype}")
        else:
            renamed[ours] = tensor.float()
            if count := int((~torch.isfinite(renamed[ours])).sum()):
                problems.append(f"{written}: {count:,} of {tensor.numel():,} values are NaN or infinite")
    if problems:
        raise CheckpointError(
            str(path),
            expected="finite weights under the names of the released code",
            got=f"{len(problems)} others",
            next_step="Is it a checkpoint of Emotion-LLaMAv2 or MiniGPT-v2, and did its training converge?",
            problems=problems,
        )
    return Released(renamed, tuple(_notices(left_out)))


def _kind_left_out(name: str) -> str | None:
    return next((kind for pattern, kind in LEFT_OUT if re.fullmatch(pattern, name)), None)


def _notices(left_out: Mapping[str, Tensor]) -> list[str]:
    """What was left out, one line per kind, and where that changes what the model sees."""
    kinds = Counter(_kind_left_out(name) for name in left_out)
    lines = []
    for kind, count in kinds.items():
        example = next(name for name in left_out if _kind_left_out(name) == kind)
        lines.append(f"left out, carrying no training: {count} tensor{'s' if count > 1 else ''} of {kind} ({example})")
    plain = {"ln_vision.weight": 1.0, "ln_vision.bias": 0.0}
    changed = [name for name, value in plain.items() if name in left_out and not bool((left_out[name] == value).all())]
    if changed:
        lines.append(
            f"{', '.join(changed)}: not the identity; the image tokens of eva-global lack what these weights do"
        )
    return lines


def rename(name: str) -> str | None:
    """Our name of a released parameter, or None."""
    for pattern, ours in RENAMED:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, ours, name)
    return None


def complete(
    released: Mapping[str, Tensor], first: Mapping[str, Tensor], subject: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Bring released tensors and the parameters of our model together.

    Args:
        released: the tensors that `read_released` gave.
        first: every trained parameter of our model with its first weights.

    Returns:
        Every trained parameter, and the names that keep their first weights (MiniGPT-v2 only).

    Raises:
        CheckpointError: names or shapes that differ; all are listed.
    """
    missing = [name for name in first if name not in released]
    if missing and all(name.startswith(MINIGPT_PARTS) for name in released):
        kept = [name for name in missing if not name.startswith(MINIGPT_PARTS)]
    else:
        kept = []
    problems = checkpoint.differences(released, {name: t for name, t in first.items() if name not in kept})
    if problems:
        raise CheckpointError(
            subject,
            expected="the trained parts of this configuration",
            got=f"{len(problems)} that differ",
            next_step="Set the configuration that it was trained with: --config, model.llm, model.lora.r.",
            problems=problems,
        )
    return {name: released.get(name, tensor) for name, tensor in first.items()}, kept


def import_released(
    path: str | Path, config: Config, *, store: str, clips: str, run: Run, say: Callable[[str], None] = print
) -> None:
    """Make a finished run of step 0 out of a released checkpoint, to be scored, exported or started from.

    Args:
        config: what the checkpoint was trained with.
        store, clips: the features that the run is to be tied to, and the clip list that names the label sets.

    Raises:
        CheckpointError: see `read_released` and `complete`; or the folder holds a run already.
    """
    if run.exists:
        raise CheckpointError(str(run.folder), expected="a new folder", got="a run", next_step="Choose another --out.")
    released = read_released(path)
    context = build_context(config, store, clips)
    parameters = trained_parameters(context.model)
    tensors, kept = complete(released.tensors, parameters, str(path))
    checkpoint.copy_strictly(tensors, parameters, str(path))
    with run.writing():
        run.create(config, make_record(context, store, clips, run, None))
        state = checkpoint.State(0, config.hash, context.reader.fingerprints)
        checkpoint.save(run.checkpoints, context.model, make_optimizer(context.model, config.optim), state, keep=1)
        run.finish({"step": 0, "scores": {}, "seconds": 0.0})
    for notice in released.notices:
        say(notice)
    count = sum(tensor.numel() for tensor in released.tensors.values())
    say(f"{run.folder}: {len(released.tensors)} tensors, {count:,} parameters")
    if kept:
        say(f"{len(kept)} parameters are not in a MiniGPT-v2 checkpoint and keep their first weights")


def _state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise CheckpointError(str(path), expected="a released .pth checkpoint", got=got)
    try:
        document: Any = read_torch_file(path)
    except UnreadableFileError as error:
        truncated = "truncated" in str(error)
        raise CheckpointError(
            str(path),
            expected="tensors, numbers and texts alone",
            got=str(error),
            next_step="Fetch it again, and compare its size."
            if truncated
            else "A file that wants to run code is not opened; ask its author for one with weights alone.",
        ) from error
    state = document.get("model", document) if isinstance(document, dict) else None
    if not isinstance(state, dict) or not state:
        raise CheckpointError(
            str(path), expected='a mapping of names to tensors, or one under "model"', got=type(document).__name__
        )
    others = [f"{name}: {type(value).__name__}" for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            str(path),
            expected='a mapping of names to tensors, or one under "model"',
            got=f"{len(others)} values that are no tensors",
            problems=others,
        )
    return {str(name): tensor for name, tensor in state.items()}
