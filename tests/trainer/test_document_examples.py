"""The examples of the documentation run: Python blocks page by page, and the commands of the first steps in order."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from documents import Block, blocks, blocks_of, commands, program
from exporting import ENCODERS, Trained
from recordings import sine, write_clip

from fusion_train.export.export_run import ExportSources, export_run

ROOT = Path(__file__).parents[2]
SPLITS = (("train", 8), ("val", 4), ("test", 4))
SMALL = ("model.llm_dtype=float32", "model.lora.r=4", "model.fusion.hidden=[16, 8]", "model.fusion.out_dim=16",
         "optim.batch_size=4", "optim.micro_batch_size=2", "optim.precision=fp32", "log.peak_tflops=1")  # fmt: skip
NOT_RUN = ("pip", "fusion-train demo", "make", "git")
"""What changes the environment, serves a page without end, or is a test of its own."""

pytestmark = [pytest.mark.slow, pytest.mark.extra, pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Place:
    """A folder with what the pages name: clips, a store's checkpoints, an exported model."""

    folder: Path
    whisper: Path
    eva: Path
    llama: Path

    def adapted(self, words: list[str]) -> list[str]:
        """A command of a page with small checkpoints and few steps in place of the published ones."""
        words = [str(self.whisper) if word == "openai/whisper-base" else word for word in words]
        name = " ".join(words[:2])
        if name == "fusion-train quick":
            words += ["--weights", f"whisper={self.whisper}", "--weights", f"eva-global={self.eva}", "--yes"]
        elif name in ("fcache plan", "fcache extract") and "--weights" not in words:
            checkpoints = zip(ENCODERS, (self.whisper, self.eva, self.eva), strict=True)
            words += [word for encoder, path in checkpoints for word in ("--weights", f"{encoder}={path}")]
        elif name == "fusion-train --stage":
            probe = words[2] == "probe"
            own = ["optim.steps=20"] if probe else [*SMALL, "optim.steps=2", f"model.llm={self.llama}"]
            words += [word for setting in own for word in ("--set", setting)]
        elif name == "fusion-train plan":
            words += ["--set", f"model.llm={self.llama}"]
        elif name == "fusion-train export":
            checkpoints = zip(ENCODERS, (self.whisper, self.eva, self.eva), strict=True)
            words += [word for encoder, path in checkpoints for word in ("--weights", f"{encoder}={path}")]
        return words


@pytest.fixture(scope="module")
def place(tmp_path_factory, whisper_folder: Path, eva_folder: Path, llama: Path) -> Place:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "clips").mkdir()
    lines = []
    for number, split in enumerate(split for split, count in SPLITS for _ in range(count)):
        video, label = f"clips/a{number}.mp4", ("happy", "sad", "angry")[number % 3]
        write_clip(folder / video, num_frames=8, sound=sine(1.0, 200.0 + 20 * number))
        entry = {"id": f"a{number}", "video": video, "text": f"Number {number}.", "split": split}
        lines.append(json.dumps(entry | {"labels": {"emotion": label}, "responses": {"reason": f"It is {label}."}}))
    (folder / "clips.jsonl").write_text("\n".join(lines) + "\n")
    rows = [json.loads(line) for line in lines]
    table = ["file,label", *(f"{row['id']},{row['labels']['emotion']}" for row in rows)]
    (folder / "labels.csv").write_text("\n".join(table) + "\n")
    shutil.copyfile(folder / "clips/a1.mp4", folder / "clip.mp4")
    return Place(folder, whisper_folder, eva_folder, llama)


@pytest.fixture
def _in_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)


def run(words: list[str]) -> str:
    """Run one command of a page in this process; its exit code must be 0."""
    name, arguments = (" ".join(words[:2]), words[2:]) if words[0] == "python" else (words[0], words[1:])
    result = CliRunner().invoke(program(name), arguments)
    assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}\n{result.exception!r}"
    return result.output


def runnable(page: str) -> Iterator[list[str]]:
    for block in blocks_of(ROOT / page):
        if block.language == "sh" and not block.unchecked:
            yield from (words for words in commands(block.text) if not " ".join(words).startswith(NOT_RUN))


@pytest.mark.usefixtures("_in_place")
def test_the_first_steps_lead_from_clips_to_answers(place: Place) -> None:
    done = [words[:2] for words in runnable("docs/start.md") if run(place.adapted(words)) is not None]
    assert ["fcache", "extract"] in done
    assert ["fusion-train", "export"] in done
    assert len(done) > 12
    assert (place.folder / "answers.jsonl").read_text().count("\n") == sum(count for _, count in SPLITS)


@pytest.fixture
def material(
    trained: Trained, exported: Path, exported_probe: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What Python blocks name: a store with a clip a1, an exported model, an adapter and its checkpoints."""
    monkeypatch.chdir(tmp_path)
    adapter = trained.folder / "my-adapter"
    if not adapter.exists():
        export_run(trained.run, adapter, trained.weights, ExportSources(adapter=True), say=lambda _: None)
    names = {"my-model": exported, "my-adapter": adapter, "llama-2-7b-chat": llama, "features.zarr": None}
    names |= {"my-probe": exported_probe}
    names |= {"whisper-large-v3": Path(trained.weights["whisper"]), "eva-vit-g": Path(trained.weights["eva-global"])}
    for name, target in names.items():
        (tmp_path / name).symlink_to(target or trained.folder / "features.zarr")
    shutil.copyfile(trained.video("t1"), tmp_path / "clip.mp4")
    return tmp_path


PYTHON = [block for block in blocks("python") if not block.unchecked]


@pytest.mark.usefixtures("material")
@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_the_python_blocks_of_a_page_run_one_after_another(page: str) -> None:
    names: dict[str, object] = {}
    own: list[Block] = [block for block in PYTHON if block.page == page]
    for block in own:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(block.text, str(block), "exec"), names)
    assert own
