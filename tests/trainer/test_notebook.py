"""The example notebook runs from its first to its last cell, and is kept without outputs."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import pytest

from fusion_train.run import Run

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_holds_no_outputs():
    assert [cell["id"] for cell in code_cells() if cell["outputs"] or cell["execution_count"] is not None] == []


def test_each_import_of_the_notebook_can_be_made():
    for cell in code_cells():
        tree = ast.parse("".join(cell["source"]))
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(imports, []), str(NOTEBOOK), "exec"), {})


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs_on_a_store_in_the_places_of_the_demo(material, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    shutil.copytree(material / "features.zarr", tmp_path / "demo" / "features.zarr")
    shutil.copy(material / "clips.jsonl", tmp_path / "demo" / "clips.jsonl")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "optim.steps=200" in text
    notebook = nbformat.reads(text.replace("optim.steps=200", "optim.steps=50"), as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "v03: absent, no audio stream" in printed
    assert "of the nearest clips have the label of the clip" in printed
    run = Run(tmp_path / "runs" / "notebook-probe")
    assert run.config().optim.steps == 50
    assert (run.folder / "finished.json").is_file()
