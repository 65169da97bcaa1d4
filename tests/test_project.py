"""The project file: found upward, its values where the command line has none, and one line that says so."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import featurecache
from featurecache.cli import main
from featurecache.cli.options import WEIGHTS, weights_of
from featurecache.console_project import ProjectOption
from featurecache.encoders import hub
from featurecache.encoders.checkpoint import Checkpoint
from featurecache.errors import WeightsError
from featurecache.project import find_project, project_text, read_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project in whose subfolder the commands run."""
    (tmp_path / "featurecache.toml").write_text(
        'store = "kept/mine.zarr"\nclips = "lists/mine.jsonl"\nencoders = ["whisper"]\nmodel = "owner/llm"\n'
        '[weights]\nwhisper = "models/w"\neva-global = "owner/eva"\n'
    )
    (tmp_path / "models/w").mkdir(parents=True)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/mine.jsonl").write_text(json.dumps({"id": "a", "text": "x", "split": "train"}) + "\n")
    (tmp_path / "below/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "below/deep")
    return tmp_path


def fcache(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_it_is_found_above_and_its_paths_are_seen_from_here(project: Path) -> None:
    found = find_project()
    assert found is not None
    assert found.path == project / "featurecache.toml"
    assert found.store == "../../kept/mine.zarr"
    assert found.clips == "../../lists/mine.jsonl"
    assert found.weights == {"whisper": "../../models/w", "eva-global": "owner/eva"}
    assert found.model == "owner/llm"


def test_the_nearest_file_counts(project: Path) -> None:
    Path("featurecache.toml").write_text('clips = "own.jsonl"\n')
    found = find_project()
    assert found is not None
    assert (found.clips, found.store) == ("own.jsonl", None)


def test_a_command_takes_what_it_is_not_told_and_says_so(project: Path) -> None:
    result = fcache("split")
    assert result.exit_code == 2  # one clip
    assert result.output.startswith("../../featurecache.toml: clips\n")
    Path("own.jsonl").write_text("".join(json.dumps({"id": str(n), "text": "x"}) + "\n" for n in range(3)))
    result = fcache("split", "--clips", "own.jsonl")
    assert result.exit_code == 0
    assert "featurecache.toml" not in result.output


def test_no_project_file_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_project() is None
    assert "featurecache.toml" not in fcache("info").output


def test_weights_of_the_project_stand_behind_those_of_the_command(project: Path) -> None:
    found: dict[str, str | None] = {}

    @click.command()
    @WEIGHTS
    def command(weights: tuple[str, ...]) -> None:
        found.update(weights_of(["whisper", "eva-global", "hf-audio"], weights))

    def run(*arguments: str) -> dict[str, str | None]:
        assert CliRunner().invoke(command, arguments).exit_code == 0
        return found

    assert run() == {"whisper": "../../models/w", "eva-global": "owner/eva", "hf-audio": None}
    assert run("--weights", "whisper=mine") == {"whisper": "mine", "eva-global": "owner/eva", "hf-audio": None}
    assert run("--weights", "owner/all") == dict.fromkeys(("whisper", "eva-global", "hf-audio"), "owner/all")


def test_options_before_a_subcommand_take_nothing_from_it(project: Path) -> None:
    @click.group(invoke_without_command=True)
    @click.option("--store", cls=ProjectOption, project_key="store")
    def group(store: str | None) -> None:
        click.echo(f"group {store}")

    @group.command()
    @click.option("--clips", cls=ProjectOption, project_key="clips")
    def inner(clips: str) -> None:
        click.echo(f"inner {clips}")

    assert CliRunner().invoke(group, ["inner"]).output.splitlines() == [
        "group None", "../../featurecache.toml: clips", "inner ../../lists/mine.jsonl",
    ]  # fmt: skip
    assert CliRunner().invoke(group, []).output.splitlines() == [
        "../../featurecache.toml: store", "group ../../kept/mine.zarr",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('stroe = "x"', 'unknown key "stroe". Did you mean "store"?'),
        ("store = 3", "store: expected a text, got 3"),
        ('encoders = "whisper"', "encoders: expected a list of names"),
        ('weights = "x"', "weights: expected a table of texts"),
        ("store = ", "expected a TOML file"),
        ("clips = '\udcff'", "expected a TOML file"),
    ],
)
def test_a_wrong_file_is_one_message_and_help_still_works(project: Path, text: str, message: str) -> None:
    Path("featurecache.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    result = fcache("info")
    assert result.exit_code == 2
    assert message in result.output
    assert "featurecache.toml" in result.output
    assert fcache("info", "--help").exit_code == 0


class TestInit:
    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_what_it_writes_is_read_back(self) -> None:
        Path("w").mkdir()
        result = fcache("init", "--weights", "whisper=./w", "--encoder", "whisper", "--model", "owner/llm")
        assert result.exit_code == 0, result.output
        found = find_project()
        assert found is not None
        assert (found.store, found.clips, found.media_root) == ("features.zarr", "clips.jsonl", None)
        assert (found.model, found.encoders, found.weights) == ("owner/llm", ("whisper",), {"whisper": "w"})
        assert '# media_root = "/data/clips"  # folder of the media' in Path("featurecache.toml").read_text()

    def test_a_file_that_is_there_is_kept(self) -> None:
        Path("featurecache.toml").write_text("# mine\n")
        assert fcache("init").exit_code == 2
        assert Path("featurecache.toml").read_text() == "# mine\n"
        assert fcache("init", "--overwrite").exit_code == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--encoder", "wisper"], 'Did you mean "whisper"?'),
            (["--weights", "whisper"], "expected NAME=PATH_OR_ID"),
            (["--weights", "whisper=/no/such"], "--weights whisper: expected a checkpoint that is there, or a hub id"),
        ],
    )
    def test_what_cannot_be_is_refused_before_anything_is_written(self, arguments: list[str], message: str) -> None:
        result = fcache("init", *arguments)
        assert result.exit_code == 2
        assert message in result.output
        assert not Path("featurecache.toml").exists()

    @given(store=st.text(min_size=1), name=st.text(min_size=1), place=st.text("ab/\\\"\n\t'é", min_size=1))
    def test_any_text_is_written_as_toml(self, store: str, name: str, place: str) -> None:
        Path("featurecache.toml").write_text(project_text({"model": "m" + store, "weights": {name: "w" + place}}))
        found = read_project(Path("featurecache.toml").absolute())
        assert found.model == "m" + store
        assert found.weights == {name: "w" + place}


def test_an_export_finds_the_weights_of_a_run_by_their_sha256(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion_train.cli.run_weights import project_weights

    (project / "models/w/model.safetensors").write_bytes(b"other weights")
    (project / "models/v").mkdir()
    (project / "models/v/model.safetensors").write_bytes(b"the weights")
    (project / "featurecache.toml").write_text('[weights]\nwhisper = "models/w"\nvoice = "models/v"\n')
    spec = SimpleNamespace(encoder="whisper", weights={"model.safetensors": hashlib.sha256(b"the weights").hexdigest()})
    store = {"mine": SimpleNamespace(spec=spec)}
    monkeypatch.setattr(featurecache, "open_store", {os.path.normpath(project / "s.zarr"): store}.__getitem__)
    run = SimpleNamespace(
        folder=project / "runs/probe",
        record=lambda: SimpleNamespace(store="../../s.zarr"),
        config=lambda: SimpleNamespace(features=SimpleNamespace(used={"audio": "mine"})),
    )

    @click.command()
    @click.option("--weights", cls=ProjectOption, project_key="weights", fills=False, multiple=True)
    def command(weights: tuple[str, ...]) -> None:
        click.echo(json.dumps(project_weights(run, None)))  # type: ignore[arg-type]

    output = CliRunner().invoke(command, []).output
    assert json.loads(output.splitlines()[-1]) == {"whisper": "../../models/v"}
    spec.weights = {"model.safetensors": "0" * 64}
    assert CliRunner().invoke(command, []).output.splitlines()[-1] == "{}"


class TestHubWithoutAnswer:
    @pytest.fixture
    def silent_server(self) -> Iterator[str]:
        """A server that takes connections and never answers."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            kept: list[socket.socket] = []

            def accept() -> None:
                try:
                    while True:
                        kept.append(server.accept()[0])
                except OSError:
                    pass

            threading.Thread(target=accept, daemon=True).start()
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
            server.shutdown(socket.SHUT_RDWR)
            for connection in kept:
                connection.close()

    @pytest.fixture(autouse=True)
    def _no_proxy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)

    def check(self, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        began = time.monotonic()
        with pytest.raises(WeightsError) as caught:
            Checkpoint("owner/model", "whisper").json("config.json")
        assert time.monotonic() - began < 2 * hub.ANSWER_S
        return str(caught.value)

    def test_one_line_with_three_ways_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        message = self.check("http://127.0.0.1:1", monkeypatch)
        assert "no answer from 127.0.0.1:1 in 4 s." in message
        assert "--weights whisper=FOLDER" in message
        assert "--weights whisper=OWNER/NAME" in message
        assert "hf auth login" in message
        assert "\n" not in message

    def test_a_server_that_never_answers_is_not_waited_for(
        self, silent_server: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub, "ANSWER_S", 0.3)
        assert "no answer from 127.0.0.1" in self.check(silent_server, monkeypatch)

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("fcache extract --encoder whisper", 'whisper: weights "openai/whisper-large-v3": expected a folder'),
            ("fcache extract --encoder hf-audio:owner/model", 'hf-audio: weights "owner/model": expected a folder'),
            ("fusion-train --stage perception --set model.llm=owner/llm", 'model.llm "owner/llm": expected a local'),
        ],
    )
    def test_it_is_reported_before_torch_and_transformers_are_imported(
        self, command: str, message: str, tmp_path: Path
    ) -> None:
        (tmp_path / "clips.jsonl").write_text(json.dumps({"id": "a", "audio": "a.wav"}) + "\n")
        program, *words = command.split()
        package = "featurecache.cli" if program == "fcache" else "fusion_train.cli"
        script = (
            f"import sys\nfrom {package} import main\nmain({words!r}, standalone_mode=False)\n"
            "print('torch' in sys.modules, 'transformers' in sys.modules)"
        )
        environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_HOME")}
        environment |= {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path)}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
        )
        assert message in result.stderr, result.stderr
        assert "hf auth login" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == "False False\n"
