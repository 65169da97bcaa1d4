"""The example packages are installed as a user installs them, and extract, train, sweep and export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import recordings as rec
import yaml
from click.testing import CliRunner
from exporting import train_run

import featurecache
from featurecache import cli as cache_cli
from fusion_train import cli as trainer_cli
from fusion_train.export.export_run import ExportSources, export_run
from fusion_train.run import Run
from fusion_train.sweeps.sweep_file import load_sweep

ROOT = Path(__file__).parents[2]
PACKAGES = ("encoder_package", "fusion_package")
SHORT = ("optim.steps=2", "data.tasks=[emotion]", "log.peak_tflops=1", "optim.batch_size=4", "optim.micro_batch_size=4")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both packages, installed by pip from wheels that hatchling builds without a network."""
    folder = tmp_path_factory.mktemp("packages")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--no-compile", "--target", str(folder))
    packages = [str(ROOT / "examples" / package) for package in PACKAGES]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *packages], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def on_the_path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed packages can be imported, and their entry points are found."""
    monkeypatch.syspath_prepend(installed)


def run_command(main, *arguments: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("package", PACKAGES)
def test_the_tests_of_an_example_package_pass(package, installed):
    folders = [str(installed), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "."],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "examples" / package,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_the_encoder_extracts_and_its_feature_trains(on_the_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(8):
        rec.write_wav(tmp_path / f"{number}.wav", rec.sine(0.5, 200.0 + 90 * number)[None])
        labels = {"emotion": ("happy", "sad")[number % 2]}
        rows.append({"id": f"c{number}", "audio": f"{number}.wav", "split": ("train", "val")[number > 5]})
        rows[-1] |= {"labels": labels, "dataset": "toy"}
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_command(cache_cli.main, "plan", "--encoder", "log-mel", "--calibrate", 2)
    run_command(cache_cli.main, "extract", "--encoder", "log-mel")
    feature = featurecache.open_store("features.zarr")["log-mel"]
    assert feature.read([f"c{number}" for number in range(8)]).shape == (8, 64, 40)
    assert len(np.unique(feature.read(["c0", "c1"])[:, 0], axis=0)) == 2
    only_sound = ("features.audio=log-mel", "features.image=null", "features.video=null")
    settings = [word for setting in (*SHORT, *only_sound) for word in ("--set", setting)]
    run_command(trainer_cli.main, "--stage", "probe", *settings)
    assert Run(tmp_path / "runs" / "probe").config().features.used == {"audio": "log-mel"}


def test_the_fusion_variant_trains_and_stands_in_a_sweep(on_the_path, material, tmp_path):
    places = ("--store", material / "features.zarr", "--clips", material / "clips.jsonl", "--out", tmp_path / "run")
    settings = [word for setting in (*SHORT, "model.fusion.name=gated-sum") for word in ("--set", setting)]
    run_command(trainer_cli.main, "--stage", "probe", *places, *settings)
    assert Run(tmp_path / "run").config().model.fusion.name == "gated-sum"
    readme = (ROOT / "examples" / "fusion_package" / "README.md").read_text()
    text = readme.partition("```yaml\n")[2].partition("```")[0]
    assert yaml.safe_load(text)["variants"]["gated-sum"]
    (tmp_path / "sweep.yaml").write_text(text)
    load_sweep(str(tmp_path / "sweep.yaml"), None, ())


@pytest.mark.slow
@pytest.mark.extra
def test_a_run_with_the_fusion_variant_is_exported_with_its_module(
    on_the_path, tmp_path, whisper_folder, eva_folder, llama
):
    trained = train_run(tmp_path / "material", whisper_folder, eva_folder, llama, "model.fusion.name=gated-sum")
    figures = export_run(trained.run, tmp_path / "model", trained.weights, ExportSources(), say=lambda _: None)
    assert all(figure.passed for figure in figures)
    assert (tmp_path / "model" / "gated_sum_fusion.py").is_file()
