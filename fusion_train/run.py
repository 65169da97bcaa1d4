"""A run's folder: what was asked, what was read, where its checkpoints are.

    runs/perception/
        config.yaml            the resolved configuration
        run.json               fingerprints and shapes of the features read, label sets, initial run, versions, halves
                               of the held-out clips where weights are kept per half, and the hashes of config.yaml,
                               of the clip list and of the files beside it
        metrics.jsonl          one line every `log.every` steps, one a scoring; see journal.py for the names
        tensorboard/
        checkpoints/step-00001000/{model,optimizer}.safetensors + state.json
        pool/                  the clips that are drawn from; see pool.py
        diverged/              a step whose loss was not finite: weights and clips for `fusion-train replay`
        finished.json          written last; a run without it can be resumed
        predictions-val.jsonl  every scored clip

No absolute path is written. The JSON documents carry a checksum (see `documents`), and so does every line of
`metrics.jsonl`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from pydantic import ConfigDict, TypeAdapter, ValidationError

from featurecache.files.lease import sole_writer
from featurecache.files.publish import make_folder, replace_bytes
from fusion_train.config import Config, validate
from fusion_train.data.answers import LabelSets
from fusion_train.documents import read_document, write_document
from fusion_train.errors import CheckpointError
from fusion_train.metric_lines import read_metrics
from fusion_train.models.token_streams import FeatureShapes
from fusion_train.yaml_settings import parse_yaml

LOCK = ".writer"


@dataclass(frozen=True)
class RunRecord:
    """What a run read and started from; everything that training, evaluation and export must agree on."""

    __pydantic_config__ = ConfigDict(extra="forbid")

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
    config_sha256: str | None = None
    """Of the bytes of `config.yaml`."""
    lists: Mapping[str, str] = field(default_factory=dict)
    """sha256 of the clip list (`clips`) and of the files laid over it, by their names in the configuration."""
    pool_sha256: str | None = None
    """Of the clips that are drawn from; see `data.pool`."""
    draw_rule: int = 1
    """Number of the rule by which its samples are drawn; see `data.samples`. Earlier releases did not write it."""
    list_changes: Sequence[Mapping[str, Any]] = ()
    """Changes of the lists that were accepted with --clips-changed: step, hashes before, clips that differ."""
    halves: Sequence[Sequence[str]] = ()
    """Held-out clips of each half, where the run keeps the weights that each half chooses; see `data.halves`."""
    callbacks: Mapping[str, str] = field(default_factory=dict)
    """The user's own code that took part in training: class name -> sha256 of its file."""


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
        """The sound lines of `metrics.jsonl`, in their order; numbers that were not finite are left out."""
        return read_metrics(self.metrics).rows

    def create(self, config: Config, record: RunRecord) -> None:
        """Write `config.yaml` and, last, `run.json`."""
        make_folder(self.folder)
        text = config.to_yaml().encode()
        replace_bytes(self.folder / "config.yaml", text)
        self.keep(replace(record, config_sha256=hashlib.sha256(text).hexdigest()))

    def keep(self, record: RunRecord) -> None:
        """Write `run.json`."""
        write_document(self.folder / "run.json", asdict(record))

    def finish(self, result: Mapping[str, Any]) -> None:
        write_document(self.folder / "finished.json", result)

    @property
    def result(self) -> dict[str, Any]:
        """Scores and timings of a finished run.

        Raises:
            CheckpointError: a damaged file.
        """
        path = self.folder / "finished.json"
        next_step = f"Delete it and go on: fusion-train resume {self.folder}; it is written again."
        found = read_document(path, CheckpointError, "the result of a run", next_step)
        if not isinstance(found.get("step"), int) or not isinstance(found.get("scores"), dict):
            raise CheckpointError(str(path), expected="a step and scores", got="none", next_step=next_step)
        return found

    def config(self) -> Config:
        """Read the resolved configuration back.

        Raises:
            CheckpointError: no run, or `config.yaml` is not as it was written.
            ConfigError: no valid configuration.
        """
        path, written = self.folder / "config.yaml", self.record().config_sha256
        try:
            text = path.read_bytes()
        except OSError as error:
            raise CheckpointError(str(path), expected="the run's configuration", got=error.strerror) from error
        if written is not None and hashlib.sha256(text).hexdigest() != written:
            raise CheckpointError(
                str(path),
                expected="the configuration that the run was started with",
                got="other bytes",
                next_step="Take the file from a copy. Other settings are another run: --out, and --init to start from "
                "this one.",
            )
        return validate(parse_yaml(text, str(path)), str(path))

    def record(self) -> RunRecord:
        """Read `run.json`.

        Raises:
            CheckpointError: no run, or a damaged file.
        """
        self._require()
        path = self.folder / "run.json"
        values = read_document(path, CheckpointError, "the record of a run")
        try:
            return TypeAdapter(RunRecord).validate_python(values)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
            raise CheckpointError(
                str(path),
                expected="the record of a run",
                got="other keys or values",
                next_step="Take the file from a copy.",
                problems=problems,
            ) from error

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the run as its only writer inside the block.

        Raises:
            WriteError: another process is writing it.
        """
        with sole_writer(self.folder / LOCK, str(self.folder)):
            yield

    def _require(self) -> None:
        if not self.exists:
            near = sorted(entry.parent.name for entry in self.folder.parent.glob("*/run.json"))
            raise CheckpointError(
                str(self.folder),
                expected="a run",
                got="no run.json" if self.folder.exists() else "no such folder",
                next_step=f"There are: {', '.join(near)}." if near else "Train one: fusion-train --stage perception.",
            )


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
            str(runs),
            expected=f"a finished run of stage {stage} to start from",
            got="none",
            next_step=f"Run fusion-train --stage {stage} first, name a run with --init RUN, or start afresh with "
            "--set init_stage=null.",
        )
    return max(found, key=lambda run: (run.folder / "finished.json").stat().st_mtime_ns)


def relative(location: str, folder: Path) -> str:
    """A path as seen from `folder`, so that a run can be moved with its data; a URL stays as it is."""
    return location if urlparse(location).scheme else Path(os.path.relpath(location, folder)).as_posix()


def absolute(location: str, folder: Path) -> str:
    """The inverse of `relative`."""
    return location if urlparse(location).scheme else os.path.normpath(folder / location)
