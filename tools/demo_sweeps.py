"""Features that the sweeps `tokens` and `encoders` compare, of the demo's clips; run after tools/demo.py.

    python tools/demo_sweeps.py [--out demo]

The commands are those that the sweep files say they need, on the demo's small encoders. A second run does only what is
missing.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import yaml
from demo import ENCODERS, Journey, script
from demo_encoders import make_hub_encoders

from featurecache.terminal import Screen

SWEEPS = Path(__file__).resolve().parents[1] / "configs" / "sweeps"
SMALL = {
    "facebook/hubert-large-ll60k": "models/hubert",
    "microsoft/wavlm-large": "models/wavlm",
    "openai/clip-vit-large-patch14-336": "models/clip",
    "MCG-NJU/videomae-large": "models/videomae",
}
"""Checkpoint that a sweep file names -> what stands for it here."""


@click.command(help=__doc__.split("\n")[0])
@click.option("--out", type=click.Path(path_type=Path, exists=True), default=Path("demo"), show_default=True)
def main(out: Path) -> None:
    if not (out / "models" / "videomae").is_dir():
        make_hub_encoders(out / "models", seed=0)
    journey = Journey(out, Screen())
    for sweep in ("tokens", "encoders"):
        with journey.part(f"features of the sweep {sweep}", f"{out}/features.zarr"):
            for command in commands(sweep):
                journey.run(*command)
    journey.console.print(journey.summary())
    places = f"--store {out}/features.zarr --clips {out}/clips.jsonl --set model.llm={out}/models/llama"
    journey.console.print(f"now: fusion-train sweep tokens --config demo {places}")


def commands(sweep: str) -> list[list[str]]:
    """What a shipped sweep needs, with the demo's encoders in the place of the published ones."""
    needs = yaml.safe_load((SWEEPS / f"{sweep}.yaml").read_text(encoding="utf-8"))["needs"].replace("\\\n", " ")
    found = []
    for line in needs.splitlines():
        if line.startswith("fcache "):
            for published, small in SMALL.items():
                line = line.replace(published, small)
            program, *arguments = shlex.split(line)
            weights = [
                word
                for name, folder in ENCODERS.items()
                if any(each.endswith(f"={name}") for each in arguments)
                for word in ("--weights", f"{name}={folder}")
            ]
            found.append([script(program), *arguments, *weights])
    return found


if __name__ == "__main__":
    main()
