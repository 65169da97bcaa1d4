"""A clone that was used: outputs beside the sources change neither lint, nor collection, nor what is shipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from clone_outputs import OUTPUTS, lay_outputs

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(cwd), "RUFF_NO_CACHE": "true"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git clone, so that nothing says which files are the project's own")
    listed = run("git", "ls-files", "--cached", *PROJECT, cwd=ROOT).splitlines()
    return sorted(name for name in listed if (ROOT / name).is_file())


PROJECT = ("featurecache", "fusion_train", "tools", "tests", "examples", "configs", "docs", "*.md", "LICENSE",
           "Makefile", "mkdocs.yml", "pyproject.toml", ".gitignore")  # fmt: skip


@pytest.fixture(scope="module")
def used_clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("used") / "clone"
    for name in tracked_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    lay_outputs(folder)
    return folder


def test_lint_sees_the_project_s_own_files_alone(used_clone):
    run(sys.executable, "-m", "ruff", "check", ".", cwd=used_clone)
    run(sys.executable, "-m", "ruff", "format", "--check", ".", cwd=used_clone)
    shown = run(sys.executable, "-m", "ruff", "check", "--show-files", ".", cwd=used_clone).splitlines()
    own = [name for name in tracked_files() if name.endswith(".py")]
    assert own
    assert sorted(Path(path).relative_to(used_clone).as_posix() for path in shown) == sorted([*own, "pyproject.toml"])


def test_pytest_collects_tests_alone(tmp_path):
    (tmp_path / "tests").mkdir()
    for name in ("pyproject.toml", "tests/conftest.py", "tests/checkpoints.py", "tests/test_spec.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    lay_outputs(tmp_path)
    listed = run(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", cwd=tmp_path)
    assert {line.split("::")[0] for line in listed.splitlines() if "::" in line} == {"tests/test_spec.py"}


def test_archives_hold_the_project_s_own_files_alone(used_clone, tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path), cwd=used_clone)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as source:
        sources = {name.partition("/")[2] for name in source.getnames()}
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    own = set(tracked_files())
    assert sources == own | {"PKG-INFO"}
    packages = {name for name in own if name.startswith(("featurecache/", "fusion_train/"))}
    assert shipped == packages | {f"fusion_train/{name}" for name in own if name.startswith("configs/")}


def test_outputs_are_laid_once_and_nothing_is_replaced(tmp_path):
    (tmp_path / "tools").mkdir()
    (tmp_path / "clips.jsonl").write_text("the user's own")
    made = lay_outputs(tmp_path)
    assert {"demo", "tools/demo", "runs", "features.zarr", "my-model"} <= set(made)
    assert not {"tools", "clips.jsonl"} & set(made)
    assert (tmp_path / "clips.jsonl").read_text() == "the user's own"
    assert all((tmp_path / name).is_file() for name in OUTPUTS)
    assert lay_outputs(tmp_path) == []
