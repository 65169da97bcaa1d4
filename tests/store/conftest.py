"""Fixtures of the store tests; the stores themselves are made in small_stores."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_stores import KINDS, build

from featurecache.store.local import LocalStore


@pytest.fixture
def small_store(tmp_path: Path) -> LocalStore:
    return build(tmp_path / "features.zarr")


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def place(tmp_path: Path, kind: str) -> Path:
    return tmp_path / KINDS[kind][0]


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[Path], Path]:
    """Copy a store beside itself."""

    def copy(location: Path) -> Path:
        target = tmp_path / f"copy-of-{location.name}"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(location, target)
        return target

    return copy
