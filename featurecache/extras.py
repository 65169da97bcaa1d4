"""Packages that only some commands need."""

from __future__ import annotations

from importlib.util import find_spec

from featurecache.errors import MissingExtraError


def require(extra: str, *modules: str, subject: str) -> None:
    """Raise MissingExtraError where one of `modules` is not installed."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            subject, expected=", ".join(modules), got=f"no {', '.join(missing)}",
            next_step=f"pip install 'featurecache[{extra}]'.",
        )  # fmt: skip
