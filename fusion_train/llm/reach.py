"""Whether the language model of a run can be read, known before torch and transformers are imported."""

from __future__ import annotations

from pathlib import Path

from featurecache.encoders.hub import is_hub_id, no_answer, way_out, within_reach
from fusion_train.errors import ModelError


def refuse_unreachable(name: str | None) -> None:
    """Raise ModelError if a language model is on a hub that does not answer, and was not fetched before."""
    if name is not None and is_hub_id(name) and not within_reach(name):
        raise unavailable(name, no_answer())


def unavailable(name: str, got: str) -> ModelError:
    """Return the error about a language model that cannot be read."""
    local = Path(name).exists()
    return ModelError(
        f'model.llm "{name}"',
        expected="a causal language model of transformers" if local else "a local folder or a reachable hub id",
        got=got,
        next_step="Set it with --set model.llm=FOLDER." if local else way_out("--set model.llm="),
    )
