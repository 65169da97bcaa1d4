"""`pip install featurecache` without an extra: stores and clip lists are read, and a command that needs more says what.

The fast tests run the wheel's content in a process that imports nothing but what `dependencies` brings. The slow one
builds a virtual environment of these packages, where nothing else can be found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"

READ = """
import hashlib, json, sys
import featurecache

def read(location):
    store = featurecache.open_store(location)
    return {
        name: hashlib.sha256(store[name].read(list(store[name].ids)).tobytes()).hexdigest() for name in store.names
    }

digests = [read(location) for location in sys.argv[2:]]
clips = featurecache.load_clips(sys.argv[1])
print(json.dumps({"digests": digests, "texts": {clip.id: clip.text for clip in clips}, "modules": sorted(sys.modules)}))
"""

BLOCK = """
import importlib.abc, json, os, sys

class OnlyThese(importlib.abc.MetaPathFinder):
    allowed = {"featurecache", "fusion_train", *json.loads(os.environ["ALLOWED_MODULES"])}

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in self.allowed and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OnlyThese())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name: find_spec(name) if name.partition(".")[0] in OnlyThese.allowed else None
"""


def required_distributions() -> dict[str, metadata.Distribution]:
    """The distributions that the wheel requires without an extra, and all that these require, by name."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [Requirement(line).name for line in project["dependencies"]]
    distributions: dict[str, metadata.Distribution] = {}
    while names:
        distribution = metadata.distribution(names.pop())
        if distribution.name not in distributions:
            distributions[distribution.name] = distribution
            for requirement in map(Requirement, distribution.requires or ()):
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    names.append(requirement.name)
    return distributions


def top_level_entries(distribution: metadata.Distribution) -> set[str]:
    """Files and folders that a distribution has in site-packages."""
    return {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}


def run(*command: str, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=cwd)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built by hatchling without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder))
    done = run(sys.executable, "-m", "pip", "wheel", *options, str(ROOT), env=dict(os.environ), cwd=folder)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def blocked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a process that can import the wheel's content and what it requires, and nothing else."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "sitecustomize.py").write_text(BLOCK)
    modules = {name.partition(".")[0] for each in required_distributions().values() for name in top_level_entries(each)}
    return {"PYTHONPATH": str(site), "ALLOWED_MODULES": json.dumps(sorted(modules)), "HOME": str(site)}


@pytest.fixture
def clip_list(tmp_path: Path) -> Path:
    path = tmp_path / "clips.jsonl"
    path.write_text('{"id": "a", "audio": "a.wav", "text": "I see."}\n{"id": "b", "video": "b.mp4"}\n')
    return path


def check_what_was_read(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    expected = json.loads((GOLDEN / "expected.json").read_text())
    assert result["digests"] == [{name: feature["read_sha256"] for name, feature in expected.items()}] * 3
    assert result["texts"] == {"a": "I see.", "b": None}
    assert not {"torch", "transformers", "av", "PIL", "faiss", "safetensors", "fsspec"} & set(result["modules"])


STORES = tuple(str(GOLDEN / name) for name in ("v1.zarr", "v1.wds", "v1-archive.zarr"))


def test_stores_of_both_formats_and_a_clip_list_are_read_with_the_hard_dependencies_only(blocked, clip_list, tmp_path):
    check_what_was_read(run(sys.executable, "-c", READ, str(clip_list), *STORES, env=blocked, cwd=tmp_path))


COMMANDS_THAT_READ = (
    ["--help"],
    ["extract", "--help"],
    ["info", "--store", STORES[1]],
    ["show", "set/clip_000", "--store", STORES[0]],
    ["verify", "--store", STORES[0]],
    ["diff", STORES[0], STORES[1]],
    ["convert", STORES[0], "converted.wds"],
)


@pytest.mark.parametrize("command", COMMANDS_THAT_READ, ids=lambda words: " ".join(words[:2]).replace(str(GOLDEN), ""))
def test_commands_that_read_a_store_need_no_extra(command, blocked, tmp_path):
    done = run(sys.executable, "-m", "featurecache.cli", *command, env=blocked, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


COMMANDS_THAT_NEED_MORE = (
    ("encode", "featurecache.cli", ["extract", "--encoder", "whisper", "--clips", "clips.jsonl"]),
    ("encode", "featurecache.cli", ["plan", "--encoder", "whisper", "--clips", "clips.jsonl"]),
    ("encode", "featurecache.cli", ["retry", "--store", STORES[0], "--clips", "clips.jsonl"]),
    ("encode", "featurecache.cli", ["show", "set/clip_000", "--store", STORES[0], "--plot", "pictures"]),
    ("encode", "featurecache.cli", ["import", "meld", "."]),
    (
        "explore",
        "featurecache.cli",
        ["similar", "set/clip_000", "--clips", "clips.jsonl", "--store", STORES[0], "--index", "."],
    ),
    ("remote", "featurecache.cli", ["info", "--store", "https://example.org/features.zarr"]),
    ("train", "fusion_train.cli", ["--stage", "perception"]),
    ("train", "fusion_train.cli", ["plan", "--gpu", "h200"]),
)


@pytest.mark.parametrize(("extra", "module", "command"), COMMANDS_THAT_NEED_MORE, ids=lambda value: str(value)[:40])
def test_a_command_that_needs_an_extra_says_in_one_line_how_to_install_it(
    extra, module, command, blocked, clip_list, tmp_path
):
    done = run(sys.executable, "-m", module, *command, env=blocked, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.endswith(f"pip install 'featurecache[{extra}]'.")


def test_the_trainer_shows_its_help_without_the_extra(blocked, tmp_path):
    done = run(sys.executable, "-m", "fusion_train.cli", "--help", env=blocked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.extra
def test_the_wheel_reads_stores_in_an_environment_that_holds_nothing_else(wheel, clip_list, tmp_path):
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False)
    python = str(folder / "bin" / "python")
    site = next(folder.glob("lib/python*/site-packages"))
    for distribution in required_distributions().values():
        for entry in top_level_entries(distribution):
            (site / entry).symlink_to(Path(str(distribution.locate_file(entry))).resolve())
    env = {"PATH": str(folder / "bin"), "HOME": str(tmp_path)}
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    installed = run(*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel), env=env, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    complete = run(*pip, "check", env=env, cwd=tmp_path)
    assert complete.returncode == 0, complete.stdout

    absent = "import importlib.util as u; print([m for m in ('torch', 'av', 'PIL', 'zarr', 'pip') if u.find_spec(m)])"
    assert run(python, "-I", "-c", absent, env=env, cwd=tmp_path).stdout.strip() == "[]"
    check_what_was_read(run(python, "-I", "-c", READ, str(clip_list), *STORES, env=env, cwd=tmp_path))
    for command in COMMANDS_THAT_READ:
        done = run(str(folder / "bin" / "fcache"), *command, env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    for extra, module, command in COMMANDS_THAT_NEED_MORE:
        done = run(python, "-I", "-m", module, *command, env=env, cwd=tmp_path)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.splitlines()[-1].endswith(f"pip install 'featurecache[{extra}]'.")
