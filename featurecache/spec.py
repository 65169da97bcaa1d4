"""What decides a feature's bytes, and the fingerprint that names it.

A spec is a frozen description: encoder, sha256 of its weight files, architecture, tap, preprocessing, pooling, dtypes,
shape. Its fingerprint is the sha256 of its canonical JSON. No path, time, host name or pickle enters it; where the
weights came from (hub id, revision) is kept beside it as `provenance`, which is not fingerprinted, because the hash of
the weights already says more. This module knows no encoder, store or file.
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
"""A number, without the scales of int8 and float8."""

Json = Any


def canonical_json(value: Json) -> str:
    """One text per value: sorted keys, no white space, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True)
class Spec:
    """Everything that decides the bytes of one feature."""

    encoder: str
    """Registered name of the encoder, such as "whisper"."""
    implementation: int
    """Raised by an encoder whenever its own arithmetic changes its output."""
    weights: Mapping[str, str]
    """sha256 of every weight file read, by its name inside the checkpoint."""
    architecture: Mapping[str, Json]
    """The numbers of the network that the weights alone do not fix: heads, norm epsilon, activation."""
    tap: Mapping[str, Json]
    """Where tokens leave the network: blocks run, final norm."""
    preprocessing: Mapping[str, Json]
    """From media to the network's input: rate, mel bins, frame rule, resize, mean and standard deviation."""
    pooling: Mapping[str, Json]
    """From T tokens to K."""
    compute_dtype: str
    stored_dtype: str
    shape: tuple[int, int]
    """(K, D)."""
    format: int = SPEC_FORMAT
    provenance: Mapping[str, Json] = field(default_factory=dict, compare=False)
    """Where the weights came from; not part of the fingerprint."""

    def __post_init__(self) -> None:
        if self.stored_dtype not in STORED_DTYPES:
            raise SpecError(
                "stored_dtype",
                expected=" | ".join(STORED_DTYPES),
                got=repr(self.stored_dtype),
                next_step=suggest(str(self.stored_dtype), STORED_DTYPES).strip() or None,
            )
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise SpecError("shape", expected="two positive numbers (K, D)", got=repr(self.shape))

    def identity(self) -> dict[str, Json]:
        """Everything that is fingerprinted, as JSON values."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "provenance"}
        return json.loads(canonical_json(parts))

    @property
    def fingerprint(self) -> str:
        """sha256 of the canonical JSON of `identity()`, 64 hex digits."""
        return hashlib.sha256(canonical_json(self.identity()).encode("ascii")).hexdigest()

    def to_json(self) -> str:
        """The text kept in a store: identity, fingerprint and provenance."""
        document = {**self.identity(), "provenance": dict(self.provenance), "fingerprint": self.fingerprint}
        return json.dumps(document, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, subject: str = "spec") -> Spec:
        """Read what `to_json` wrote.

        Raises:
            SpecError: not JSON, a field missing or unknown, or a fingerprint that does not belong to the fields.
        """
        try:
            document = json.loads(text)
            stated = document.pop("fingerprint")
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
        if stated != spec.fingerprint:
            raise SpecError(
                subject,
                expected=f"fingerprint {spec.fingerprint}, which its fields give",
                got=str(stated),
                next_step="The file was edited or damaged; `fcache verify` checks the whole store.",
            )
        return spec

    def differences(self, other: Spec) -> list[str]:
        """Name every fingerprinted field that differs, as `field: mine != theirs`."""
        return [
            f"{path}: {_short(mine)} != {_short(theirs)}"
            for path, mine, theirs in _walk(self.identity(), other.identity(), "")
        ]


_ABSENT = object()


def _walk(mine: Json, theirs: Json, path: str) -> Iterator[tuple[str, Json, Json]]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted({*mine, *theirs}):
            inner = f"{path}.{key}" if path else key
            yield from _walk(mine.get(key, _ABSENT), theirs.get(key, _ABSENT), inner)
    elif mine is _ABSENT or theirs is _ABSENT or mine != theirs:
        yield path, mine, theirs


def _short(value: Json) -> str:
    if value is _ABSENT:
        return "(absent)"
    text = canonical_json(value)
    return text if len(text) <= 60 else text[:57] + "…"
