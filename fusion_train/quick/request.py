"""The request of a quick run and the record of its steps: `project.yaml` in its folder.

clips.jsonl  features.zarr  sweep.yaml  fusions/  predictions-test.jsonl  model/  answers-test.jsonl
report.html  featurecache.toml
project.yaml     the request, the encoders, and the command and seconds of each step; the same request goes on
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from featurecache.clips.clip_list import ClipList, load_clips
from featurecache.errors import ClipListError
from featurecache.files.publish import TEMPORARY_PREFIX, replace_bytes
from featurecache.project import FILE_NAME, project_text
from fusion_train.errors import ConfigError
from fusion_train.quick.encoder_choice import EncoderChoice
from fusion_train.yaml_settings import parse_yaml

RECORD = "project.yaml"
REQUEST, EARLIER_REQUEST = "request", "asked"
"""Key of the request in the record, and its name in earlier records."""
LISTING = "list clips"
"""Title of the first step."""
HEAD = "# Made by `fusion-train quick`. Each command can be repeated by itself, from the folder where it ran.\n"


@dataclass(frozen=True)
class QuickRequest:
    """The options of a quick run; the same request goes on with a folder, another one is refused."""

    source: str
    labels: str | None
    labels_sha256: str | None
    split: str
    group: str | None
    seed: int
    task: str
    weights: Mapping[str, str]
    model: str | None


@dataclass
class StepRecord:
    """A step that was begun."""

    command: str
    seconds: float = 0.0
    done: bool = False


@dataclass
class QuickRun:
    """The folder, the request and the steps of a quick run."""

    folder: Path
    request: QuickRequest
    encoders: Sequence[EncoderChoice]
    device: str
    steps: dict[str, StepRecord] = field(default_factory=dict)
    """By title, in the order in which they began."""

    @property
    def clips(self) -> Path:
        return self.folder / "clips.jsonl"

    @property
    def store(self) -> Path:
        return self.folder / "features.zarr"

    @property
    def fusions(self) -> Path:
        return self.folder / "fusions"

    @property
    def predictions(self) -> Path:
        return self.folder / "predictions-test.jsonl"

    @property
    def model(self) -> Path:
        """The exported folder."""
        return self.folder / "model"

    @property
    def answers(self) -> Path:
        """Answers of the exported folder to the raw test clips."""
        return self.folder / "answers-test.jsonl"

    @property
    def media_root(self) -> str:
        """The folder that the paths of the clip list are relative to, as the import chooses it."""
        inside = Path(os.path.abspath(self.request.source)).is_relative_to(os.path.abspath(self.folder))
        return str(self.folder) if inside else self.request.source

    def load_clips(self) -> ClipList:
        """Return the clip list of the run."""
        return load_clips(self.clips, self.media_root)

    @property
    def has_llm(self) -> bool:
        """Whether the language model is trained, and not probes."""
        return self.request.model is not None and self.device != "cpu"

    def write(self) -> None:
        """Publish the record."""
        document = {
            REQUEST: asdict(self.request),
            "device": self.device,
            "encoders": [asdict(choice) for choice in self.encoders],
            "steps": [{"title": title, **asdict(step)} for title, step in self.steps.items()],
        }
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)
        replace_bytes(self.folder / RECORD, (HEAD + text).encode())

    def discard(self) -> None:
        """Remove the clip list and the record, of a request that cannot be met, and the folder if it is empty then."""
        for path in (self.clips, self.folder / RECORD):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def file_hash(path: Path | None) -> str | None:
    """Return the sha256 of a table of labels, None if there is none."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None and path.is_file() else None


def open_record(folder: Path, request: QuickRequest) -> QuickRun | None:
    """Return the quick run of a folder, None if none began there.

    Raises:
        ConfigError: its request is another, or the folder holds other things.
    """
    path = folder / RECORD
    if not path.is_file():
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        others = [name for name in names if not name.startswith(TEMPORARY_PREFIX)]
        if others:
            raise ConfigError(
                f"--out {folder}",
                expected="a new folder, or that of a quick run",
                got="one with " + ", ".join(others[:3]),
                next_step="Name another.",
            )
        return None
    values: Any = parse_yaml(path.read_bytes(), str(path))
    steps = {step.pop("title"): StepRecord(**step) for step in values.get("steps") or []}
    if LISTING not in steps or not steps[LISTING].done:  # killed before there was anything to go on with
        return None
    before = values[REQUEST] if REQUEST in values else values[EARLIER_REQUEST]
    now = asdict(request)
    differing = [f"{key}: {before.get(key)} then, {now[key]} now" for key in now if before.get(key) != now[key]]
    if differing:
        raise ConfigError(
            str(folder),
            expected="the same request, to go on with it",
            got="another",
            next_step="Repeat the first one, or name a new folder: --out DIR.",
            problems=differing,
        )
    return QuickRun(
        folder,
        request,
        [EncoderChoice(**choice) for choice in values["encoders"]],
        values["device"],
        steps,
    )


def check_labels(clips: ClipList, task: str) -> None:
    """Raise ClipListError unless the clips can train and test a classifier of `task`."""
    labelled = [clip for clip in clips if isinstance(clip.labels.get(task), str)]
    by_split = Counter(clip.split for clip in labelled)
    trained = Counter(clip.labels[task] for clip in labelled if clip.split == "train")
    if not labelled:
        raise ClipListError(
            "quick",
            expected=f"clips with a label of {task}",
            got=f"none of {len(clips)}",
            next_step="Name a table with --labels, or put the clips of each class in a folder of its own.",
        )
    if len(trained) < 2:
        raise ClipListError(
            "quick",
            expected=f"two classes of {task} or more in train",
            got=", ".join(f"{name} ({count})" for name, count in trained.items()) or "none",
            next_step="Label clips of another class.",
        )
    missing = [split for split in ("val", "test") if not by_split[split]]
    if missing:
        raise ClipListError(
            "quick",
            expected="labelled clips in train, val and test",
            got=f"none in {' and '.join(missing)} ({len(labelled)} labelled clips)",
            next_step="Add clips, or other shares: --split 50/25/25.",
        )


def write_project_file(run: QuickRun) -> None:
    """Write `featurecache.toml` into the folder, so that commands there need no options; one that is there stays."""
    path = run.folder / FILE_NAME
    if path.exists():
        return

    def seen(place: str) -> str:
        return str(Path(place).absolute()) if Path(place).exists() else place

    values = {
        "media_root": str(Path(run.media_root).absolute()),
        "model": seen(run.request.model) if run.request.model else None,
        "encoders": tuple(choice.encoder for choice in run.encoders),
        "weights": {choice.encoder: seen(choice.weights) for choice in run.encoders},
    }
    replace_bytes(path, project_text(values).encode())
