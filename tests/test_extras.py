"""A package that is missing or cannot be imported is one line that says what to install or remove."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from featurecache import cli as cache_cli
from featurecache import extras
from featurecache.console import CommandGroup
from featurecache.errors import MissingExtraError
from fusion_train import cli as trainer_cli


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in missing else find_spec(name))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(trainer_cli.main, arguments, prog_name="fusion-train")


@pytest.mark.parametrize("command", [*sorted(trainer_cli.main.commands), "--stage"])
def test_no_command_of_the_trainer_starts_without_its_extra(command, monkeypatch):
    without(monkeypatch, "peft", "scipy")
    done = run(command, "perception")
    assert done.exit_code == 2
    line, *rest = done.output.splitlines()
    assert line.startswith("error: fusion-train: expected ")
    assert line.endswith("got no peft, scipy. pip install 'featurecache[train]'.")
    assert rest == []


def test_help_is_shown_without_the_extra(monkeypatch):
    without(monkeypatch, "peft", "scipy")
    assert run("--help").exit_code == 0
    assert run("plan", "--help").exit_code == 0
    assert "Usage: fusion-train plan" in run("plan", "-h").output


def test_every_module_of_an_extra_is_known_by_the_name_it_is_imported_by():
    extras.require_all("train", subject="train")
    extras.require_all("dev", subject="dev")  # pytest-xdist, of which the module has another name


def test_a_module_that_is_missing_deep_inside_names_the_extra_of_the_command():
    def deep() -> None:
        try:
            raise ModuleNotFoundError("No module named 'sklearn.svm'", name="sklearn.svm")
        except ModuleNotFoundError as error:
            raise RuntimeError("Failed to import something") from error

    def said(extra: str) -> str:
        with pytest.raises(RuntimeError) as caught:
            deep()
        return str(extras.import_failure(caught.value, extra, "fcache audit"))

    assert said("explore") == (
        "fcache audit: expected sklearn.svm, got no such package. pip install 'featurecache[explore]'."
    )
    assert "featurecache[train]" in said("train")


def test_a_folder_named_like_a_package_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "tracked_runs").mkdir()  # as W&B leaves wandb/ in the working directory
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="got no tracked_runs"):
        extras.require("wandb", "tracked_runs", subject="log.tracker")


def install(folder: Path, name: str, version: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code + "\n")
    about = folder / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "top_level.txt").write_text(name + "\n")


def failure(folder: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> Exception | None:
    """What is said of an exception that rises while `module` is imported, wrapped as transformers wraps it."""
    monkeypatch.syspath_prepend(folder)
    try:
        __import__(module)
    except (OSError, TypeError, ImportError) as error:
        wrapped = ModuleNotFoundError("Could not import module 'Blip2VisionModel'.")
        wrapped.__cause__ = error
        return extras.import_failure(wrapped, "train", "fusion-train")
    finally:
        sys.modules.pop(module, None)
    raise AssertionError("it was imported")


def test_a_package_that_cannot_be_imported_is_named_with_the_reason_and_a_way_out(tmp_path, monkeypatch):
    install(tmp_path, "soundlib", "3.1", "raise OSError('libsnd.so.7: cannot open shared object file')")
    assert str(failure(tmp_path, "soundlib", monkeypatch)).endswith(
        'got "libsnd.so.7: cannot open shared object file" where it is imported. '
        "Install one that fits, or remove it: pip uninstall soundlib."
    )


@pytest.mark.parametrize("code", ["raise TypeError('a bug')", "import no_such_module_of_theirs"])
def test_an_error_in_the_user_s_own_module_stays_a_traceback(tmp_path, monkeypatch, code):
    (tmp_path / "own_encoder.py").write_text(code)
    assert failure(tmp_path, "own_encoder", monkeypatch) is None


def test_an_error_that_is_none_of_import_stays_a_traceback():
    @cache_cli.main.command("fails-for-test")
    def fails() -> None:
        raise TypeError("a bug")

    try:
        done = CliRunner().invoke(cache_cli.main, ["fails-for-test"])
    finally:
        del cache_cli.main.commands["fails-for-test"]
    assert isinstance(cache_cli.main, CommandGroup)
    assert isinstance(done.exception, TypeError)


def test_a_torchvision_of_another_build_is_one_line(tmp_path):
    """Through the real road: transformers imports it for a language model."""
    install(tmp_path, "torchvision", "0.28.0", "raise RuntimeError('operator torchvision::nms does not exist')")
    roots = [str(tmp_path), str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "fusion_train.cli", "plan", "--gpu", "h200"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(roots)},
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: torchvision 0.28.0: expected a build that fits torch 2.")
    assert '"operator torchvision::nms does not exist"' in line
    assert "pip uninstall torchvision" in line
