"""A run's folder: what was asked, what was read, where its checkpoints are.

    runs/perception/
        config.yaml            the resolved configuration
        run.json               fingerprints and shapes of the features read, label sets, initial run, versions
        metrics.jsonl          one line every `log.every` steps, one a scoring; see journal.py for the names
        tensorboard/
        checkpoints/step-00001000/{model,optimizer}.safetensors + state.json
        pool/                  the clips that are drawn from; see pool.py
        diverged/              a step whose loss was not finite: weights and clips for `fusion-train replay`
        finished.json          written last; a run without it can be resumed
        predictions-val.jsonl  every scored clip

No absolute path is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import yaml

from featurecache.jsonl import read_objects
from featurecache.store.publish import make_folder, replace_bytes
from fusion_train.config import Config, validate
from fusion_train.data.samples import LabelSets
from fusion_train.errors import CheckpointError
from fusion_train.models.streams import FeatureShapes


@dataclass(frozen=True)
class RunRecord:
    """What a run read and started from; everything that training, evaluation and export must agree on."""

    store: str
    """As given on the command line."""
    clips: str
    fingerprints: Mapping[str, str]
    """Modality -> fingerprint of its feature."""
    shapes: FeatureShapes
    label_sets: LabelSets
    initial: Mapping[str, Any] | None = None
    """The run whose trained weights this one started from: name, step and sha256 of the weights."""
    versions: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        values = json.loads(text)
        shapes = {name: None if shape is None else tuple(shape) for name, shape in values.pop("shapes").items()}
        return cls(shapes=FeatureShapes(**shapes), **values)


class Run:
    """One run's folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def exists(self) -> bool:
        return (self.folder / "run.json").is_file()

    @property
    def finished(self) -> bool:
        return (self.folder / "finished.json").is_file()

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def pool(self) -> Path:
        return self.folder / "pool"

    @property
    def diverged(self) -> Path:
        return self.folder / "diverged"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def metric_rows(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` that are whole, in their order; numbers that were not finite are left out."""
        if not self.metrics.is_file():
            return []
        rows = (row for _, row in read_objects(self.metrics, torn=True) if not isinstance(row, str))
        return [{key: value for key, value in row.items() if value is not None and value == value} for row in rows]

    def create(self, config: Config, record: RunRecord) -> None:
        """Write `config.yaml` and, last, `run.json`."""
        make_folder(self.folder)
        replace_bytes(self.folder / "config.yaml", config.to_yaml().encode())
        replace_bytes(self.folder / "run.json", record.to_json().encode())

    def finish(self, result: Mapping[str, Any]) -> None:
        replace_bytes(self.folder / "finished.json", (json.dumps(result, indent=2) + "\n").encode())

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.folder / "finished.json").read_text())

    def config(self) -> Config:
        """Read the resolved configuration back."""
        self._require()
        return validate(yaml.safe_load((self.folder / "config.yaml").read_text()), str(self.folder / "config.yaml"))

    def record(self) -> RunRecord:
        self._require()
        return RunRecord.from_json((self.folder / "run.json").read_text())

    def _require(self) -> None:
        if not self.exists:
            near = sorted(entry.parent.name for entry in self.folder.parent.glob("*/run.json"))
            raise CheckpointError(
                str(self.folder), expected="a run", got="no run.json" if self.folder.exists() else "no such folder",
                next_step=f"There are: {', '.join(near)}." if near else "Train one: fusion-train --stage perception.",
            )  # fmt: skip


def latest_finished(runs: Path, stage: str) -> Run:
    """The finished run of a stage that ended last, among the folders in `runs`.

    Raises:
        CheckpointError: there is none.
    """
    found = [
        Run(marker.parent) for marker in runs.glob("*/finished.json") if Run(marker.parent).config().stage == stage
    ]
    if not found:
        raise CheckpointError(
            str(runs), expected=f"a finished run of stage {stage} to start from", got="none",
            next_step=f"Run fusion-train --stage {stage} first, name a run with --init RUN, or start afresh with "
            "--set init_stage=null.",
        )  # fmt: skip
    return max(found, key=lambda run: (run.folder / "finished.json").stat().st_mtime_ns)


def relative(location: str, folder: Path) -> str:
    """A path as seen from `folder`, so that a run can be moved with its data; a URL stays as it is."""
    return location if urlparse(location).scheme else Path(os.path.relpath(location, folder)).as_posix()


def absolute(location: str, folder: Path) -> str:
    """The inverse of `relative`."""
    return location if urlparse(location).scheme else os.path.normpath(folder / location)
