"""Copy the modules that an exported model runs, and all project modules they import, flattened into one folder.

`featurecache.encoders.whisper` becomes `featurecache_encoders_whisper.py`, and `from featurecache.x import y` becomes
`from .featurecache_x import y`; every other line stays as in the code that trained the model. Imports are read from the
syntax tree. From outside the project only packages in `ALLOWED` may be imported, so that a machine which only answers
needs nothing else. This module knows no model.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from fusion_train.errors import ExportError
from fusion_train.models.fusions import ENTRY_POINTS

ENTRY_MODULES = ("configuration_emotion_llama", "modeling_emotion_llama", "processing_emotion_llama")
REMOTE = "fusion_train.remote"
CHOSEN_FUSION = f"{REMOTE}.chosen_fusion"
PROJECT = ("featurecache", "fusion_train")
ALLOWED = frozenset({"torch", "transformers", "av", "numpy", "PIL", "safetensors"}) | sys.stdlib_module_names


@dataclass(frozen=True)
class _Import:
    line: int
    module: str
    guarded: bool
    """Whether it is inside `try`, so that the package may be missing."""


def vendored_code(fusion: str) -> dict[str, str]:
    """Return file name -> text of every module that an exported model with this fusion variant needs.

    Raises:
        ExportError: the variant is not installed, or a module imports a package that is not allowed.
    """
    chosen, variant_module = _chosen_fusion(fusion)
    sources = {CHOSEN_FUSION: chosen}
    pending = [f"{REMOTE}.{name}" for name in ENTRY_MODULES]
    files: dict[str, str] = {}
    done: set[str] = set()
    while pending:
        module = pending.pop()
        if module in done:
            continue
        done.add(module)
        text = sources.get(module) or _source(module)
        rewritten, needed = _rewrite(module, text, variant_module)
        files[f"{flat_name(module)}.py"] = rewritten
        pending += needed
    return dict(sorted(files.items()))


def flat_name(module: str) -> str:
    """Return the flat name of a module: `featurecache_encoders_whisper`; entry modules keep their short names."""
    short = module.removeprefix(f"{REMOTE}.")
    return short if short in ENTRY_MODULES else module.replace(".", "_")


def _chosen_fusion(name: str) -> tuple[str, str]:
    """Return the text of a module that builds the variant, and the name of the variant's own module."""
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if not points:
        raise ExportError(
            "model.fusion.name",
            expected="an installed variant",
            got=f'"{name}"',
            next_step="Install the package that the run was trained with.",
        )
    module, _, attribute = points[0].value.partition(":")
    text = f'''"""The fusion variant of this model: {name}. Written by the exporter."""

from __future__ import annotations

from {module} import {attribute} as build


def chosen_fusion(name, dims, **options):
    """Build the variant for modalities of these widths; `name` is "{name}"."""
    return build(tuple(dims), **options)
'''
    return text, module


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ExportError(module, expected="a module in Python", got="none that can be copied")
    return Path(spec.origin).read_text(encoding="utf-8")


def _rewrite(module: str, text: str, variant_module: str) -> tuple[str, list[str]]:
    """Return a module's text with its project imports made relative, and the project modules it imports."""
    lines = text.splitlines(keepends=True)
    needed: list[str] = []
    problems: list[str] = []
    for statement in _imports(module, text):
        root = statement.module.partition(".")[0]
        if root in PROJECT or statement.module == variant_module:
            needed.append(statement.module)
            pattern = rf"^(\s*)from {re.escape(statement.module)} import"
            line, count = re.subn(pattern, rf"\1from .{flat_name(statement.module)} import", lines[statement.line - 1])
            if not count:
                problems.append(f"{module}, line {statement.line}: write `from {statement.module} import …`")
            lines[statement.line - 1] = line
        elif root not in ALLOWED and not statement.guarded:
            problems.append(f"{module}, line {statement.line}: imports {statement.module}")
    if problems:
        raise ExportError(
            module,
            expected="imports of the project, the standard library, torch, transformers, PyAV, NumPy, Pillow",
            got=f"{len(problems)} others",
            next_step="Keep what an exported model runs in one module without further imports.",
            problems=problems,
        )
    return "".join(lines), needed


def _imports(module: str, text: str) -> list[_Import]:
    """Return all imports of a module, also those inside functions."""
    imports: list[_Import] = []

    def visit(node: ast.AST, guarded: bool) -> None:
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ExportError(module, expected="absolute imports", got=f"a relative one on line {node.lineno}")
        if isinstance(node, ast.ImportFrom) and node.module:
            imports.append(_Import(node.lineno, node.module, guarded))
        elif isinstance(node, ast.Import):
            imports.extend(_Import(node.lineno, alias.name, guarded) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child, guarded or isinstance(node, ast.Try))

    visit(ast.parse(text), False)
    return imports
