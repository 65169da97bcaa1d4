"""Copy the modules that an exported model runs, and all modules they import, flattened into one folder.

`featurecache.encoders.whisper` becomes `featurecache_encoders_whisper.py`, and `from featurecache.x import y` becomes
`from .featurecache_x import y`; every other line stays as in the code that trained the model. Modules of this project
are copied, and those of the packages that the run's encoders and fusion variant come from, with the licence files of
these packages. An encoder that is `required` is not copied: the copy imports its package and names the version that
the run used. `featurecache`, which that package imports, is then not copied either, so that there is one of it.

Imports are read from the syntax tree. From elsewhere only packages in `ALLOWED` may be imported, so that a machine
which only answers needs nothing else. This module is not copied itself, and knows no model.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path

from featurecache.encoders import encoder_entry_point
from fusion_train.errors import ExportError
from fusion_train.models.fusions import ENTRY_POINTS

REMOTE = "fusion_train.remote"
CHOSEN_FUSION = f"{REMOTE}.chosen_fusion"
CHOSEN_ENCODERS = f"{REMOTE}.chosen_encoders"
ENTRY_MODULES = ("configuration_emotion_llama", "modeling_emotion_llama", "processing_emotion_llama")
PROBE_ENTRY_MODULES = ("configuration_emotion_probe", "modeling_emotion_probe", "processing_emotion_probe")
"""Modules of `REMOTE` that `auto_map` names; they keep their short names."""
CACHE = "featurecache"
PROJECT = (CACHE, "fusion_train")
PACKAGES = ("torch", "transformers", "huggingface_hub", "av", "numpy", "PIL", "safetensors", "tokenizers")
"""What a machine that only answers has; transformers brings huggingface_hub, safetensors and tokenizers."""
ALLOWED = frozenset(PACKAGES) | sys.stdlib_module_names
ALLOWED_WORDS = "the project, the standard library, torch, transformers, PyAV, NumPy, Pillow"
LICENCE_FILE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|AUTHORS)", re.IGNORECASE)


@dataclass(frozen=True)
class Package:
    """The installed package that an entry point belongs to."""

    point: EntryPoint
    root: str
    """Top-level name of its modules."""

    @classmethod
    def of(cls, point: EntryPoint) -> Package:
        return cls(point, point.module.partition(".")[0])

    @property
    def is_ours(self) -> bool:
        return self.root in PROJECT

    @property
    def distribution(self) -> Distribution | None:
        """None if the module was not installed as a package."""
        return self.point.dist

    @property
    def requirement(self) -> str:
        """Return the package and its version, as pip reads it: `featurecache-log-mel==0.1.0`."""
        return f"{self.distribution.name}=={self.distribution.version}" if self.distribution else self.root

    def licences(self) -> dict[str, str]:
        """Return file name in an exported folder -> text of the package's licence files."""
        distribution = self.distribution
        if distribution is None:
            return {}
        licences = {}
        for path in distribution.files or ():
            if LICENCE_FILE.match(path.name) and path.parts[0].endswith((".dist-info", ".egg-info")):
                name = "-".join(part for part in path.parts[1:] if part != "licenses")
                text = Path(str(path.locate())).read_text(encoding="utf-8", errors="replace")
                licences[f"{distribution.name}.{name}"] = text
        return licences


@dataclass(frozen=True)
class _Import:
    node: ast.ImportFrom | ast.Import
    module: str
    """Full name of the imported module."""
    guarded: bool
    """Whether it is inside `try`, so that the package may be missing."""


def encoder_package(name: str) -> Package:
    """Return the package of a registered encoder.

    Raises:
        EncoderError: no encoder of this name, or several.
    """
    return Package.of(encoder_entry_point(name))


def vendored_code(
    fusion: str,
    encoders: Collection[str] = (),
    required: Collection[str] = (),
    entry_modules: Sequence[str] = ENTRY_MODULES,
) -> dict[str, str]:
    """Return file name -> text of every module and licence that an exported model needs.

    Args:
        fusion: name of the fusion variant.
        encoders: names of the encoders.
        required: those of them whose package is named and not copied.

    Raises:
        EncoderError: an encoder is not installed.
        ExportError: the variant is not installed, a module imports a package that is not allowed, or the package of a
            copied encoder has no licence file.
    """
    variant = _variant_package(fusion)
    packages = {name: encoder_package(name) for name in encoders}
    copied = {name: package for name, package in packages.items() if name not in required}
    sources = {
        CHOSEN_FUSION: _chosen_fusion(fusion, variant),
        CHOSEN_ENCODERS: _chosen_encoders(packages, required),
    }
    roots = {*PROJECT, variant.root, *(package.root for package in copied.values())}
    if required:
        roots.remove(CACHE)
    files = _modules([f"{REMOTE}.{name}" for name in entry_modules], sources, roots)
    for name, package in copied.items():
        files |= refuse_without_licence(name, package)
    files |= {} if variant.is_ours else variant.licences()
    return dict(sorted(files.items()))


def refuse_without_licence(name: str, package: Package) -> dict[str, str]:
    """Return the licence files of a copied encoder's package; empty for an encoder of this project.

    Raises:
        ExportError: it has none, so that nobody knows whether its code may be copied.
    """
    licences = {} if package.is_ours else package.licences()
    if not licences and not package.is_ours:
        raise ExportError(
            f'encoder "{name}"',
            expected="a package with a licence file, to copy its code",
            got=f"{package.requirement} without one" if package.distribution else f"no package, only {package.root}",
            next_step="Add a LICENSE file to the package and install it again, or name the package instead of copying "
            f"its code: --require {name}.",
        )
    return licences


def refuse_uncopied(name: str) -> None:
    """Raise EncoderError or ExportError if the code of an encoder cannot be copied; encoders of this project can."""
    package = encoder_package(name)
    if not package.is_ours:
        _modules([package.point.module], {}, {*PROJECT, package.root})
        refuse_without_licence(name, package)


def refuse_uncopied_variant(name: str) -> None:
    """Raise ExportError if the code of a fusion variant cannot be copied; variants of this project can."""
    package = _variant_package(name)
    if not package.is_ours:
        _modules([package.point.module], {}, {*PROJECT, package.root})


def flat_name(module: str) -> str:
    """Return the flat name of a module: `featurecache_encoders_whisper`; entry modules keep their short names."""
    short = module.removeprefix(f"{REMOTE}.")
    return short if short in (*ENTRY_MODULES, *PROBE_ENTRY_MODULES) else module.replace(".", "_")


def _variant_package(name: str) -> Package:
    points = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if not points:
        raise ExportError(
            "model.fusion.name",
            expected="an installed variant",
            got=f'"{name}"',
            next_step="Install the package that the run was trained with.",
        )
    return Package.of(points[0])


def _chosen_fusion(name: str, package: Package) -> str:
    """Return the text of a module that builds the variant."""
    return f'''"""The fusion variant of this model: {name}. Written by the exporter."""

from __future__ import annotations

from {package.point.module} import {package.point.attr} as build


def chosen_fusion(name, dims, **options):
    """Build the variant for modalities of these widths; `name` is "{name}"."""
    return build(tuple(dims), **options)
'''


def _chosen_encoders(packages: dict[str, Package], required: Collection[str]) -> str:
    """Return the text of a module that has the class of every encoder."""
    imports, entries = [], []
    for number, (name, package) in enumerate(packages.items()):
        outer, _, inner = package.point.attr.partition(".")
        statement = f"from {package.point.module} import {outer} as encoder_{number}"
        imports.append(_required_import(name, package, statement) if name in required else statement)
        entries.append(f"    {name!r}: encoder_{number}{'.' + inner if inner else ''},")
    return "\n".join(
        [
            '"""The encoders of this model. Written by the exporter."""',
            "",
            "from __future__ import annotations",
            "",
            *imports,
            "",
            "ENCODERS = {",
            *entries,
            "}",
            "",
            "",
            "def chosen_encoder(name):",
            '    """Return the class of an encoder of this model."""',
            "    return ENCODERS[name]",
            "",
        ]
    )


def _required_import(name: str, package: Package, statement: str) -> str:
    """Return lines that import an encoder from its own package, or say which package and version is missing."""
    distribution = package.distribution
    needed = f'the encoder "{name}" of {package.requirement}'
    lines = [
        "try:",
        f"    {statement}",
        "except ImportError as error:",
        f"    raise ImportError({f'This model needs {needed}: pip install {package.requirement}.'!r}) from error",
    ]
    if distribution is not None:
        lines += [
            "import logging",
            "from importlib.metadata import PackageNotFoundError, version",
            "",
            "try:",
            f"    installed = version({distribution.name!r})",
            "except PackageNotFoundError:  # imported from a folder",
            "    installed = None",
            f"if installed not in (None, {distribution.version!r}):",
            "    logging.getLogger(__name__).warning(",
            f"        {f'This model was measured with {needed}; installed is %s.'!r}, installed",
            "    )",
        ]
    return "\n".join(lines)


def _modules(entry: Sequence[str], sources: dict[str, str], roots: Collection[str]) -> dict[str, str]:
    """Return file name -> text of the modules and of all that they import from packages in `roots`."""
    pending = list(entry)
    files: dict[str, str] = {}
    done: dict[str, str] = {}
    while pending:
        module = pending.pop()
        if module in done.values():
            continue
        name = f"{flat_name(module)}.py"
        if name in done:
            raise ExportError(name, expected="one module of this name", got=f"{done[name]} and {module}")
        done[name] = module
        text = sources.get(module)
        files[name], needed = _rewritten(module, text if text is not None else _source(module), roots)
        pending += needed
    return files


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ExportError(module, expected="a module in Python", got="none that can be copied")
    return Path(spec.origin).read_text(encoding="utf-8")


def _rewritten(module: str, text: str, roots: Collection[str]) -> tuple[str, list[str]]:
    """Return a module's text with the imports of copied modules made relative, and the copied modules it imports."""
    lines = text.splitlines(keepends=True)
    needed: list[str] = []
    problems: list[str] = []
    for statement in sorted(_imports(module, text), key=_position, reverse=True):  # later lines keep their numbers
        line, root = statement.node.lineno, statement.module.partition(".")[0]
        if root in roots:
            replaced = _relative(statement, lines, needed)
            if not replaced:
                problems.append(f"{module}, line {line}: write `from {statement.module} import …`")
        elif root not in (*ALLOWED, CACHE) and not statement.guarded:
            problems.append(f"{module}, line {line}: imports {statement.module}")
    if problems:
        raise ExportError(
            module,
            expected=f"imports of {ALLOWED_WORDS}",
            got=f"{len(problems)} others",
            next_step="Keep what an exported model runs in modules without further imports"
            + (", or name the encoder's package with --require NAME." if not set(roots) <= set(PROJECT) else "."),
            problems=problems[::-1],
        )
    return "".join(lines), needed[::-1]


def _relative(statement: _Import, lines: list[str], needed: list[str]) -> bool:
    """Make an import of a copied module relative, in place, and add the modules to `needed`; False if it cannot be."""
    node, module = statement.node, statement.module
    if isinstance(node, ast.Import):
        return False
    first = node.lineno - 1
    submodules = [alias for alias in node.names if _is_package(module) and _is_module(f"{module}.{alias.name}")]
    if not submodules:
        needed.append(module)
        before, after = lines[first][: node.col_offset], lines[first][node.col_offset :]
        after, count = re.subn(r"^from\s+[.\w]+\s+import\b", f"from .{flat_name(module)} import", after)
        lines[first] = before + after
        return bool(count)
    # `from package import module`: transformers finds files by lines `from .NAME import` only.
    indent = lines[first][: node.col_offset]
    if indent.strip():
        return False
    written = []
    for alias in node.names:
        name, shown = f"{module}.{alias.name}", alias.asname or alias.name
        if alias in submodules:
            needed.append(name)
            written.append(f"from .{flat_name(name)} import __name__ as _name  # noqa: F401")
            written.append(f"from . import {flat_name(name)} as {shown}")
        else:
            needed.append(module)
            written.append(f"from .{flat_name(module)} import {alias.name} as {shown}")
    lines[first : node.end_lineno] = [f"{indent}{text}\n" for text in written]
    return True


def _position(statement: _Import) -> tuple[int, int]:
    return statement.node.lineno, statement.node.col_offset


def _is_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def _imports(module: str, text: str) -> Iterator[_Import]:
    """Yield all imports of a module, also those inside functions."""
    package = module if _is_package(module) else module.rpartition(".")[0]

    def visit(node: ast.AST, guarded: bool) -> Iterator[_Import]:
        if isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            yield _Import(node, importlib.util.resolve_name(relative, package or module), guarded)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield _Import(node, alias.name, guarded)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, guarded or isinstance(node, ast.Try))

    return visit(ast.parse(text), False)
