"""Bounds of packages: the constraints follow pyproject.toml, and a change of bounds asks for the tests to be run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))

import bounds  # noqa: E402

PROJECT = """
[build-system]
requires = ["hatchling>=1.27"]
[project]
dependencies = ["torch>={torch},<2.14", "numpy>=1.26"]
[project.optional-dependencies]
remote = ["s3fs>=2024.6"]
all = ["featurecache[remote]", "numpy>=1.26"]
"""


def project(folder: Path, torch: str = "2.8", change: tuple[str, str] = ("", "")) -> Path:
    (folder / "pyproject.toml").write_text(PROJECT.format(torch=torch).replace(*change))
    return folder


def test_the_constraints_are_those_of_the_project():
    assert (ROOT / bounds.CONSTRAINTS).read_text().startswith(bounds.constraints(ROOT))


def test_constraints_name_the_lowest_version_of_every_package(tmp_path):
    assert bounds.main(["write"], project(tmp_path)) == 0
    lines = (tmp_path / bounds.CONSTRAINTS).read_text().splitlines()
    assert lines[1:] == ["hatchling==1.27", "numpy==1.26", "s3fs==2024.6", "torch==2.8"]


def test_tests_are_to_be_run_until_they_passed_and_again_after_a_change_of_bounds(tmp_path, capsys):
    def passed() -> tuple[int, str]:
        return bounds.main(["passed"], tmp_path), capsys.readouterr().err

    expected = "constraints-lowest.txt: expected a record that the tests passed on the lowest versions"
    step = "Run: make test-lowest, and commit constraints-lowest.txt.\n"
    project(tmp_path)
    assert passed() == (1, f"{expected}, got none. {step}")
    bounds.main(["record"], tmp_path)
    assert passed() == (0, "")
    bounds.main(["write"], tmp_path)
    assert passed() == (0, "")
    project(tmp_path, torch="2.9")
    bounds.main(["write"], tmp_path)
    assert passed() == (1, f"{expected}, got one of other versions. {step}")


def test_one_requirement_is_shown_as_it_is_written(tmp_path, capsys):
    bounds.main(["show", "torch"], project(tmp_path))
    assert capsys.readouterr().out == "torch>=2.8,<2.14\n"


@pytest.mark.parametrize(
    ("old", "new"), [("s3fs>=2024.6", "s3fs"), ('[remote]", "numpy>=1.26', '[remote]", "numpy>=1.25')]
)
def test_a_package_without_a_lower_bound_or_with_two_is_refused(tmp_path, old, new):
    with pytest.raises(ValueError, match="expected"):
        bounds.main(["write"], project(tmp_path, change=(old, new)))
