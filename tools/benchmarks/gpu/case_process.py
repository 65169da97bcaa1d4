"""The process of one case: `python -m benchmarks.gpu.case_process CASE FOLDER [--tiny]`, started by `runner`.

It imports, makes the material that the case needs, waits on standard input for a line with the seconds it has, and
tells its figures part by part on standard output, each as a line of JSON. Before that line it uses no device: a context
would take memory from the case that is measured meanwhile. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks.gpu.cases import CASES, Skipped


def main(name: str, root: str, *options: str) -> None:
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**message: Any) -> None:
        print(json.dumps(message), file=channel, flush=True)

    from benchmarks.gpu.material import Material  # not above: processes that write recordings import this module too

    case = CASES[name]
    module = importlib.import_module(f"benchmarks.gpu.{case.module}")
    material = Material(Path(root), tiny="--tiny" in options)
    for need in case.needs:
        getattr(material, need)
    given = sys.stdin.readline()
    if not given:  # the runner is gone
        return
    material.deadline = time.monotonic() + float(given)
    tell(state="begun", device=material.device_name)
    try:
        for part, figures in module.measure(material, name):
            tell(state="measured", figures=figures, **({"part": part} if part else {}))
    except Skipped as reason:
        tell(state="skipped", reason=str(reason))
    except Exception as error:  # noqa: BLE001 -- every error of a case is its result
        traceback.print_exc()
        tell(state="failed", reason=" ".join(f"{type(error).__name__}: {error}".split())[:500])
    tell(state="done")


if __name__ == "__main__":
    main(*sys.argv[1:])
