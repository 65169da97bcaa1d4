"""The processes of a distributed run: rank, number of processes, and device; for training and evaluation.

    accelerate launch --multi_gpu --num_processes N -m fusion_train.cli …      GPUs, or CPUs on a machine without GPUs
    torchrun --nproc-per-node N -m -- fusion_train.cli …                       likewise

accelerate forms a process group on CPUs only if it is told to use CPUs, so `this_process` tells it. Without
`--multi_gpu`, `accelerate launch` starts one process on a CPU for any N (more need MPI) and does not report N; N is
therefore read from the command line of the parent process. Source: accelerate 1.15, commands/launch.py, state.py.
"""

from __future__ import annotations

import atexit
import functools
import gc
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from featurecache.machine import command_line_of_parent
from fusion_train.errors import ConfigError


def this_process() -> PartialState:
    """Join the process group, if there are other processes, and return the state of this process.

    Raises:
        ConfigError: the launcher should start several processes, but started one.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu)
    requested = requested_processes(command_line_of_parent())
    if state.num_processes == 1 and requested > 1:
        raise ConfigError(
            "accelerate launch",
            expected=f"{requested} processes",
            got="one, as it does on a CPU",
            next_step=f"Start with: accelerate launch --multi_gpu --num_processes {requested} -m fusion_train.cli …, "
            "which starts them on CPUs too.",
        )
    if state.num_processes > 1:
        leave_at_exit()
    return state


def requested_processes(command: Sequence[str]) -> int:
    """Return the number of processes in an `accelerate launch` command; 1 for any other command."""
    words = [Path(word).name for word in command[:3]]
    if "accelerate" not in words and not any(word.startswith("accelerate.") for word in words):
        return 1
    for name, value in zip(command, [*command[1:], ""], strict=True):
        option, _, joined = name.replace("_", "-").partition("=")
        if option == "--num-processes" and (joined or value).isdigit():
            return int(joined or value)
    return 1


@functools.cache
def leave_at_exit() -> None:
    """Leave the process group before the interpreter exits.

    A gloo thread that releases a tensor while Python exits aborts the process (pytorch issue 190489), and torchrun then
    stops all other processes. Leaving the group ends these threads. A sharded base keeps them alive, so training also
    ends with a barrier, which holds no tensor.
    """
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        gc.collect()  # objects that refer to the group would keep its threads alive
        dist.destroy_process_group()
