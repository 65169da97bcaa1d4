"""What a stage sets in place of the user's own configuration, said before training.

A stage's file lies over `--config`, so that a setting named there for every stage may be replaced by the stage's. That
is meant for a file that says nothing of stages, and surprising for one that names the tasks or the language model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fusion_train.config import PROBE, read_yaml
from fusion_train.yaml_settings import merge, parse_override, parse_yaml

NAMED_KEYS = 5
"""Settings named in a line."""
NOT_OF_A_STAGE = ("stages", "extends", "stage", "init_stage")


def replaced_settings(config: str | Path | None, stage: str, overrides: Iterable[str] = ()) -> list[str]:
    """One line for what the stage leaves unused of the configuration that `--config` names; none where it uses all.

    Of what the file extends, and of a shipped preset, the language model alone is looked at.
    """
    if config is None:
        return []
    own = parse_yaml(Path(config).read_bytes(), str(config)) if os.path.isfile(config) else {}
    later: dict[str, Any] = {}
    merge(later, (own.get("stages") or {}).get(stage) or {})
    for text in overrides:
        merge(later, parse_override(text))
    base = {key: value for key, value in own.items() if key not in NOT_OF_A_STAGE}
    of_stage, kept = dict(_flat(read_yaml(f"stages/{stage}"))), dict(_flat(later))
    keys = [key for key, value in _flat(base) if of_stage.get(key, value) != value and key not in kept]
    lines = []
    llm = (read_yaml(config).get("model") or {}).get("llm")
    if stage == PROBE and llm is not None and "model.llm" not in kept:
        lines.append(f"stage {stage} trains no language model: model.llm of {config} ({llm}) is not used")
    if keys := [key for key in keys if key != "model.llm"]:
        more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
        lines.append(
            f"stage {stage} has values of its own for {', '.join(keys[:NAMED_KEYS])}{more}, in place of those in "
            f"{config}; name yours under stages: {{{stage}: …}} there, or with --set"
        )
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
