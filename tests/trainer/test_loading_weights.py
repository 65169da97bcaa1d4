"""On a terminal, weights load with one line of ours and nothing of the libraries' bars."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from toy import make_config
from transformers.utils import logging

from fusion_train.errors import ExportError, ModelError
from fusion_train.export import export_run as exporting
from fusion_train.llm.loading import load_llm
from fusion_train.predict.opening import open_model


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(monkeypatch):
    """Call what loads with standard error being a terminal; returns what that shows."""

    def call(load) -> str:
        stream = Terminal()
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "stderr", stream)
        load()
        return stream.getvalue()

    before = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield call
    if not before:
        logging.disable_progress_bar()


def test_a_language_model_loads_with_one_line_on_a_terminal(llama, on_terminal):
    shown = on_terminal(lambda: load_llm(str(llama), "float32"))
    assert shown.count(f"language model {llama.name}: loaded in ") == 1
    assert "Loading weights" not in shown
    assert "it/s" not in shown
    assert "█" not in shown
    assert logging.is_progress_bar_enabled()
    assert not are_progress_bars_disabled()


def test_an_exported_model_opens_with_one_line_on_a_terminal(exported, on_terminal):
    shown = on_terminal(lambda: open_model(exported))
    assert shown.count("exported model exported: loaded in ") == 1
    assert "Loading weights" not in shown
    assert "it/s" not in shown


def test_elsewhere_one_plain_line_says_what_is_loaded(llama, capsys):
    load_llm(str(llama), "float32")
    assert capsys.readouterr().err == f"loading language model {llama.name}\n"


def test_weights_that_cannot_be_loaded_leave_the_terminal_and_the_libraries_as_they_were(tmp_path, on_terminal):
    def load() -> None:
        with pytest.raises(ModelError):
            load_llm(str(tmp_path), "float32")

    assert "loaded in" not in on_terminal(load)
    assert logging.is_progress_bar_enabled()


def test_a_training_on_a_real_terminal_shows_no_bar_of_a_library(llama, material, tmp_path):
    config = make_config(llama, "optim.steps=1", "data.eval_split=null", "log.peak_tflops=1", "model.quantised=null")
    (tmp_path / "mine.yaml").write_text(config.to_yaml())
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "fusion_train.cli",
            "--stage",
            "perception",
            "--config",
            str(tmp_path / "mine.yaml"),
            "--store",
            str(material / "features.zarr"),
            "--clips",
            str(material / "clips.jsonl"),
            "--out",
            str(tmp_path / "run"),
        ],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"COLUMNS": "80", "LINES": "24"},
    )
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(main, 65536):
            shown += part
    except OSError:  # the end of a pseudo terminal
        pass
    assert process.wait(60) == 0, shown
    text = shown.decode()
    assert "language model llama" in text
    assert "finished at step 1" in text
    for foreign in ("Loading weights", "it/s", "Warning", "warn"):
        assert foreign not in text, json.dumps(text)


def test_an_export_writes_without_bars_of_a_library(trained, tmp_path, monkeypatch, on_terminal):
    def write_folder(*arguments) -> None:
        assert not logging.is_progress_bar_enabled()
        raise ExportError("export", got="as far as the test needs it")

    monkeypatch.setattr(exporting, "write_folder", write_folder)
    with pytest.raises(ExportError, match="as far as the test needs it"):
        exporting.export_run(
            trained.run, tmp_path / "out", trained.weights, exporting.ExportSources(), say=lambda _: None
        )
    assert logging.is_progress_bar_enabled()
