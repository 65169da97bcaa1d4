"""Compiled layers: the same losses, and few graphs whatever the rows look like."""

from __future__ import annotations

import json

import pytest
import torch
from test_train import run_training
from torch._dynamo.utils import counters
from toy import make_config

from fusion_train.errors import ConfigError
from fusion_train.models import kernels


def test_a_compiled_run_without_a_compiler_is_refused_before_it_begins(llama, material, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError, match=r"a C\+\+ compiler \(g\+\+ or clang\+\+\).* optim.compile=false"):
        run_training(make_config(llama, "optim.compile=true"), material, tmp_path / "run")


def test_a_gpu_needs_triton_and_a_c_compiler(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    assert kernels.missing_for_kernels("cuda") == "the package triton"
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert kernels.missing_for_kernels("cuda") == "a C compiler (gcc or clang)"
    monkeypatch.setenv("CC", "mycc")
    assert kernels.missing_for_kernels("cuda") is None


MOST_GRAPHS = 8
"""Norm, queries to values, output and MLP, some of them twice; a graph a layout would be many more."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch, about itself
@pytest.mark.parametrize(("checkpointing", "quantised"), [("false", "null"), ("true", "null"), ("true", "fp8")])
def test_a_compiled_run_learns_the_same_and_rows_of_any_layout_share_its_graphs(
    llama, material, tmp_path, checkpointing, quantised
):
    settings = [
        "optim.steps=12",
        "optim.micro_batch_size=auto",
        "optim.micro_batch_tokens=80",
        "log.eval_every=6",
        "model.fusion.dropout=0",
        "model.lora.dropout=0",
        "data.questions_per_clip=2",
        f"optim.activation_checkpointing={checkpointing}",
        f"model.quantised={quantised}",
    ]
    plain = run_training(make_config(llama, *settings), material, tmp_path / "plain")
    torch.compiler.reset()
    counters.clear()
    compiled = run_training(make_config(llama, *settings, "optim.compile=true"), material, tmp_path / "compiled")
    one, two = ([json.loads(line) for line in run.metrics.read_text().splitlines()] for run in (plain, compiled))
    for name in ("loss", "eval_loss"):
        expected, losses = ([row[name] for row in rows if name in row] for rows in (one, two))
        # A last bit moves a rounding to 8 bits, and training goes on from there.
        assert losses == pytest.approx(expected, abs=1e-4 if quantised == "null" else 1e-1)
        assert losses[0] == pytest.approx(expected[0], abs=1e-4 if quantised == "null" else 1e-2)
    assert 0 < counters["stats"]["unique_graphs"] <= MOST_GRAPHS
