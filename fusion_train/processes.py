"""Which of how many processes this is, and its device; the same for training and evaluation.

    accelerate launch --multi_gpu --num_processes N -m fusion_train.cli …      GPUs, and CPUs too, where there are none
    torchrun --nproc-per-node N -m -- fusion_train.cli …                       likewise

accelerate forms a group of processes on a CPU only where it is told that there is no other device, so it is told.
Without `--multi_gpu`, `accelerate launch` starts one process on a CPU whatever N is (more take MPI), and tells it
nothing of N: that is read off the command it was started with. Source: accelerate 1.15, commands/launch.py, state.py.
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
    """Join the other processes, if there are any.

    Raises:
        ConfigError: the launcher was asked for several, and there is one.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu)
    asked = processes_asked(command_line_of_parent())
    if state.num_processes == 1 and asked > 1:
        raise ConfigError(
            "accelerate launch",
            expected=f"{asked} processes",
            got="one, as it does on a CPU",
            next_step=f"Start with: accelerate launch --multi_gpu --num_processes {asked} -m fusion_train.cli …, "
            "which starts them on CPUs too.",
        )
    if state.num_processes > 1:
        leave_at_exit()
    return state


def processes_asked(command: Sequence[str]) -> int:
    """How many processes a command asks `accelerate launch` for; 1 for any other command."""
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
    """Have this process leave its group before the interpreter goes down.

    A thread of gloo that lets go of a tensor while Python ends aborts the process (pytorch issue 190489), and torchrun
    then ends all others. Leaving ends these threads; a sharded base keeps them, so training ends with a barrier too,
    which holds no tensor.
    """
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        gc.collect()  # what still names the group would keep its threads
        dist.destroy_process_group()
