"""The spec of a feature: a description of everything that determines its bytes, and the fingerprint of the spec.

A spec is frozen and holds encoder, sha256 of the weight files, architecture, output layer (`tap`), preprocessing,
pooling, dtypes and shape. Its fingerprint is the sha256 of its canonical JSON. It contains no path, time, host name or
pickle. `provenance` says where the weights came from (hub id, revision); it is not part of the fingerprint, because the
hash of the weights is more exact. This module knows no encoder, store or file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from featurecache.errors import SpecError, suggest

SPEC_FORMAT = 1
STORED_DTYPES = ("float16", "bfloat16", "float32", "int8", "float8")
STORED_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0, "float8": 1.0}
"""Bytes per stored number, without the scales of int8 and float8."""

Json = Any


def canonical_json(value: Json) -> str:
    """Return the one canonical text of a JSON value: sorted keys, no white space, ASCII.

    Raises:
        ValueError: the value contains NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True)
class Spec:
    """Everything that determines the bytes of one feature."""

    encoder: str
    """Registered name of the encoder, such as "whisper"."""
    implementation: int
    """Version of the encoder's code; an encoder increases it when a change of its arithmetic changes the tokens."""
    weights: Mapping[str, str]
    """sha256 of every weight file, by its name inside the checkpoint."""
    architecture: Mapping[str, Json]
    """Settings of the network that the weights do not determine: heads, norm epsilon, activation."""
    tap: Mapping[str, Json]
    """Output layer of the network: number of blocks that run, final norm."""
    preprocessing: Mapping[str, Json]
    """From media to network input: sampling rate, mel bins, frame rule, resize, mean and standard deviation."""
    pooling: Mapping[str, Json]
    """How T encoder tokens become K stored tokens."""
    compute_dtype: str
    stored_dtype: str
    shape: tuple[int, int]
    """(K, D)."""
    format: int = SPEC_FORMAT
    provenance: Mapping[str, Json] = field(default_factory=dict, compare=False)
    """Origin of the weights; not part of the fingerprint."""

    def __post_init__(self) -> None:
        if self.stored_dtype not in STORED_DTYPES:
            raise SpecError(
                "stored_dtype",
                expected=" | ".join(STORED_DTYPES),
                got=repr(self.stored_dtype),
                next_step=suggest(str(self.stored_dtype), STORED_DTYPES).strip() or None,
            )
        shape = tuple(int(size) for size in self.shape)  # JSON has it as a list
        if len(shape) != 2 or min(shape) < 1:
            raise SpecError("shape", expected="two positive numbers (K, D)", got=repr(shape))
        object.__setattr__(self, "shape", shape)

    def identity(self) -> dict[str, Json]:
        """Return all fingerprinted fields as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "provenance"}
        identity: dict[str, Json] = json.loads(canonical_json(values))
        return identity

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of `identity()`, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.identity()).encode("ascii")).hexdigest()

    def to_json(self) -> str:
        """Return the text that a store keeps: identity, fingerprint and provenance."""
        document = {**self.identity(), "provenance": dict(self.provenance), "fingerprint": self.fingerprint}
        return json.dumps(document, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, subject: str = "spec") -> Spec:
        """Read the text that `to_json` wrote.

        Raises:
            SpecError: not JSON, a missing or unknown field, or a fingerprint that differs from that of the fields.
        """
        try:
            document = json.loads(text)
            fingerprint = document.pop("fingerprint")
            spec = cls(**document)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SpecError(subject, expected="a spec of format 1", got=f"{type(error).__name__}: {error}") from error
        if spec.format != SPEC_FORMAT:
            raise SpecError(
                subject,
                expected=f"format {SPEC_FORMAT}",
                got=f"format {spec.format}",
                next_step="Install the release of featurecache that wrote it.",
            )
        if fingerprint != spec.fingerprint:
            raise SpecError(
                subject,
                expected=f"fingerprint {spec.fingerprint}, which its fields give",
                got=str(fingerprint),
                next_step="The file was edited or damaged; `fcache verify` checks the whole store.",
            )
        return spec

    def differences(self, other: Spec) -> list[str]:
        """Return every fingerprinted field that differs, as `field: value here != value in other`."""
        return [
            f"{path}: {_short(left)} != {_short(right)}"
            for path, left, right in _differing(self.identity(), other.identity(), "")
        ]


_ABSENT = object()


def _differing(left: Json, right: Json, path: str) -> Iterator[tuple[str, Json, Json]]:
    """Yield (path of keys, left value, right value) of every difference; `_ABSENT` stands for a missing key."""
    if isinstance(left, dict) and isinstance(right, dict):
        for key in sorted({*left, *right}):
            inner = f"{path}.{key}" if path else key
            yield from _differing(left.get(key, _ABSENT), right.get(key, _ABSENT), inner)
    elif left is _ABSENT or right is _ABSENT or left != right:
        yield path, left, right


def _short(value: Json) -> str:
    if value is _ABSENT:
        return "(absent)"
    text = canonical_json(value)
    return text if len(text) <= 60 else text[:57] + "…"
