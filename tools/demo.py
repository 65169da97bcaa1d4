"""The whole road on a laptop: clips -> features -> training -> scores -> one model that answers on a raw clip.

    python tools/demo.py [--out demo] [--clips 480]

Every step is the command a user would type, run here and printed; the first line printed changes into the folder, so
that all lines with a "$" can be pasted into a shell, in order, from the folder where the demo was started. Nothing is
downloaded: the clips are drawn and spoken by `make_demo_clips.py`, the small encoders and language model are built by
`make_demo_models.py` in the checkpoint layouts of the real ones. A second run does only what is missing.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
from make_demo_clips import make_clips
from make_demo_models import make_models
from rich.text import Text

from featurecache.console import print_table
from featurecache.errors import FeatureCacheError
from featurecache.files.jsonl import require_objects
from featurecache.tables import Table
from featurecache.terminal import Screen

TOOLS = Path(__file__).resolve().parent
SHOWN = {"audio and video": None, "audio only": "audio", "video only": "image,video"}
"""What the model is shown when it is scored; video is what is visible: the peak frame and the sixteen others."""
ENCODERS = {"whisper": "models/whisper", "eva-global": "models/eva", "eva-temporal": "models/eva"}
WEIGHTS = [word for name, folder in ENCODERS.items() for word in ("--weights", f"{name}={folder}")]
TARGET = 0.75
"""Beyond what either modality tells alone, which is two thirds."""
CHANCE = 1 / 6

ASK = """import sys

from transformers import AutoModelForCausalLM, AutoProcessor
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
folder, clip, words = sys.argv[1:4]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
for task in ("emotion", "reason"):
    inputs = processor(video=clip, text=words, task=task)
    print(f"{task}: {processor.answers(model.generate(**inputs))[0]}")
"""


@dataclass
class Journey:
    """What was done, how long it took, where it lies."""

    folder: Path
    console: Screen
    parts: list[tuple[str, float, str]] = field(default_factory=list)

    @contextmanager
    def part(self, title: str, place: str) -> Iterator[None]:
        self.console.rule(Text(title, style="bold"))
        began = time.perf_counter()
        yield
        self.parts.append((title, time.perf_counter() - began, place))

    def run(self, *arguments: str) -> None:
        """Run one command, shown as typed; its failure ends the demo with its exit code."""
        shown = shlex.join("python" if part == sys.executable else self._short(part) for part in arguments)
        self.show(shown)
        done = subprocess.run(arguments, cwd=self.folder, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)

    def show(self, command: str) -> None:
        """Print one command."""
        self.console.print(Text(f"$ {command}", style="cyan"))

    def _short(self, argument: str) -> str:
        """Shorten a path of this checkout or of its environment to what works in the demo's folder."""
        path = Path(argument)
        if path.parent == TOOLS:
            return os.path.relpath(path, self.folder)
        return path.name if path.is_absolute() else argument

    def summary(self) -> Table:
        rows = [[title, f"{seconds:.1f}", place] for title, seconds, place in self.parts]
        rows.append(["in all", f"{sum(seconds for _, seconds, _ in self.parts):.1f}", ""])
        return Table(["part", "seconds", "where"], rows, "what was done", emphasised=frozenset({len(rows) - 1}))


@click.command(help=__doc__.split("\n")[0])
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--clips", "num_clips", default=480, show_default=True)
def main(out: Path, num_clips: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    journey = Journey(out, Screen())
    environment = os.path.relpath(Path(sys.executable).parent / "activate", out)
    journey.show(f"cd {shlex.quote(str(out))} && . {shlex.quote(environment)}")
    make_material(journey, num_clips)
    extract(journey)
    train(journey)
    hits = score(journey)
    write_report(journey)
    export(journey)
    ask(journey)
    draw(journey)
    print_table(journey.summary())
    print_hits(hits)
    print_next(journey)
    if hits["audio and video"] < TARGET:
        raise SystemExit(1)


def make_material(journey: Journey, num_clips: int) -> None:
    with journey.part("make clips", f"{journey.folder}/clips, clips.jsonl"):
        if not (journey.folder / "clips.jsonl").is_file():
            make_clips(journey.folder, num_clips)
        journey.console.print(f"{num_clips} mp4 files with faces and voices, six emotions")
    with journey.part("make small models", f"{journey.folder}/models"):
        if not (journey.folder / "models" / "llama" / "config.json").is_file():
            make_models(journey.folder / "models", corpus=journey.folder / "clips.jsonl")
        journey.console.print("whisper, eva and llama in the layouts of the real checkpoints")


def extract(journey: Journey) -> None:
    with journey.part("extract features", f"{journey.folder}/features.zarr"):
        named = [word for name in ENCODERS for word in ("--encoder", name)]
        journey.run(script("fcache"), "extract", *named, *WEIGHTS)


def train(journey: Journey) -> None:
    for stage in ("perception", "cognition"):
        with journey.part(f"train {stage}", f"{journey.folder}/runs/{stage}"):
            journey.run(script("fusion-train"), "--stage", stage, "--config", "demo", "--set", "model.llm=models/llama")


def score(journey: Journey) -> dict[str, float]:
    """Score the cognition run on the test split; returns the share of right answers by what was shown."""
    hits = {}
    with journey.part("score held-out clips", f"{journey.folder}/runs/cognition/predictions-*.jsonl"):
        for shown, modalities in SHOWN.items():
            chosen = ["--modalities", modalities] if modalities else []
            journey.run(script("fusion-train"), "eval", "--run", "runs/cognition", "--split", "test", *chosen)
            suffix = "-" + modalities.replace(",", "+") if modalities else ""
            rows = _rows(journey.folder / f"runs/cognition/predictions-test-emotion{suffix}.jsonl")
            hits[shown] = sum(row["prediction"] == row["reference"] for row in rows) / len(rows)
    return hits


def write_report(journey: Journey) -> None:
    with journey.part("write the report", f"{journey.folder}/runs/cognition/report.html"):
        journey.run(script("fusion-train"), "report", "runs/cognition")


def export(journey: Journey) -> None:
    with journey.part("export with encoders, check parity", f"{journey.folder}/model"):
        if (journey.folder / "model" / "certificate.json").is_file():
            journey.console.print("exported and certified before")
            return
        tool = str(TOOLS / "export_e2e.py")
        journey.run(sys.executable, tool, "--run", "runs/cognition", "--out", "model", *WEIGHTS)


def ask(journey: Journey) -> None:
    clip = next(row for row in _rows(journey.folder / "clips.jsonl") if row["split"] == "test")
    with journey.part("ask about a raw clip", f"{journey.folder}/{clip['video']}"):
        (journey.folder / "ask.py").write_text(ASK, encoding="utf-8")
        journey.console.print(f"{clip['video']}, labelled {clip['labels']['emotion']}; transformers alone:")
        journey.run(sys.executable, "ask.py", "model", clip["video"], clip["text"])
        journey.run(
            script("fusion-train"),
            "predict",
            "--model",
            "model",
            clip["video"],
            "--text",
            clip["text"],
            "--look",
            "pictures",
        )


def draw(journey: Journey) -> None:
    from fusion_train.evaluation.figures import draw_runs
    from fusion_train.metrics import classification_scores
    from fusion_train.run import Run

    with journey.part("draw the figure", f"{journey.folder}/figure.png"):
        runs = [Run(journey.folder / "runs" / stage) for stage in ("perception", "cognition")]
        rows = _rows(runs[-1].folder / "predictions-test-emotion.jsonl")
        scores = classification_scores(
            {row["id"]: row["reference"] for row in rows}, {row["id"]: row["prediction"] for row in rows}
        )
        draw_runs(runs, scores, "Demo: perception, then cognition", journey.folder / "figure.png")


def print_hits(hits: dict[str, float]) -> None:
    rows = [[shown, f"{share:.1%}"] for shown, share in {**hits, "chance": CHANCE}.items()]
    print_table(Table(["shown", "right"], rows, "held-out hit rate"))


def print_next(journey: Journey) -> None:
    """Print what a user may do next, from the folder where the demo was started."""
    folder = journey.folder
    journey.console.print("next:")
    for command, purpose in (
        (f"xdg-open {folder}/runs/cognition/report.html", "scores, curves and wrong clips"),
        (f"fusion-train predict --model {folder}/model CLIP.mp4", "ask about a clip of yours"),
        ("fusion-train quick CLIPS/ --labels labels.csv", "the same road with your own clips"),
    ):
        journey.console.print(Text(f"  {command}  # {purpose}"))


def script(name: str) -> str:
    """A command of the project, in the environment that runs this."""
    return str(Path(sys.executable).parent / name)


def _rows(path: Path) -> list[dict]:
    return require_objects(path, FeatureCacheError)


if __name__ == "__main__":
    main()
