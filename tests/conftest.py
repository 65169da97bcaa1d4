"""Clips and checkpoints made on the fly, so that no media or weights are committed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a network
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product on a GPU, by one test for all
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

from checkpoints import save_eva, save_whisper
from hypothesis import settings
from transformers.utils import logging as transformers_logging

transformers_logging.disable_progress_bar()
settings.register_profile("untimed", deadline=None)  # how long an example takes says nothing on a busy machine
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the memo of hashes out of the user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device of a test that runs on each kind: on a CPU by default, on a GPU with -m gpu."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param, 0) if request.param == "cuda" else torch.device(request.param)


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny WhisperModel checkpoint."""
    return save_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="session")
def eva_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Blip2VisionModel checkpoint."""
    return save_eva(tmp_path_factory.mktemp("eva"))


@pytest.fixture(scope="session")
def recordings() -> Path:
    """Real recordings, which are not the project's own."""
    folder = Path(__file__).parents[2] / "shared" / "media"
    if not folder.is_dir():
        pytest.skip("no folder of real recordings beside the repository")
    return folder
