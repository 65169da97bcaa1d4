"""What is shipped: a wheel that finds its own presets, commands that start fast, no path of a machine."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str, **rest) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **rest)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in an otherwise empty folder."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_holds_every_configuration_and_finds_it(installed, tmp_path):
    shipped = {path.relative_to(ROOT / "configs") for path in ROOT.glob("configs/**/*.yaml")}
    assert shipped
    assert {
        path.relative_to(installed / "fusion_train/configs")
        for path in installed.glob("fusion_train/configs/**/*.yaml")
    } == shipped
    code = "import fusion_train.presets as c; c.load_config('demo', 'cognition'); print(c.preset_dir())"
    found = run(sys.executable, "-P", "-c", code, cwd=tmp_path, env={"PYTHONPATH": str(installed)})
    assert Path(found.strip()) == installed / "fusion_train" / "configs"


def test_a_wheel_is_typed_and_holds_no_tests(installed):
    names = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {"featurecache/py.typed", "fusion_train/py.typed"} <= names
    assert not [name for name in names if name.startswith(("tests/", "tools/"))]


def test_reading_a_store_imports_no_torch(tmp_path):
    code = "import sys, featurecache; print([m for m in ('torch', 'transformers', 'av') if m in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == "[]"


@pytest.mark.parametrize("command", ["featurecache.cli", "fusion_train.cli"])
def test_help_imports_no_torch(command, tmp_path):
    code = f"import sys, {command}; print('torch' in sys.modules)"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == "False"
