"""The example packages are installed as a user installs them, and extract, train, sweep and export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
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
from fusion_train.errors import ExportError
from fusion_train.export.export_run import ExportSources, export_run
from fusion_train.predict.opening import open_model
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


@pytest.fixture
def probe_run(on_the_path, tmp_path, monkeypatch) -> Run:
    """A probe on features of the encoder, made by the commands."""
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
    only_sound = ("features.audio=log-mel", "features.image=null", "features.video=null")
    settings = [word for setting in (*SHORT, *only_sound) for word in ("--set", setting)]
    said = run_command(trainer_cli.main, "--stage", "probe", *settings)
    assert "not exported" not in said
    return Run(tmp_path / "runs" / "probe")


def test_the_encoder_extracts_and_its_feature_trains(probe_run):
    feature = featurecache.open_store("features.zarr")["log-mel"]
    assert feature.read([f"c{number}" for number in range(8)]).shape == (8, 64, 40)
    assert len(np.unique(feature.read(["c0", "c1"])[:, 0], axis=0)) == 2
    assert probe_run.config().features.used == {"audio": "log-mel"}


LOADS = """
import sys
from importlib.metadata import version
from pathlib import Path
from importlib.util import find_spec
folder, script, hidden_not = sys.argv[1:]
sys.path.insert(0, script)
from fresh_process import HIDDEN, HidingFinder
sys.path.pop(0)
sys.meta_path[:] = [HidingFinder(finder, {*HIDDEN} - {*hidden_not.split()}) for finder in sys.meta_path]
assert find_spec("log_mel_encoder") is None and (hidden_not or find_spec("featurecache") is None)
from transformers import AutoModel, AutoProcessor
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
print(processor.labels("emotion"), model.label_probabilities(**processor(audio="7.wav"))[0].tolist())
"""


def load_elsewhere(folder: Path, tmp_path: Path, *found: str) -> subprocess.CompletedProcess[str]:
    """Load an exported folder where neither this project, but for `found`, nor the example package is installed."""
    scripts = Path(export_run.__code__.co_filename).parent
    return subprocess.run(
        [sys.executable, "-I", "-c", LOADS, str(folder), str(scripts), " ".join(found)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
    )


def test_a_run_on_the_encoder_is_exported_with_a_copy_of_its_code_and_licence(probe_run, tmp_path):
    figures = export_run(probe_run, tmp_path / "model", {}, ExportSources(), say=lambda _: None)
    assert all(figure.passed for figure in figures)
    licence = ROOT / "examples" / "encoder_package" / "LICENSE"
    assert (tmp_path / "model" / "featurecache-log-mel.LICENSE").read_text() == licence.read_text()
    assert "class LogMelEncoder" in (tmp_path / "model" / "log_mel_encoder.py").read_text()
    done = load_elsewhere(tmp_path / "model", tmp_path)
    assert done.returncode == 0, done.stderr
    said = run_command(trainer_cli.main, "predict", "--model", tmp_path / "model", tmp_path / "7.wav", "--json")
    (line,) = [line for line in said.splitlines() if line.startswith("{")]
    probabilities = json.loads(line)["probabilities"]
    labels, _, values = done.stdout.strip().rpartition(") ")
    assert labels == "('happy', 'sad'"
    assert list(probabilities.values()) == pytest.approx(json.loads(values), abs=1e-6)


def test_an_export_may_name_the_package_of_the_encoder(probe_run, tmp_path):
    sources = ExportSources(required=("log-mel",))
    figures = export_run(probe_run, tmp_path / "model", {}, sources, say=lambda _: None)
    assert all(figure.passed for figure in figures)
    assert not list((tmp_path / "model").glob("*log?mel*"))
    needed = "featurecache-log-mel==0.1.0"
    cache = f"featurecache=={version('featurecache')}"
    assert f"numpy, pillow, {cache}, {needed}." in (tmp_path / "model" / "README.md").read_text()
    assert json.loads((tmp_path / "model" / "certificate.json").read_text())["packages"] == [cache, needed]
    done = load_elsewhere(tmp_path / "model", tmp_path, "featurecache")
    assert done.returncode
    assert f'This model needs the encoder "log-mel" of {needed}: pip install {needed}.' in done.stderr


def test_predict_names_the_package_of_an_encoder_that_is_not_installed(probe_run, tmp_path, monkeypatch):
    export_run(probe_run, tmp_path / "model", {}, ExportSources(), say=lambda _: None)
    monkeypatch.setattr("fusion_train.predict.opening.registered", dict)
    with pytest.raises(ExportError, match=r"log-mel, got none .*pip install featurecache-log-mel==0\.1\.0; or load"):
        open_model(tmp_path / "model")


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
