"""Clips, tiny encoders and a finished store for the tests of extraction."""

from __future__ import annotations

from pathlib import Path

import pytest
from awkward_clips import NAMES, write_clips

from featurecache import load_clips, open_store
from featurecache.clips.clip_list import ClipList
from featurecache.encoders import Encoder, open_encoder
from featurecache.extract.run import extract


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the awkward clips and their list."""
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder)
    return folder


@pytest.fixture(scope="session")
def encoders(whisper_folder: Path, eva_folder: Path) -> dict[str, Encoder]:
    return {
        name: open_encoder(name, weights=str(whisper_folder if name == "whisper" else eva_folder)) for name in NAMES
    }


@pytest.fixture
def clips(collection: Path) -> ClipList:
    return load_clips(collection / "clips.jsonl")


@pytest.fixture(scope="session")
def reference(collection: Path, encoders: dict[str, Encoder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store extracted at one go, in shards of four clips."""
    folder = tmp_path_factory.mktemp("reference") / "features.zarr"
    extract(open_store(folder, "a"), load_clips(collection / "clips.jsonl"), encoders, shard_clips=4, workers=1)
    return folder
