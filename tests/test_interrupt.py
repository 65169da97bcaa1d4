"""Signals: a request to stop, the end of a command, and a terminal that closes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click
import pytest
import recordings as rec
from click.testing import CliRunner

from featurecache import console, interrupt, open_store
from featurecache.cli import main
from featurecache.console import CommandGroup
from featurecache.interrupt import EndedBySignal, StopRequest, ending_on_signals
from featurecache.terminal import show_progress


@pytest.fixture(autouse=True)
def _no_hang_up_before() -> None:
    interrupt._hang_ups.clear()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_is_a_request(number: int) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("order", [("SIGHUP", "SIGHUP"), ("SIGHUP", "SIGTERM"), ("SIGTERM", "SIGHUP")])
def test_what_a_closing_terminal_sends_besides_does_not_hurry_a_stop(order: tuple[str, str]) -> None:
    saved = []
    with ending_on_signals(), StopRequest() as stop:
        for name in order:
            send(getattr(signal, name))
        assert stop.requested
        saved.append("checkpoint")
    assert saved


def test_a_second_sigterm_ends_what_does_not_come_to_a_safe_point() -> None:
    with ending_on_signals(), StopRequest():
        send(signal.SIGTERM)
        with pytest.raises(EndedBySignal, match="SIGTERM"):
            send(signal.SIGTERM)


def test_an_ignored_sighup_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_on_signals(), StopRequest() as stop:
            send(signal.SIGHUP)
            assert not stop.requested
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_any_command_cleans_up_and_says_so(number: int, tmp_path: Path) -> None:
    half = tmp_path / "half-written"

    @click.group(cls=CommandGroup)
    def group() -> None:
        pass

    @group.command()
    def work() -> None:
        half.touch()
        try:
            send(number)
            pytest.fail("the command went on")
        finally:
            half.unlink()

    result = CliRunner().invoke(group, ["work"])
    assert result.exit_code == 1
    assert result.output.strip() == (
        f"stopped by {signal.Signals(number).name}. What was finished is kept; run the same command again."
    )
    assert not half.exists()


@pytest.mark.parametrize("code", [errno.EIO, errno.EPIPE, errno.ENOSPC])
def test_a_closed_terminal_takes_no_lines_and_stops_nothing(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*line, **how):  # type: ignore[no-untyped-def]
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(console.click, "echo", refuse)
    with StopRequest():
        if code == errno.EPIPE:
            with pytest.raises(OSError, match="Broken pipe"):
                console.say("the reader left: `| head`")
        if code == errno.ENOSPC:
            with pytest.raises(OSError, match="No space"):
                console.say("a log on a full disk")
        else:
            send(signal.SIGHUP)
            console.say("loss 0.5")


def test_progress_in_a_terminal_that_closed_does_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = os.openpty()
    saved = []
    terminal = os.fdopen(slave, "w")
    with suppress(OSError), terminal:  # closing it writes what it holds
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr("threading.excepthook", lambda args: None)  # of the thread that draws
        with show_progress("train", "steps") as progress:
            progress(1, 10)
            os.close(master)
            progress(2, 10)
            saved.append("checkpoint")
        monkeypatch.undo()
    assert saved


def test_a_retry_stops_at_a_shard_when_the_terminal_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whisper_folder: Path
) -> None:
    from featurecache.extract import run as extraction

    shutil.copytree(whisper_folder, tmp_path / "whisper")
    monkeypatch.chdir(tmp_path)
    names = ("c0", "c1", "c2", "c3")
    Path("clips.jsonl").write_text("".join(json.dumps({"id": n, "video": f"{n}.mp4"}) + "\n" for n in names))
    for name in names:
        Path(f"{name}.mp4").touch()
    extract = ["extract", "--encoder", "whisper", "--weights", "whisper", "--shard-clips", "1"]
    assert CliRunner().invoke(main, extract).exit_code == 1
    for name in names:
        rec.write_clip(tmp_path / f"{name}.mp4", sound=rec.sine(1.0, 300))
    prepare, signals = extraction.prepare, iter([signal.SIGHUP])

    def interrupted(*given, **options):  # type: ignore[no-untyped-def]
        for number in signals:
            send(number)
        return prepare(*given, **options)

    monkeypatch.setattr(extraction, "prepare", interrupted)
    stopped = CliRunner().invoke(main, ["retry", "--weights", "whisper"])
    assert stopped.exit_code == 1
    assert "un the same command to go on" in stopped.output
    assert CliRunner().invoke(main, ["retry", "--weights", "whisper"]).exit_code == 0
    assert list(open_store("features.zarr")["whisper"].ids) == list(names)


def test_nohup_keeps_a_command_at_work(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, click\nfrom featurecache.console import CommandGroup, say\n"
        "@click.group(cls=CommandGroup)\ndef group(): pass\n"
        "@group.command()\ndef work():\n    os.kill(os.getpid(), signal.SIGHUP)\n    say('done')\ngroup()\n"
    )
    command = [sys.executable, "-c", script, "work"]
    under_nohup = subprocess.run(["nohup", *command], capture_output=True, text=True, check=False)
    assert (under_nohup.returncode, under_nohup.stdout.strip()) == (0, "done")
    alone = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (alone.returncode, alone.stdout) == (1, "")
