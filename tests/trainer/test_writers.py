"""A run, a sweep, an index, an answer file and an export have one writer; a dead one stops nobody."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_probe import make_probe

import featurecache
from featurecache.errors import WriteError
from featurecache.explore.search import update_indices
from featurecache.files.lease import Lease, beside, sole_writer
from fusion_train.evaluation.predictions import ask
from fusion_train.export.export_run import ExportSources, export_run
from fusion_train.run import LOCK, Run
from fusion_train.sweeps.running import run_sweep
from fusion_train.sweeps.sweep_file import load_sweep
from fusion_train.training.trainer import train

HOLD = """
import sys, time
from pathlib import Path
from featurecache.files.lease import sole_writer
with sole_writer(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_only_lease_files_of_dead_processes_are_removed(tmp_path):
    (tmp_path / "3").touch()
    (tmp_path / "notes").touch()
    with held(tmp_path / "4") as living:
        try:
            assert Lease.sweep(tmp_path, dry_run=True) == [tmp_path / "3"]
            assert Lease.sweep(tmp_path) == [tmp_path / "3"]
            assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "notes"]
        finally:
            living.kill()
    assert Lease.sweep(tmp_path / "missing") == []


def held(path: Path) -> subprocess.Popen[str]:
    """Another process that holds a lock file."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_the_lock_of_a_living_process_is_respected_and_that_of_a_killed_one_is_not(tmp_path):
    path = tmp_path / "run" / LOCK
    other = held(path)
    with (
        pytest.raises(WriteError, match="runs/x: expected one process to write it, got another one that is at work"),
        sole_writer(path, "runs/x"),
    ):
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert other.stdout is not None
    other.stdout.close()
    assert path.exists()
    with sole_writer(path, "runs/x"):
        pass
    assert not path.parent.exists() or list(path.parent.iterdir()) == []


def test_a_stopped_holder_is_never_taken_over(tmp_path):
    """Unlike a shard's lease: what it writes when it goes on would mix with what the other wrote."""
    path = tmp_path / LOCK
    with sole_writer(path, "runs/x"):
        os.utime(path, (0, 0))
        with pytest.raises(WriteError), sole_writer(path, "runs/x"):
            pass


def test_two_trainings_in_one_folder_are_refused_before_anything_is_read(llama, material, tmp_path):
    run = Run(tmp_path / "run")
    places = {
        "store": str(material / "features.zarr"),
        "clips": str(material / "clips.jsonl"),
        "say": lambda text: None,
    }
    with run.writing(), pytest.raises(WriteError, match="another one that is at work"):
        train(make_probe(llama, "optim.steps=2"), run=run, **places)
    train(make_probe(llama, "optim.steps=2"), run=run, **places)
    assert run.finished
    assert not (run.folder / LOCK).exists()


def test_a_refused_training_leaves_no_folder(llama, material, tmp_path):
    with pytest.raises(featurecache.errors.FeatureCacheError):
        train(
            make_probe(llama),
            run=Run(tmp_path / "a" / "run"),
            store=str(tmp_path / "none"),
            clips=str(material / "clips.jsonl"),
            say=lambda text: None,
        )
    assert list(tmp_path.iterdir()) == []


def test_two_sweeps_in_one_folder_are_refused(llama, material, tmp_path):
    sweep = load_sweep("pre_fusion", None, [f"model.llm={llama}"], {})
    with (
        sole_writer(tmp_path / "sweep" / LOCK, "sweep"),
        pytest.raises(WriteError, match="another one that is at work"),
    ):
        run_sweep(
            sweep,
            store=str(material / "features.zarr"),
            clips=str(material / "clips.jsonl"),
            out=tmp_path / "sweep",
            say=lambda text: None,
        )


def test_two_exports_to_one_folder_are_refused(trained, tmp_path):
    out = tmp_path / "model"
    with sole_writer(beside(out), out), pytest.raises(WriteError, match="another one that is at work"):
        export_run(trained.run, out, trained.weights, ExportSources(), say=lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_two_updates_of_one_index_are_refused(material, tmp_path):
    shutil.copytree(material / "features.zarr", tmp_path / "features.zarr")
    store = featurecache.open_store(tmp_path / "features.zarr")
    update_indices(store)
    folder = tmp_path / "features.zarr.similar" / "whisper"
    shutil.rmtree(folder / "vectors")
    with sole_writer(folder / LOCK, "it"), pytest.raises(WriteError, match="another one"):
        update_indices(store)


def test_two_commands_asking_into_one_file_are_refused(tmp_path):
    class Asking:
        path = tmp_path / "answers.jsonl"

    with sole_writer(beside(Asking.path), "it"), pytest.raises(WriteError, match="another one that is at work"):
        ask(Asking())  # type: ignore[arg-type]
