"""Two gloo processes do what one does; a sharded base too; checkpoints hold the trained parts whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from test_train import run_training, weights
from torch import nn
from toy import make_config

from fusion_train import checkpoint
from fusion_train.config import Config
from fusion_train.errors import ConfigError
from fusion_train.processes import requested_processes
from fusion_train.run import Run
from fusion_train.training import parallel

QUIET = ("model.fusion.dropout=0", "model.lora.dropout=0", "data.tasks=[emotion, reason, think]", "optim.steps=4",
         "data.eval_split=null", "optim.micro_batch_size=1", "data.hide_modality_p=0.3")  # fmt: skip


def launch(config: Config, material: Path, folder: Path, processes: int) -> subprocess.Popen[str]:
    """Start training under torchrun."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_suffix(".yaml")
    file.write_text(config.to_yaml())
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "fusion_train.training.verify_resume",
        str(file),
        str(material / "features.zarr"),
        str(material / "clips.jsonl"),
        str(folder),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in map(json.loads, run.metrics.read_text().splitlines()) if "loss" in row]


@pytest.fixture(scope="module")
def alone(llama, material, tmp_path_factory) -> Run:
    return run_training(make_config(llama, *QUIET), material, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("/usr/bin/python3 /usr/bin/accelerate launch --cpu --num_processes 2 -m fusion_train.cli", 2),
        ("python -m accelerate.commands.launch --num-processes=3 -m fusion_train.cli", 3),
        ("python /usr/bin/accelerate launch -m fusion_train.cli", 1),
        ("/bin/bash train.sh --num_processes 4", 1),
        ("", 1),
    ],
)
def test_what_a_launcher_was_asked_for_is_read_off_its_command(command, asked):
    assert requested_processes(command.split()) == asked


def test_one_process_where_the_launcher_was_asked_for_two_is_refused(llama, material, tmp_path, monkeypatch):
    launcher = ["python", "/usr/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "-m", "fusion_train.cli"]
    monkeypatch.setattr("fusion_train.processes.command_line_of_parent", lambda: launcher)
    with pytest.raises(ConfigError, match="--multi_gpu --num_processes 2"):
        run_training(make_config(llama, *QUIET), material, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [
        ("optim.shard_base=true",),
        pytest.param((), marks=pytest.mark.slow),
        pytest.param(("optim.micro_batch_size=auto", "optim.micro_batch_tokens=150"), marks=pytest.mark.slow),
    ],
)
def test_two_processes_train_as_one_does(llama, material, tmp_path, alone, settings):
    """Answers differ in length, so a mean over each process's own tokens would give other losses."""
    process = launch(make_config(llama, *QUIET, *settings), material, tmp_path / "run", 2)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert "on 2 × cpu" in said
    run = Run(tmp_path / "run")
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    kept, expected = weights(run), weights(alone)
    assert {name: tensor.shape for name, tensor in kept.items()} == {name: t.shape for name, t in expected.items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
    optimizer = load_file(checkpoint.choose(run.checkpoints, "last") / "optimizer.safetensors")
    assert len(optimizer) == 3 * len(kept)


@pytest.mark.slow
def test_a_run_stopped_on_two_processes_goes_on_with_one(llama, material, tmp_path, alone):
    config = make_config(llama, *QUIET, "optim.steps=100000", "checkpoint.every=100000")
    process = launch(config, material, tmp_path / "run", 2)
    run = Run(tmp_path / "run")
    deadline = time.monotonic() + 90
    while not run.metrics.is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
        assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    state = checkpoint.read_state(checkpoint.choose(run.checkpoints, "last"))
    assert state.step >= 1
    assert losses(run)[:4] == pytest.approx(losses(alone)[: len(losses(run)[:4])], rel=1e-4)


def test_gradients_are_means_over_processes_also_of_a_part_that_one_of_them_did_not_use(monkeypatch):
    """The other process has 4 where this one has 2, 1 where this one has none, and none where neither has."""
    here, absent_here, nowhere = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    here.grad = torch.tensor([2.0, 6.0])
    of_other = iter([torch.tensor([1.0, 1, 0, 4, 0, 1, 3, 0, 0])])
    monkeypatch.setattr(parallel.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(parallel.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda tensor: tensor.add_(next(of_other)))
    used = parallel.average_gradients([here, absent_here, nowhere])
    assert used.tolist() == [2.0, 1.0, 0.0]
    parallel.drop_unused([here, absent_here, nowhere], used.tolist())
    assert here.grad.tolist() == [3.0, 3.0]
    assert absent_here.grad.tolist() == [0.5, 1.5]
    assert nowhere.grad is None


def test_a_base_is_shared_out_only_over_several_processes_and_only_unquantised(monkeypatch):
    layer = nn.Linear(2, 2, bias=False).requires_grad_(False)
    model = SimpleNamespace(llm=None)
    alone = SimpleNamespace(num_processes=1)
    with pytest.raises(ConfigError, match="expected several processes, got one"):
        parallel.shard_base(model, alone)
    shared: list[nn.Module] = []
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda *arguments: None)
    monkeypatch.setattr("torch.distributed.fsdp.fully_shard", lambda module, **rest: shared.append(module))
    monkeypatch.setattr(parallel, "trained_parameters", lambda model: {})
    monkeypatch.setattr(parallel, "decoder_layers", lambda llm: ("layers", [layer]))
    two = SimpleNamespace(num_processes=2, device=torch.device("cpu"))
    parallel.shard_base(model, two)
    assert shared == [layer]
    layer.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ConfigError, match="got a quantised one"):
        parallel.shard_base(model, two)
