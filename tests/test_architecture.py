"""The layers that ARCHITECTURE.md draws: a module imports only what lies below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("featurecache", "fusion_train")


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """Project modules that a file names in any import statement, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES}


GRAPH = {name: imports(path) - {name} for name, path in MODULES.items()}


def test_there_is_no_cycle():
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, "cycle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name not in state:
            state[name] = 1
            for other in sorted(GRAPH[name]):
                visit(other, (*trail, name))
            state[name] = 2

    for name in sorted(GRAPH):
        visit(name, ())


def offending(who: str, what: tuple[str, ...]) -> list[str]:
    """Imports of modules under `who` that lead to modules under any of `what`."""
    return [
        f"{name} imports {other}"
        for name in sorted(GRAPH)
        if name == who or name.startswith(who + ".")
        for other in sorted(GRAPH[name])
        if any(other == below or other.startswith(below + ".") for below in what)
    ]


LAYERS = {
    "featurecache": (
        ("machine", "outside_text", "views", "interrupt"),
        ("errors",),
        ("extras", "project", "spec", "tables", "terminal"),
        ("files",),
        ("console",),
        ("console_project",),
        ("clips", "encoders"),
        ("store", "testing"),
        ("", "media"),
        ("extract",),
        ("engines", "explore"),
        ("maintenance",),
        ("importers",),
        ("cli",),
        ("__main__",),
    ),
    "fusion_train": (
        ("", "documents", "errors", "metric_lines", "seeding", "report"),
        ("metrics", "models", "processes", "yaml_settings"),
        ("checkpoint", "prompts", "statistics", "testing"),
        ("config", "remote"),
        ("data", "presets"),
        ("llm", "run"),
        ("planning", "run_context"),
        ("evaluation",),
        ("predict", "training"),
        ("export", "released", "sweeps"),
        ("folds", "quick", "search"),
        ("cli",),
        ("__main__",),
    ),
}
"""Rooms of each package, lowest first; "" is the `__init__` of the package. Rooms of one layer are independent."""


def room_of(name: str) -> str:
    """`featurecache.store.writer` -> `store`."""
    return [*name.split("."), ""][1]


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_only_what_lies_below_them(package):
    floors = {room: floor for floor, rooms in enumerate(LAYERS[package]) for room in rooms}
    own = [name for name in GRAPH if name.split(".")[0] == package]
    assert {room_of(name) for name in own} == set(floors)
    upward = [
        f"{name} imports {other}"
        for name in own
        for other in sorted(GRAPH[name])
        if other.split(".")[0] == package
        and room_of(other) != room_of(name)
        and floors[room_of(other)] >= floors[room_of(name)]
    ]
    assert upward == []


def test_the_cache_knows_no_trainer():
    assert offending("featurecache", ("fusion_train",)) == []


def test_models_know_tensors_only():
    allowed = {"featurecache.errors", "fusion_train.errors"}
    others = {
        other
        for name in GRAPH
        if name.startswith("fusion_train.models")
        for other in GRAPH[name]
        if not other.startswith("fusion_train.models")
    }
    assert others <= allowed


def test_the_trainer_reads_stores_through_the_public_interface():
    """`featurecache.open_store`, the protocols, and the copying of rows."""
    public = {"featurecache.store.protocols", "featurecache.store.copying"}
    used = {
        other
        for name in GRAPH
        if name.startswith("fusion_train")
        for other in GRAPH[name]
        if other.startswith("featurecache.store")
    }
    assert used <= public


def test_only_command_lines_know_click():
    with_click = {
        name
        for name, path in MODULES.items()
        if any(line.startswith(("import click", "from click")) for line in path.read_text().splitlines())
    }
    assert not [name for name in with_click if name.split(".")[1].split("_")[0] not in ("cli", "console")]


def test_no_drawer_without_a_name():
    assert not [name for name in MODULES if name.rsplit(".", 1)[-1] in ("utils", "util", "common", "helpers", "base")]


def test_no_error_is_swallowed_by_a_broad_except():
    broad = []
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                reraised = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
                if caught in ("everything", "Exception", "BaseException") and not reraised:
                    broad.append(name)
    assert broad == []
