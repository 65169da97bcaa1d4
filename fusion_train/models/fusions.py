"""Build a fusion variant by name: the published module, its four baselines, heads of the field, or a user's own.

A fusion is an `nn.Module` that is built as `cls(dims, hidden=…, out_dim=…, dropout=…)`. Its `forward(features,
present)` takes a sequence of (B, K, D_m) in the order audio, image CLS, video and a mask (B, M), and returns
(B, K, out_dim). A fusion whose parameters depend on the token count takes `num_tokens=` too. A fusion with losses of
its own has `with_loss(features, present)`, which returns these tokens and a scalar; a probe adds it to the mean loss in
training. Such losses compare the clips of a batch, so a run with a language model refuses these fusions. Variants are
registered under the entry point group `fusion_train.fusions`; `fusion_train.models.fusions:none` stands for no fusion
tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from featurecache.errors import suggest
from fusion_train.errors import ConfigError

ENTRY_POINTS = "fusion_train.fusions"


def none(dims: Sequence[int], **_options: object) -> None:
    """Build the variant "none" of the ablation: 384 soft tokens, no fusion stream."""


def build_fusion(name: str, dims: Sequence[int], **options: object) -> nn.Module | None:
    """Build a fusion variant for modalities of these widths.

    Raises:
        ConfigError: no variant of this name, or an option that it does not take.
    """
    build = fusion_variant(name)
    try:
        return build(tuple(dims), **taken_options(build, options))
    except TypeError as error:
        raise ConfigError(f'model.fusion "{name}"', got=str(error), next_step="See its constructor.") from error


def fusion_variant(name: str) -> Any:
    """Return the class or function that is registered under a name.

    Raises:
        ConfigError: no variant of this name; the most similar name is suggested.
    """
    registered = [point for point in entry_points(group=ENTRY_POINTS) if point.name == name]
    if not registered:
        known = sorted(point.name for point in entry_points(group=ENTRY_POINTS))
        raise ConfigError(
            "model.fusion.name",
            expected="one of " + ", ".join(known),
            got=f'"{name}"',
            next_step=suggest(name, known).strip() or None,
        )
    return registered[0].load()


def taken_options(build: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options without `num_tokens` if the variant has no parameter of this name."""
    parameters = inspect.signature(build).parameters
    return {key: value for key, value in options.items() if key != "num_tokens" or key in parameters}
