"""Give an exported model's parts to other runtimes: torch.export, ONNX, a plain language model for prompt embeddings.

    python tools/export_runtimes.py --model my-model --out runtimes [--onnx]

What is written and what was not run: docs/guides/serving.md.
"""

from __future__ import annotations

from pathlib import Path

import click

from featurecache.console import OutputPath, TrainerTool, say


@click.command(cls=TrainerTool, context_settings={"max_content_width": 100})
@click.option("--model", "folder", type=click.Path(path_type=Path), required=True, help="Exported folder, merged.")
@click.option("--out", type=OutputPath("folder"), required=True, help="Folder to write.")
@click.option("--onnx/--no-onnx", default=False, help="Also ONNX (extra `onnx`).")
def main(folder: Path, out: Path, onnx: bool) -> None:
    """Write graphs of encoders and fusion, and the language model alone; fails where a graph differs.

    \b
    python tools/export_runtimes.py --model my-model --out runtimes --onnx
    """
    from fusion_train.export.runtimes import LARGEST_DIFFERENCE, write_runtimes
    from fusion_train.predict.opening import open_model

    found = write_runtimes(open_model(folder, "cpu"), out, onnx=onnx)
    for name, value in found.items():
        verdict = "ok" if value <= LARGEST_DIFFERENCE else f"MORE THAN {LARGEST_DIFFERENCE:.0e}"
        say(f"{name}: largest relative difference {value:.1e}, {verdict}")
    raise SystemExit(1 if any(not value <= LARGEST_DIFFERENCE for value in found.values()) else 0)


if __name__ == "__main__":
    main()
