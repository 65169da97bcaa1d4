"""pyproject.toml against the imports of the sources: what is required is imported, what is imported is declared."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from featurecache.extras import MODULE_OF

ROOT = Path(__file__).parents[1]
PACKAGES = ("featurecache", "fusion_train")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
FOR_DEVELOPMENT = {"bench", "coverage", "dev", "docs", "mutants", "test-all"}

UNDECLARED = {
    "huggingface_hub": "transformers requires it and fetches by it; its address and offline switch are asked",
    "tokenizers": "transformers requires it; a tokenizer of an exported model is rebuilt from its JSON",
    "typing_extensions": "numcodecs and pydantic require it; pydantic asks for its TypedDict on Python 3.11",
    "umap": "`fcache map --method umap` names it, and what to install, where it is missing",
}
LOADED_BY_OTHERS = {
    "gcsfs": "fsspec, for gs://",
    "s3fs": "fsspec, for s3://",
    "onnx": "torch.onnx",
    "onnxscript": "torch.onnx",
    "tensorboard": "torch.utils.tensorboard",
    "trackio": "imported by the name that `log.tracker` gives",
}


def modules_of(lines: list[str]) -> set[str]:
    """Return the modules of requirements; of `featurecache[a,b]`, those of the extras a and b."""
    modules: set[str] = set()
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            modules |= modules_of([line for extra in requirement.extras for line in EXTRAS[extra]])
        else:
            name = canonicalize_name(requirement.name)
            modules.add(MODULE_OF.get(name, name.replace("-", "_")))
    return modules


def imported(package: str, *, at_import: bool = False) -> dict[str, set[str]]:
    """Return the modules of other projects that a package imports, each with the files that do.

    `at_import` leaves out imports inside functions and those for the type checker.
    """
    files: dict[str, set[str]] = {}
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body if at_import else ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for top in {name.partition(".")[0] for name in names} - sys.stdlib_module_names - set(PACKAGES):
                files.setdefault(top, set()).add(path.relative_to(ROOT).as_posix())
    return files


HARD = modules_of(PROJECT["dependencies"])


def test_every_hard_dependency_is_imported_by_the_cache():
    assert HARD - set(imported("featurecache")) == set()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_is_declared(package):
    declared = HARD.union(*(modules_of(lines) for extra, lines in EXTRAS.items() if extra not in FOR_DEVELOPMENT))
    undeclared = {
        module: files for module, files in imported(package).items() if module not in declared | {*UNDECLARED}
    }
    assert undeclared == {}


def test_every_package_of_an_extra_is_used():
    used = set(imported("featurecache")) | set(imported("fusion_train")) | set(LOADED_BY_OTHERS)
    unused = {extra: modules_of(lines) - used for extra, lines in EXTRAS.items() if extra not in FOR_DEVELOPMENT}
    assert {extra: modules for extra, modules in unused.items() if modules} == {}


def test_the_exceptions_are_still_exceptions():
    everything = set(imported("featurecache")) | set(imported("fusion_train"))
    assert set(UNDECLARED) <= everything
    assert not set(LOADED_BY_OTHERS) & everything


@pytest.mark.parametrize(
    ("package", "allowed"), [("featurecache", ["encode", "remote"]), ("fusion_train", ["train"])], ids=PACKAGES
)
def test_modules_import_at_once_only_what_their_own_extra_brings(package, allowed):
    known = HARD.union(*(modules_of(EXTRAS[extra]) for extra in allowed)) | {"typing_extensions"}
    others = {module: files for module, files in imported(package, at_import=True).items() if module not in known}
    assert others == {}


def test_the_extra_all_holds_every_extra_of_a_command():
    commands = set(EXTRAS) - FOR_DEVELOPMENT - {"all"}
    assert modules_of(EXTRAS["all"]) == set().union(*(modules_of(EXTRAS[extra]) for extra in commands))
