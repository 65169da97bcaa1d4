"""Lay the outputs of `make demo` and of README's commands into a clone, as small stand-ins of the same names and kinds.

    python tests/clone_outputs.py FOLDER    prints the entries of FOLDER that it made; what is there already is kept

An exported model and an environment hold Python files, which are not the project's own and follow no rule of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOREIGN_CODE = "import   demo, os\nimport no_such_module\nassert False, 'imported'\n"
"""Refused by the linter and the formatter, and an error on import."""
EXPORTED = ("__init__.py", "modeling_emotion_llama.py", "test_model.py")
WALK = ("clips.jsonl", "clips/a1.mp4", "features.zarr/zarr.json", "features.zarr/whisper/c/0/0/0",
        "runs/perception/run.json", "runs/perception/metrics.jsonl")  # fmt: skip
DEMO = (
    *WALK,
    "figure.png",
    "models/llama/config.json",
    "runs/cognition/run.json",
    *(f"model/{name}" for name in EXPORTED),
)
OUTPUTS = (
    *(f"demo/{name}" for name in DEMO),
    *(f"tools/demo/{name}" for name in DEMO),
    *WALK,
    *(f"my-model/{name}" for name in EXPORTED),
    "answers.jsonl",
    "archive.wds/whisper/00000000.tar",
    "notes.md",
    "wandb/latest-run/files/code.py",
    "mlruns/test_run.py",
    "venv/lib/python3.12/site-packages/test_site.py",
    ".venv-3.12/lib/python3.12/site-packages/test_site.py",
    "configs/runs/perception/run.json",
    "featurecache/features.zarr/zarr.json",
    "featurecache/archive.wds/whisper/00000000.tar",
)


def lay_outputs(folder: Path) -> list[str]:
    """Write the stand-ins below `folder`; returns the topmost paths that were not there before."""
    made: list[str] = []
    for name in OUTPUTS:
        path = folder / name
        if path.exists():
            continue
        new = [parent for parent in (*reversed(path.parents), path) if folder in parent.parents and not parent.exists()]
        made.append(new[0].relative_to(folder).as_posix())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(FOREIGN_CODE if path.suffix == ".py" else "{}\n", encoding="utf-8")
    return [name for name in dict.fromkeys(made) if not any(name.startswith(other + "/") for other in made)]


if __name__ == "__main__":
    print("\n".join(lay_outputs(Path(sys.argv[1]).resolve())))
