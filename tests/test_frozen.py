"""Values that pass between modules are frozen: what a function was handed is what it still is when it returns."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
FILLED_IN = {
    "Batch",
    "Counts",
    "Inspection",
    "Learner",
    "Losses",
    "ModelOutput",
    "ProbeBatch",
    "Scored",
    "TrainingRun",
    "Opening",
}
"""Those that are filled in after they are made, or moved to a device."""
ROOMS = ("metrics", "data", "models", "training", "statistics")
FOLDERS = ["featurecache/files", "featurecache/store", *(f"fusion_train/{name}" for name in ROOMS)]
FILES = [path for folder in FOLDERS for path in sorted((PROJECT / folder).glob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_dataclasses_are_frozen(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
            made = [text for text in decorators if text.startswith("dataclass")]
            assert node.name in FILLED_IN or all("frozen=True" in text for text in made), node.name
