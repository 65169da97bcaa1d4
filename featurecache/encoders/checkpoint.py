"""Load one network of a Hugging Face checkpoint strictly: from a folder or from the hub, in safetensors.

Only tensors under one prefix are read, so the vision tower of a BLIP-2 checkpoint, or the encoder of Whisper, loads
without the language model in the same checkpoint. The checkpoint must hold every tensor of the network in its shape,
and no other under the prefix, so no tensor keeps its random initialisation. Pickled weights (`pytorch_model.bin`) are
not read. This module also reads the options of encoders (`read_options`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from featurecache.encoders.hub import hub_answers, looks_local, no_answer, unfetched, way_out
from featurecache.errors import EncoderError, WeightsError, suggest
from featurecache.files.hashing import file_sha256

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LAVIS_SUFFIX = ".pth"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hide progress bars and log lines of transformers inside the block; errors are still raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class Checkpoint:
    """A checkpoint folder or hub id; files of the hub are fetched when they are read."""

    def __init__(self, weights: str, encoder: str) -> None:
        self.weights, self.encoder = weights, encoder
        self._folder = Path(weights).expanduser()
        self._is_folder = self._folder.is_dir()
        self._looks_local = looks_local(weights)
        self.single_file = self._folder if self._folder.suffix == LAVIS_SUFFIX and self._folder.is_file() else None
        """The weight file, if the checkpoint is one file without a config.json (LAVIS' eva_vit_g.pth)."""
        if not self._is_folder and self._looks_local and self.single_file is None:
            raise self.error(
                expected="a checkpoint folder", got="a file" if self._folder.exists() else "no such folder"
            )

    def error(self, *, expected: str, got: str, problems: tuple[str, ...] | list[str] = ()) -> WeightsError:
        """Return an error about this checkpoint; its next step is always to name another checkpoint."""
        local_copy = f"Point --weights {self.encoder}=FOLDER to a local copy with config.json and *.safetensors."
        return WeightsError(
            f'{self.encoder}: weights "{self.weights}"',
            expected=expected,
            got=got,
            next_step=local_copy if self._is_folder or self._looks_local else way_out(f"--weights {self.encoder}="),
            problems=problems,
        )

    @property
    def provenance(self) -> dict[str, str]:
        """Origin of the weights without a path: the name of the folder, or the hub id."""
        if self.single_file is not None:
            return {"file": self.single_file.name}
        return {"folder": self._folder.resolve().name} if self._is_folder else {"hub": self.weights}

    def file(self, name: str, required: bool = False) -> Path | None:
        """Return a file of the checkpoint, fetched from the hub if necessary; None if the checkpoint has no such file.

        An absent file of the hub is distinguished from an unreachable hub only if the file is `required`.

        Raises:
            WeightsError: the hub cannot be reached or has no such model.
        """
        if self._is_folder:
            local_path = self._folder / name
            return local_path if local_path.is_file() else None
        from transformers.utils import cached_file

        answers = hub_answers()
        try:
            with quiet_transformers():
                path = cached_file(
                    self.weights,
                    name,
                    local_files_only=not answers,
                    _raise_exceptions_for_missing_entries=required,
                    _raise_exceptions_for_connection_errors=required,
                )
        except (OSError, ValueError) as error:
            got = str(error).strip().partition("\n")[0].rstrip(".") if answers else no_answer()
            raise unfetched(self.encoder, self.weights, got) from error
        return None if path is None else Path(path)

    def json(self, name: str) -> dict[str, Any]:
        """Return a JSON file of the checkpoint.

        Raises:
            WeightsError: it is missing or malformed.
        """
        path = self.file(name, required=True)
        if path is None:
            raise self.error(expected=f"a {name}", got="none")
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise self.error(expected=f"{name} to be JSON", got=str(error)) from error
        if not isinstance(value, dict):
            raise self.error(expected=f"{name} to hold an object", got=type(value).__name__)
        return value

    def files_of(self, prefixes: tuple[str, ...] = ("",)) -> dict[str, Path]:
        """Return the weight files that hold a tensor under one of the prefixes, by file name.

        Raises:
            WeightsError: a file is missing, or the weights are pickled.
        """
        if self.file(INDEX) is not None:
            weight_map = self.json(INDEX).get("weight_map") or {}
            names = sorted({file for key, file in weight_map.items() if key.startswith(prefixes)})
        else:
            names = [SINGLE]
        files = {name: self.file(name) for name in names if Path(name).name == name}
        absent = [name for name in names if files.get(name) is None]
        if absent or not names:
            got = (
                "no such file"
                if not (self._is_folder and list(self._folder.glob("*.bin")))
                else "pickled weights (*.bin)"
            )
            raise self.error(expected="weights in safetensors: " + ", ".join(absent or [SINGLE]), got=got)
        return {name: path for name, path in files.items() if path is not None}

    def load(self, network: torch.nn.Module, prefixes: tuple[str, ...]) -> dict[str, str]:
        """Fill `network` (built on the meta device) from the tensors under the first of `prefixes` that has any.

        An empty prefix stands for a checkpoint that holds only this network. Returns sha256 by weight file.

        Raises:
            WeightsError: tensors missing, unexpected or of another shape (all are named), or a damaged file.
        """
        files = self.files_of(prefixes)
        try:
            tensors, prefix = self._read(files, prefixes)
        except (SafetensorError, OSError) as error:
            raise self.error(expected="safetensors files that can be read", got=str(error)) from error
        self.fill(network, tensors, prefix)
        return {name: file_sha256(path) for name, path in files.items()}

    def fill(self, network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
        """Assign `tensors` to `network` in float32; errors name each tensor with `prefix` before its name.

        Raises:
            WeightsError: tensors missing, unexpected or of another shape; all are named.
        """
        expected = network.state_dict()
        problems = [f"missing: {prefix}{key}" for key in expected if key not in tensors]
        problems += [f"unexpected: {prefix}{key}" for key in tensors if key not in expected]
        problems += [
            f"shape of {prefix}{key}: expected {tuple(expected[key].shape)}, got {tuple(tensor.shape)}"
            for key, tensor in tensors.items()
            if key in expected and expected[key].shape != tensor.shape
        ]
        if problems:
            raise self.error(
                expected=f"every tensor of its config.json under {prefix or 'the top level'!r}",
                got=f"{len(problems)} problem{'s' if len(problems) > 1 else ''}",
                problems=problems,
            )
        network.load_state_dict({key: tensor.float() for key, tensor in tensors.items()}, strict=True, assign=True)

    @staticmethod
    def _read(files: Mapping[str, Path], prefixes: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], str]:
        """Return the tensors under the first prefix that any tensor has, without that prefix, and the prefix."""
        keys: set[str] = set()
        for path in files.values():
            with safe_open(path, framework="pt") as opened:
                keys.update(opened.keys())
        prefix = next((p for p in prefixes if any(key.startswith(p) for key in keys)), prefixes[0])
        tensors = {}
        for path in files.values():
            with safe_open(path, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  (not a mapping)
                    if key.startswith(prefix):
                        tensors[key.removeprefix(prefix)] = opened.get_tensor(key)
        return tensors, prefix


def holds_weights(place: str, hashes: Mapping[str, str]) -> bool:
    """Return whether a folder, or one weight file, has all files of these names and sha256; False for a hub id."""
    path = Path(place).expanduser()
    files = {name: path / name if path.is_dir() else path for name in hashes}
    if not files or not all(file.is_file() and file.name == name for name, file in files.items()):
        return False
    return all(file_sha256(file) == hashes[name] for name, file in files.items())


def read_options(encoder: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of an encoder: the user's `options`, and defaults for the others.

    Args:
        known: option -> rule. A whole number is the default of an option that takes whole numbers from 1; a word is the
            default of an option that takes words; a tuple holds the allowed words, the default first; None stands for
            a whole number without a default.

    Raises:
        EncoderError: an option that the encoder does not have, or a value that its rule does not allow.
    """
    for key, value in options.items():
        if key not in known:
            raise EncoderError(
                f"{encoder}.{key}",
                expected="one of its options: " + ", ".join(known),
                got="an unknown one",
                next_step=suggest(key, known).strip() or None,
            )
        rule = known[key]
        if isinstance(rule, tuple):
            if value not in rule:
                near = suggest(str(value), rule).strip() or None
                raise EncoderError(f"{encoder}.{key}", expected=" | ".join(rule), got=repr(value), next_step=near)
        elif isinstance(rule, str):
            if not isinstance(value, str):
                raise EncoderError(f"{encoder}.{key}", expected="a word", got=repr(value))
        elif type(value) is not int or value < 1:
            raise EncoderError(f"{encoder}.{key}", expected="a whole number from 1", got=repr(value))
    defaults = {key: rule[0] if isinstance(rule, tuple) else rule for key, rule in known.items()}
    return {**defaults, **options}
