"""Read released checkpoints: rename the trained parts of the released code and make a run of this project.

    llama_proj                            -> projectors.image       conv_pro_module.feats_prep.<i>.<j>  -> fusion.prepare.<i>.<j>
    llama_proj_{video,audio,fusion}       -> projectors.*           conv_pro_module.attention_mlp.<j>   -> fusion.attention_mlp.<j>
    llama_model.base_model….lora_{A,B}    -> llm.base_model….default  conv_pro_module.fc_att            -> fusion.attention_weights
                                                                    conv_pro_module.conv_entry          -> fusion.conv_branch.entry
                                                                    conv_pro_module.conv_module.conv_blocks.<i>.conv_block.0
                                                                                                        -> fusion.conv_branch.blocks.<i>
                                                                    conv_pro_module.fc_final            -> fusion.output
A MiniGPT-v2 checkpoint has only the image projection and LoRA; the other parts keep their initial weights.
The released code drops frozen parameters but not buffers: tensors without training (`LEFT_OUT`) are left out with a
notice. Prefixes of wrappers (`module.`) are removed. No code in a file is run (`featurecache.files.torch_file`).
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
"""Patterns of names that are not trained, and what they are."""
_WRAPPERS = re.compile(r"((module|_orig_mod)\.)+")


@dataclass(frozen=True)
class Released:
    """Content of a released checkpoint."""

    tensors: dict[str, Tensor]
    """Parameter name of this project -> tensor, float32."""
    notices: tuple[str, ...] = ()
    """One line per kind of left-out tensors."""


def read_released(path: str | Path) -> Released:
    """Read a released `.pth` file and rename its tensors.

    Raises:
        CheckpointError: no such file, truncated, not readable without running code, or no tensors; unknown or duplicate
            names, tensors that are not floating-point or contain NaN or infinity (all are listed).
    """
    path = Path(path)
    renamed: dict[str, Tensor] = {}
    left_out: dict[str, Tensor] = {}
    problems: list[str] = []
    for original_name, tensor in _state_dict(path).items():
        name = _WRAPPERS.sub("", original_name, count=1) if _WRAPPERS.match(original_name) else original_name
        own_name = rename(name)
        if own_name is None and _kind_left_out(name):
            left_out[name] = tensor
        elif own_name is None:
            problems.append(f"unknown: {original_name} {tuple(tensor.shape)}")
        elif own_name in renamed:
            problems.append(f"twice: {original_name} also means {own_name}")
        elif not tensor.is_floating_point():
            problems.append(f"{original_name}: expected floating-point numbers, got {tensor.dtype}")
        else:
            renamed[own_name] = tensor.float()
            if count := int((~torch.isfinite(renamed[own_name])).sum()):
                problems.append(f"{original_name}: {count:,} of {tensor.numel():,} values are NaN or infinite")
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
    """Return one line per kind of left-out tensors, and a warning if leaving them out changes the features."""
    kinds = Counter(_kind_left_out(name) for name in left_out)
    lines = []
    for kind, count in kinds.items():
        example = next(name for name in left_out if _kind_left_out(name) == kind)
        lines.append(f"left out, not trained: {count} tensor{'s' if count > 1 else ''} of {kind} ({example})")
    identity = {"ln_vision.weight": 1.0, "ln_vision.bias": 0.0}
    changed = [
        name for name, value in identity.items() if name in left_out and not bool((left_out[name] == value).all())
    ]
    if changed:
        lines.append(
            f"{', '.join(changed)}: not the identity; the image tokens of eva-global lack what these weights do"
        )
    return lines


def rename(name: str) -> str | None:
    """Return the name of a released parameter in this project; None if it is unknown."""
    for pattern, own_name in RENAMED:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, own_name, name)
    return None


def complete(
    released: Mapping[str, Tensor], initial: Mapping[str, Tensor], subject: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Combine released tensors with the initial weights of the parameters that a MiniGPT-v2 checkpoint lacks.

    Args:
        released: tensors of `read_released`.
        initial: every trained parameter of the model with its initial weights.

    Returns:
        Every trained parameter, and the names that keep their initial weights (MiniGPT-v2 only).

    Raises:
        CheckpointError: differing names or shapes; all are listed.
    """
    missing = [name for name in initial if name not in released]
    if missing and all(name.startswith(MINIGPT_PARTS) for name in released):
        not_released = [name for name in missing if not name.startswith(MINIGPT_PARTS)]
    else:
        not_released = []
    problems = checkpoint.differences(
        released, {name: tensor for name, tensor in initial.items() if name not in not_released}
    )
    if problems:
        raise CheckpointError(
            subject,
            expected="the trained parts of this configuration",
            got=f"{len(problems)} that differ",
            next_step="Set the configuration that it was trained with: --config, model.llm, model.lora.r.",
            problems=problems,
        )
    return {name: released.get(name, tensor) for name, tensor in initial.items()}, not_released


def import_released(
    path: str | Path, config: Config, *, store: str, clips: str, run: Run, say: Callable[[str], None] = print
) -> None:
    """Make a finished run of step 0 from a released checkpoint, to be scored, exported or started from.

    Args:
        config: configuration with which the checkpoint was trained.
        store: features that the run will refer to.
        clips: clip list from which the label sets are read.

    Raises:
        CheckpointError: see `read_released` and `complete`; or the folder has a run already.
    """
    if run.exists:
        raise CheckpointError(str(run.folder), expected="a new folder", got="a run", next_step="Choose another --out.")
    released = read_released(path)
    context = build_context(config, store, clips)
    parameters = trained_parameters(context.model)
    tensors, not_released = complete(released.tensors, parameters, str(path))
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
    if not_released:
        say(f"{len(not_released)} parameters are not in a MiniGPT-v2 checkpoint and keep their initial weights")


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name, without running code in it."""
    if not path.is_file():
        got = "a folder" if path.is_dir() else "no such file"
        raise CheckpointError(str(path), expected="a released .pth checkpoint", got=got)
    try:
        document: Any = read_torch_file(path)
    except UnreadableFileError as error:
        truncated = "truncated" in str(error)
        raise CheckpointError(
            str(path),
            expected="only tensors, numbers and texts",
            got=str(error),
            next_step="Fetch it again, and compare its size."
            if truncated
            else "A file that runs code is not opened; ask its author for one that contains only weights.",
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
