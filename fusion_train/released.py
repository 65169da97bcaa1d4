"""Read the released checkpoints: trained parts under the names of the released code -> a run of ours.

    llama_proj                            -> projectors.image       conv_pro_module.feats_prep.<i>.<j>  -> fusion.prepare.<i>.<j>
    llama_proj_{video,audio,fusion}       -> projectors.*           conv_pro_module.attention_mlp.<j>   -> fusion.attention_mlp.<j>
    llama_model.base_model….lora_{A,B}    -> llm.base_model….default  conv_pro_module.fc_att            -> fusion.attention_weights
                                                                    conv_pro_module.conv_entry          -> fusion.conv_branch.entry
                                                                    conv_pro_module.conv_module.conv_blocks.<i>.conv_block.0
                                                                                                        -> fusion.conv_branch.blocks.<i>
                                                                    conv_pro_module.fc_final            -> fusion.output
A MiniGPT-v2 checkpoint holds the image projection and LoRA alone; the other parts keep their first weights.
Files are read with `weights_only`: nothing in them is run. Source: released code at commit 5f0a408.
"""  # noqa: E501 -- the table of names

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fusion_train import checkpoint
from fusion_train.config import Config
from fusion_train.errors import CheckpointError
from fusion_train.models.parts import trained_parameters
from fusion_train.run import Run
from fusion_train.run_context import assemble
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


def read_released(path: str | Path) -> dict[str, Tensor]:
    """Read a released `.pth` file and rename its tensors.

    Returns:
        Our parameter name -> tensor, float32.

    Raises:
        CheckpointError: no such file, not readable without running code, no tensors, unknown names (all listed), or two
            names that mean the same.
    """
    path = Path(path)
    state = _state_dict(path)
    renamed: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, tensor in state.items():
        ours = rename(name)
        if ours is None:
            problems.append(f"unknown: {name}")
        elif ours in renamed:
            problems.append(f"twice: {name} also means {ours}")
        else:
            renamed[ours] = tensor.float()
    if problems:
        raise CheckpointError(
            str(path),
            expected="names of the released code",
            got=f"{len(problems)} others",
            next_step="Is it a checkpoint of Emotion-LLaMAv2 or MiniGPT-v2?",
            problems=problems,
        )
    return renamed


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
        released: what `read_released` gave.
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
    bench = assemble(config, store, clips)
    parameters = trained_parameters(bench.model)
    tensors, kept = complete(released, parameters, str(path))
    checkpoint.copy_strictly(tensors, parameters, str(path))
    with run.writing():
        run.create(config, make_record(bench, store, clips, run, None))
        state = checkpoint.State(0, config.hash, bench.reader.fingerprints)
        checkpoint.save(run.checkpoints, bench.model, make_optimizer(bench.model, config.optim), state, keep=1)
        run.finish({"step": 0, "scores": {}, "seconds": 0.0})
    say(f"{run.folder}: {len(released)} tensors, {sum(tensor.numel() for tensor in released.values()):,} parameters")
    if kept:
        say(f"{len(kept)} parameters are not in a MiniGPT-v2 checkpoint and keep their first weights")


def _state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(str(path), expected="a released .pth checkpoint", got="no such file")
    try:
        document: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(
            str(path),
            expected="tensors, numbers and texts alone",
            got=str(error).splitlines()[0][:200],
            next_step="A file that wants to run code is not opened; ask its author for one with weights alone.",
        ) from error
    state = document.get("model", document) if isinstance(document, dict) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(str(path), expected='a mapping of names to tensors, or one under "model"', got="another")
    return dict(state)
