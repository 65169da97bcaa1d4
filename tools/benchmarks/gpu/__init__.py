"""Everything that only a GPU can show, in one command that fits ten minutes: LLaMA2-7B, Whisper and EVA shapes.

Each case runs in a process of its own, in order of worth, and its figures are written to OUT/gpu.jsonl as soon as they
are known; what is cut off loses only the rest. Models have random weights and are made on the device; nothing is
downloaded. A second run with the same OUT adds to the file; ratios are formed from the newest figures of one device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.gpu.cases import CASES
from benchmarks.gpu.runner import run_cases
from featurecache.console import OutputPath

OPTIONS = [
    click.Option(
        ["--out"], type=OutputPath("folder"), required=True, help="Folder of gpu.jsonl and gpu.log; made if missing."
    ),
    click.Option(["--minutes"], type=float, default=8.0, show_default=True, help="Time for all cases together."),
    click.Option(
        ["--only"],
        type=click.Choice(list(CASES)),
        multiple=True,
        metavar="CASE",
        help=f"May be repeated: {', '.join(CASES)}.  [default: all, in this order]",
    ),
    click.Option(["--tiny"], is_flag=True, help="Run the cases on a CPU with small sizes; the figures mean nothing."),
]


def measure(out: Path, minutes: float, only: tuple[str, ...], tiny: bool) -> dict[str, Any]:
    """Run the cases, and return the ratios and extrapolations that their figures allow."""
    chosen = [name for name in CASES if not only or name in only]
    return run_cases(chosen, out, minutes * 60, tiny=tiny)
