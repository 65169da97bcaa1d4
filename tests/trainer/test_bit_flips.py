"""One flipped bit in any file of a run: the same result as without it, or a refusal that says what to do."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from test_probe import make_probe
from test_train import weights

from featurecache.errors import FeatureCacheError
from featurecache.interrupt import Interrupted
from fusion_train import checkpoint
from fusion_train.cli import main
from fusion_train.data.pool import Pool
from fusion_train.metric_lines import read_metrics
from fusion_train.run import Run
from fusion_train.training.run_report import damage, write_report
from fusion_train.training.trainer import train

FILES = (
    "config.yaml", "run.json", "metrics.jsonl", "pool/pool.json", "pool/clips.jsonl", "pool/held_out.jsonl",
    "pool/index.npy", "checkpoints/step-00000004/state.json", "checkpoints/step-00000004/model.safetensors",
    "checkpoints/step-00000004/optimizer.safetensors",
)  # fmt: skip


def go_on(run: Run, material: Path, stop_at: int | None = None) -> Run:
    """What `fusion-train resume` does."""
    steps: list[str] = []
    config = run.config()
    train(
        config,
        store=str(material / "features.zarr"),
        clips=str(material / "clips.jsonl"),
        run=run,
        say=steps.append,
        stop=lambda: stop_at is not None and len(steps) > stop_at,
    )
    return run


@pytest.fixture(scope="module")
def interrupted(llama, material, tmp_path_factory) -> Run:
    """A probe stopped after step 4 of 6, scored after steps 2 and 4."""
    run = Run(tmp_path_factory.mktemp("flips") / "run")
    config = make_probe(llama, "optim.steps=6", "checkpoint.every=2", "log.eval_every=2", "log.peak_tflops=1")
    scored: list[str] = []

    def say(text: str) -> None:
        if text.startswith("step "):
            scored.append(text)

    with pytest.raises(Interrupted):
        train(
            config,
            store=str(material / "features.zarr"),
            clips=str(material / "clips.jsonl"),
            run=run,
            say=say,
            stop=lambda: len(scored) >= 2,
        )
    return run


@pytest.fixture(scope="module")
def finished(interrupted, material, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(interrupted.folder, folder)
    return go_on(Run(folder), material)


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ (1 << bit % 8)]) + data[bit // 8 + 1 :]


def resumed_alike(run: Run, material: Path, finished: Run) -> None:
    go_on(run, material)
    one, two = weights(run), weights(finished)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert run.result["scores"] == finished.result["scores"]


def answered_alike(run: Run, material: Path, finished: Run) -> None:
    said = CliRunner().invoke(
        main,
        [
            "eval",
            "--run",
            str(run.folder),
            "--split",
            "val",
            "--checkpoint",
            "4",
            "--store",
            str(material / "features.zarr"),
            "--clips",
            str(material / "clips.jsonl"),
        ],
    )
    assert isinstance(said.exception, SystemExit | None), said.exception
    if said.exit_code == 0:
        name = "predictions-val-emotion.jsonl"
        assert (run.folder / name).read_bytes() == (finished.folder / name).read_bytes()


def reported_alike(run: Run, material: Path, finished: Run) -> None:
    page, numbers = write_report(run)
    assert (
        "damaged" in page.read_text()
        if damage(run)
        else numbers.read_bytes() == (finished.folder / "4.csv").read_bytes()
    )


@pytest.fixture(scope="module")
def compared(interrupted, finished, material) -> Run:
    """The undisturbed run, with the answers and the report of step 4."""
    answered = CliRunner().invoke(
        main,
        [
            "eval",
            "--run",
            str(finished.folder),
            "--split",
            "val",
            "--checkpoint",
            "4",
            "--store",
            str(material / "features.zarr"),
            "--clips",
            str(material / "clips.jsonl"),
        ],
    )
    assert answered.exit_code == 0, answered.output
    _, numbers = write_report(interrupted)
    shutil.move(numbers, finished.folder / "4.csv")
    return finished


def try_flips(interrupted: Run, compared: Run, material: Path, folder: Path, flips: list[tuple[str, int]]) -> int:
    """Flip, use, compare; returns how many were refused."""
    refused = 0
    for name, bit in flips:
        for use in (resumed_alike, answered_alike, reported_alike):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(interrupted.folder, folder)
            path = folder / name
            path.write_bytes(flipped(path.read_bytes(), bit))
            try:
                use(Run(folder), material, compared)
            except FeatureCacheError:  # anything else fails the test with its traceback
                refused += 1
    return refused


def drawn(interrupted: Run, seed: int, each: int) -> list[tuple[str, int]]:
    chance = random.Random(seed)
    return [
        (name, chance.randrange(8 * (interrupted.folder / name).stat().st_size)) for name in FILES for _ in range(each)
    ]


def test_a_flip_in_any_file_is_refused_or_changes_nothing(interrupted, compared, material, tmp_path):
    assert try_flips(interrupted, compared, material, tmp_path / "run", drawn(interrupted, 1, 1)) >= len(FILES)


@pytest.mark.slow
def test_many_flips_are_refused_or_change_nothing(interrupted, compared, material, tmp_path):
    assert try_flips(interrupted, compared, material, tmp_path / "run", drawn(interrupted, 2, 4)) >= 4 * len(FILES)


def read_all(run: Run) -> tuple[object, ...]:
    """Everything that is read of a run before its tensors are."""
    pool = Pool.load(run.pool)
    assert pool is not None
    places = {name: places.tolist() for name, places in pool.places.items()}
    return (
        run.record(),
        run.config(),
        list(pool.clips),
        places,
        pool.tasks,
        list(pool.summary),
        checkpoint.read_state(run.checkpoints / "step-00000004"),
    )


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith((".safetensors", "metrics.jsonl"))])
def test_no_flip_of_a_description_is_read_as_something_else(interrupted, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(interrupted.folder, folder)
    path, sound = folder / name, read_all(interrupted)
    data = path.read_bytes()
    refused = 0
    bits = range(0, 8 * len(data), max(1, 8 * len(data) // 100) | 1)
    for bit in bits:
        path.write_bytes(flipped(data, bit))
        try:
            assert read_all(Run(folder)) == sound
        except FeatureCacheError:
            refused += 1
    assert refused > 0.9 * len(bits)


def test_no_flip_of_a_metric_line_is_read_as_another_number(interrupted, tmp_path):
    data, sound = interrupted.metrics.read_bytes(), read_metrics(interrupted.metrics).rows
    path = tmp_path / "metrics.jsonl"
    for bit in range(0, 8 * len(data), 17):
        path.write_bytes(flipped(data, bit))
        found = read_metrics(path)
        assert all(row in sound for row in found.rows)
        assert len(found.rows) == len(sound) or found.damaged or found.torn


def test_a_flipped_checkpoint_of_a_finished_run_is_refused(finished, material, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    path = checkpoint.choose(run.checkpoints, "last") / "model.safetensors"
    path.write_bytes(flipped(path.read_bytes(), 8 * (path.stat().st_size - 2)))
    with pytest.raises(FeatureCacheError, match="Delete step-00000006"):
        go_on(run, material)
    before = load_file(checkpoint.choose(finished.checkpoints, "last") / "model.safetensors")
    assert go_on(finished, material).result == finished.result
    assert all(torch.equal(tensor, weights(finished)[name]) for name, tensor in before.items())


@pytest.mark.parametrize("edit", [{"step": 6}, {"step": "four"}, {"surprise": 1}, {"score": "high"}, {"sha256": []}])
def test_a_state_of_another_step_or_kind_is_refused(interrupted, material, tmp_path, edit):
    """Without a checksum, as an earlier release wrote it or somebody edited it."""
    shutil.copytree(interrupted.folder, tmp_path / "run")
    path = tmp_path / "run/checkpoints/step-00000004/state.json"
    state = json.loads(path.read_text())
    del state["checksum"]
    path.write_text(json.dumps(state))
    go_on(Run(shutil.copytree(tmp_path / "run", tmp_path / "sound")), material)
    path.write_text(json.dumps(state | edit))
    with pytest.raises(FeatureCacheError, match=r"state\.json.*Delete step-00000004"):
        go_on(Run(tmp_path / "run"), material)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe\0", b'{"step": 1, "step": 2}', b"[" * 9000])
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".json", ".yaml"))])
def test_strange_files_are_refused_with_their_name(interrupted, material, tmp_path, name, content):
    shutil.copytree(interrupted.folder, tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(FeatureCacheError) as caught:
        go_on(Run(tmp_path / "run"), material)
    assert Path(name).name in str(caught.value)
