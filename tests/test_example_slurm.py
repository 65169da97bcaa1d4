"""The SLURM scripts are valid bash, and each command that they start is one that the command lines accept."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import click
import pytest

from featurecache import cli as cache_cli
from fusion_train import cli as trainer_cli

SCRIPTS = sorted((Path(__file__).parents[1] / "examples" / "slurm").glob("*.sbatch"))
COMMANDS = {"fcache": cache_cli.main, "fusion-train": trainer_cli.main, "fusion_train.cli": trainer_cli.main}
RECORD = """#!/bin/bash
printf '%s\\0' "$(basename "$0")" "$@" >> "$RECORDED"; printf '\\n' >> "$RECORDED"
"""
SLURM = {
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_ARRAY_TASK_COUNT": "8",
    "SLURM_CPUS_PER_TASK": "16",
    "SLURM_GPUS_ON_NODE": "4",
}


def started_commands(script: Path, folder: Path) -> list[list[str]]:
    """Run a script with programs that only write down their arguments; return the words of each command."""
    for program in ("srun", "fcache", "fusion-train"):
        (folder / program).write_text(RECORD)
        (folder / program).chmod(0o755)
    recorded = folder / "recorded"
    env = SLURM | {"PATH": f"{folder}:{os.environ['PATH']}", "RECORDED": str(recorded), "DATA": "/data"}
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    lines = recorded.read_text().splitlines()
    return [[word for word in line.split("\0") if word not in ("", "srun")] for line in lines]


def parse(words: list[str]) -> click.Context:
    """Parse one command as click does, without running it; of a launcher's command, the part after the launcher."""
    start = next(place for place, word in enumerate(words) if word in COMMANDS)
    program, arguments = words[start], words[start + 1 :]
    main = COMMANDS[program]
    if arguments[0] in main.commands:
        return main.commands[arguments[0]].make_context(arguments[0], arguments[1:])
    return main.make_context(program, arguments)


def test_there_are_scripts():
    assert {script.stem for script in SCRIPTS} == {"extract", "train"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_script_is_valid_bash(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_array_job_extracts_its_own_part(tmp_path):
    (words,) = started_commands(next(script for script in SCRIPTS if script.stem == "extract"), tmp_path)
    context = parse(words)
    assert context.info_name == "extract"
    assert context.params["rank"] == (3, 8)
    assert context.params["workers"] == 16
    assert context.params["encoders"] == ("whisper", "eva-global", "eva-temporal")


def test_the_training_job_trains_both_stages_in_a_process_per_gpu_and_scores_the_last(tmp_path):
    info, *stages, scores = started_commands(next(script for script in SCRIPTS if script.stem == "train"), tmp_path)
    assert parse(info).info_name == "info"
    assert [parse(words).params["stage"] for words in stages] == ["perception", "cognition"]
    for words in stages:
        launcher = words[: words.index("fusion_train.cli")]
        assert launcher == ["torchrun", "--standalone", "--nproc-per-node", "4", "-m", "--"]
    context = parse(scores)
    assert context.info_name == "eval"
    assert str(context.params["folder"]) == str(parse(stages[-1]).params["out"])


def test_torchrun_has_the_options_of_the_script():
    from torch.distributed.run import get_args_parser

    arguments = ["--standalone", "--nproc-per-node", "4", "-m", "--", "fusion_train.cli", "--stage", "perception"]
    parsed = get_args_parser().parse_args(arguments)
    assert parsed.standalone
    assert parsed.module
    assert parsed.nproc_per_node == "4"
    assert parsed.training_script == "fusion_train.cli"
    assert parsed.training_script_args == ["--stage", "perception"]
