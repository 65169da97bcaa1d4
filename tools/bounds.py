"""Bounds of the packages in pyproject.toml: write the lowest as constraints, and say whether the tests passed on them.

    python tools/bounds.py write     constraints-lowest.txt from pyproject.toml; keeps what was recorded
    python tools/bounds.py record    after the tests have passed on them: `make test-lowest` does it
    python tools/bounds.py passed    exit code 1, and what to run, unless they passed on the bounds as they are
    python tools/bounds.py show torch

Needs nothing but Python, so that it runs before anything is installed. No history of the repository is asked.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = "constraints-lowest.txt"
PASSED = "# passed: "
HEADER = "# The lowest versions that pyproject.toml allows, written by tools/bounds.py; tested by `make test-lowest`.\n"
REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[.*\])?(>=(?P<lowest>[0-9][0-9.]*))?(,<[0-9.]+)?$")
OWN = "featurecache"


def requirements(root: Path) -> list[str]:
    """Every requirement of the project, its extras and its build, sorted."""
    document = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return sorted({*project["dependencies"], *extras, *document["build-system"]["requires"]})


def lowest_versions(root: Path) -> dict[str, str]:
    """The lowest version of each package.

    Raises:
        ValueError: a requirement without a lower bound, or a package with two.
    """
    versions: dict[str, str] = {}
    for line in requirements(root):
        match = REQUIREMENT.match(line)
        if match is None or (match["lowest"] is None and match["name"] != OWN):
            raise ValueError(f'pyproject.toml: expected "name>=version" or "name>=version,<version", got "{line}"')
        if match["name"] != OWN and versions.setdefault(match["name"], match["lowest"]) != match["lowest"]:
            raise ValueError(f"pyproject.toml: expected one lower bound of {match['name']}, got two")
    return versions


def constraints(root: Path) -> str:
    """Text of the constraints file, but for what was recorded."""
    return HEADER + "".join(f"{name}=={version}\n" for name, version in lowest_versions(root).items())


def digest(root: Path) -> str:
    """A number for the lowest versions: other bounds have another one."""
    return hashlib.sha256(constraints(root).encode()).hexdigest()[:16]


def recorded(root: Path) -> str | None:
    """The digest of the bounds that the tests passed on."""
    path = root / CONSTRAINTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.removeprefix(PASSED) for line in lines if line.startswith(PASSED)), None)


def write(root: Path, passed: str | None) -> None:
    """Write the constraints, and which bounds the tests passed on."""
    (root / CONSTRAINTS).write_text(constraints(root) + (f"{PASSED}{passed}\n" if passed else ""), encoding="utf-8")


def main(arguments: list[str], root: Path = ROOT) -> int:
    match arguments:
        case ["write"]:
            write(root, recorded(root))
        case ["record"]:
            write(root, digest(root))
        case ["passed"] if recorded(root) != digest(root):
            got = "one of other versions" if recorded(root) else "none"
            print(
                f"{CONSTRAINTS}: expected a record that the tests passed on the lowest versions, got {got}."
                f" Run: make test-lowest, and commit {CONSTRAINTS}.",
                file=sys.stderr,
            )
            return 1
        case ["passed"]:
            pass
        case ["show", name]:
            print(next(line for line in requirements(root) if re.match(rf"{re.escape(name)}\b[^-]", line)))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
