"""The folder of a run: configuration, record of what was read, metrics and checkpoints.

    runs/perception/
        config.yaml            the resolved configuration
        run.json               fingerprints and shapes of the features, label sets, initial run, versions, both halves
                               of the held-out clips if weights are kept per half, and the hashes of config.yaml, of
                               the clip list and of the files beside it
        metrics.jsonl          one line every `log.every` steps and one per validation; names: training.metrics_logger
        tensorboard/
        checkpoints/step-00001000/{model,optimizer}.safetensors + state.json
        pool/                  the clips from which samples are drawn; see data.pool
        diverged/              a step whose loss was not finite: weights and clips for `fusion-train replay`
        finished.json          written last; a run without it can be resumed
        predictions-val.jsonl  every scored clip

No absolute path is written. The JSON documents carry a checksum (`documents`), and so does every line of
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

from pydantic import ConfigDict

from featurecache.files.lease import sole_writer
from featurecache.files.publish import make_folder, replace_bytes
from fusion_train.config import Config, validate
from fusion_train.data.answers import LabelSets
from fusion_train.documents import read_document, validate_document, write_document
from fusion_train.errors import CheckpointError
from fusion_train.metric_lines import read_metrics
from fusion_train.models.token_streams import FeatureShapes
from fusion_train.yaml_settings import parse_yaml

LOCK = ".writer"


@dataclass(frozen=True)
class RunRecord:
    """What a run read and started from: all facts on which training, evaluation and export must agree."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    store: str
    """As given on the command line."""
    clips: str
    fingerprints: Mapping[str, str]
    """Modality -> fingerprint of its feature."""
    shapes: FeatureShapes
    label_sets: LabelSets
    initial: Mapping[str, Any] | None = None
    """Run whose trained weights this run started from: name, step and sha256 of the weights."""
    versions: Mapping[str, str] = field(default_factory=dict)
    config_sha256: str | None = None
    """sha256 of the bytes of `config.yaml`."""
    lists: Mapping[str, str] = field(default_factory=dict)
    """Name in the configuration -> sha256, of the clip list (`clips`) and of its exclusions and corrections."""
    pool_sha256: str | None = None
    """sha256 of the clips from which samples are drawn; see `data.pool`."""
    draw_rule: int = 1
    """Version of the rule by which samples are drawn; see `data.samples`. Earlier releases did not write it."""
    list_changes: Sequence[Mapping[str, Any]] = ()
    """Changes of the lists that the user accepted with --clips-changed: step, previous hashes, differing clips."""
    halves: Sequence[Sequence[str]] = ()
    """Held-out clips of each half, if the run keeps the weights that each half chooses; see `data.halves`."""
    callbacks: Mapping[str, str] = field(default_factory=dict)
    """The user's own code that took part in training: class name -> sha256 of its file."""
    rows: Mapping[str, Any] = field(default_factory=dict)
    """How the samples of a step are divided into rows, resolved for the device that the run began on: the fields of
    `data.loader.TokenBudget`. Empty for runs of earlier releases."""


class Run:
    """The folder of one run."""

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
        """Return the undamaged lines of `metrics.jsonl` in order, without numbers that were not finite."""
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
        """Write `finished.json`."""
        write_document(self.folder / "finished.json", result)

    @property
    def result(self) -> dict[str, Any]:
        """Scores and timings of a finished run.

        Raises:
            CheckpointError: a damaged file.
        """
        path = self.folder / "finished.json"
        next_step = f"Delete it and go on: fusion-train resume {self.folder}; it is written again."
        result = read_document(path, CheckpointError, "the result of a run", next_step)
        if not isinstance(result.get("step"), int) or not isinstance(result.get("scores"), dict):
            raise CheckpointError(str(path), expected="a step and scores", got="none", next_step=next_step)
        return result

    def config(self) -> Config:
        """Read the resolved configuration.

        Raises:
            CheckpointError: no run, or `config.yaml` was changed since it was written.
            ConfigError: an invalid configuration.
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
        expected = "the record of a run"
        values = read_document(path, CheckpointError, expected)
        return validate_document(values, RunRecord, path, CheckpointError, expected, "Take the file from a copy.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer of the run inside the block.

        Raises:
            WriteError: another process is writing it.
        """
        with sole_writer(self.folder / LOCK, str(self.folder)):
            yield

    def _require(self) -> None:
        """Raise CheckpointError if there is no run."""
        if not self.exists:
            other_runs = sorted(entry.parent.name for entry in self.folder.parent.glob("*/run.json"))
            raise CheckpointError(
                str(self.folder),
                expected="a run",
                got="no run.json" if self.folder.exists() else "no such folder",
                next_step=f"There are: {', '.join(other_runs)}."
                if other_runs
                else "Train one: fusion-train --stage perception.",
            )


def latest_finished(runs: Path, stage: str) -> Run:
    """Return the finished run of a stage that ended last, among the folders in `runs`.

    Raises:
        CheckpointError: no run of the stage is finished.
    """
    finished = [
        Run(marker.parent) for marker in runs.glob("*/finished.json") if Run(marker.parent).config().stage == stage
    ]
    if not finished:
        raise CheckpointError(
            str(runs),
            expected=f"a finished run of stage {stage} to start from",
            got="none",
            next_step=f"Run fusion-train --stage {stage} first, name a run with --init RUN, or start afresh with "
            "--set init_stage=null.",
        )
    return max(finished, key=lambda run: (run.folder / "finished.json").stat().st_mtime_ns)


def relative(location: str, folder: Path) -> str:
    """Return a path relative to `folder`, so that a run can be moved together with its data; a URL stays as it is."""
    return location if urlparse(location).scheme else Path(os.path.relpath(location, folder)).as_posix()


def absolute(location: str, folder: Path) -> str:
    """Return the path that `relative` made relative to `folder`."""
    return location if urlparse(location).scheme else os.path.normpath(folder / location)
