"""What a disk refuses is one line and exit code 1, told before the work where it can be; nothing half written stays."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pytest
import recordings as rec
from click.testing import CliRunner, Result
from safetensors import SafetensorError

sys.path.insert(0, str(Path(__file__).parent / "store"))
from small_stores import contents, make_spec, source_of, tokens_of

import featurecache
from featurecache import cli as cache_cli
from featurecache.console import CommandGroup, OutputPath
from featurecache.errors import WriteError
from featurecache.files import publish
from featurecache.files.publish import disk_error, replace_bytes, require_writable, writing
from fusion_train import cli as trainer_cli
from fusion_train.evaluation.append_only import AppendedLines, read_lines

OUTPUTS = {"--out", "--sheet", "--look", "--plot"}
CHECKED_LATER = {("import", "--out")}
"""Options whose default is only used by some ways of calling the command."""


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield " ".join([*above, name]), command
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)


def test_every_option_that_names_an_output_is_checked_before_the_work() -> None:
    found = [*commands(cache_cli.main), *commands(trainer_cli.main), ("", trainer_cli.main)]
    looked_at = 0
    for name, command in found:
        for option in command.params:
            if OUTPUTS & set(option.opts) and (name, option.opts[0]) not in CHECKED_LATER:
                looked_at += 1
                assert isinstance(option.type, OutputPath), f"{name} {option.opts[0]}"
    assert looked_at > 12


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips in a store, two of them alike, with a list, a table and an index; a file called `file`."""
    tmp_path = tmp_path_factory.mktemp("prepared")
    with contextlib.chdir(tmp_path):
        _prepare(tmp_path)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `prepared`, as the working directory."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _prepare(tmp_path: Path) -> None:
    store = featurecache.open_store("features.zarr", "a")
    writer = store.writer("whisper", make_spec())
    ids = [f"c{number}" for number in range(12)]
    writer.plan(ids)
    for shard in writer.pending():
        with writer.begin(shard) as shard_writer:
            for slot, clip_id in enumerate(shard.ids):
                shard_writer.put(slot, tokens_of("c0" if clip_id == "c1" else clip_id), source_of(clip_id[:2]))
            shard_writer.commit()
    rec.write_clip(tmp_path / "c.mp4", num_frames=3)
    rows = [
        {"id": clip_id, "video": "c.mp4", "split": "train", "labels": {"emotion": ["a", "b"][number % 2]}}
        for number, clip_id in enumerate(ids)
    ]
    Path("clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("table.csv").write_text("name,video\nx,c.mp4\n")
    Path("file").write_text("mine")
    assert fcache("index").exit_code == 0


def fcache(*arguments: str) -> Result:
    return CliRunner().invoke(cache_cli.main, arguments)


WRITERS: dict[str, tuple[str, ...]] = {
    "map": ("map", "--by", "emotion", "--out"),
    "similar": ("similar", "c0", "--sheet"),
    "duplicates": ("duplicates", "--out"),
    "show": ("show", "c0", "--plot"),
    "import": ("import", "csv", "table.csv", "--option", "id=name", "--option", "video=video", "--out"),
}
TARGETS = {"map": "picture", "similar": "near.png", "duplicates": "pairs.jsonl", "show": "plots", "import": "new.jsonl"}


def full_disk(monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    for name in ("write", "pwrite"):
        monkeypatch.setattr(publish.os, name, refuse)


@pytest.mark.parametrize("command", list(WRITERS))
def test_a_full_disk_is_one_line_and_leaves_no_half_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    before = contents(folder)
    with monkeypatch.context() as patched:
        full_disk(patched)
        result = fcache(*WRITERS[command], TARGETS[command])
    assert result.exit_code == 1, result.output
    assert "the disk is full" in result.stderr
    assert [line for line in result.stderr.splitlines() if "error" in line] == result.stderr.splitlines()[-1:]
    assert contents(folder) == before
    result = fcache(*WRITERS[command], TARGETS[command])
    assert result.exit_code == 0, result.output
    assert contents(folder).keys() > before.keys()


@pytest.mark.parametrize("command", list(WRITERS))
def test_a_file_where_a_folder_should_be_is_told_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(featurecache, "open_store", lambda *_, **__: pytest.fail("work was begun"))
    before = contents(folder)
    result = fcache(*WRITERS[command], f"file/{TARGETS[command]}")
    assert result.exit_code == 1, result.output
    assert "a file where a folder should be" in result.stderr
    assert [line for line in result.stderr.splitlines() if "error" in line] == result.stderr.splitlines()[-1:]
    assert contents(folder) == before


@pytest.mark.parametrize("command", ["similar", "duplicates", "import"])
def test_a_folder_where_a_file_should_be_is_told_before_the_work(folder: Path, command: str) -> None:
    (folder / TARGETS[command]).mkdir()
    result = fcache(*WRITERS[command], TARGETS[command])
    assert result.exit_code == 1, result.output
    assert "a folder of that name" in result.stderr


def test_names_with_spaces_and_line_feeds_are_written_and_shown_in_one_line(folder: Path) -> None:
    result = fcache("similar", "c0", "--sheet", "near\nby and\t.png")
    assert result.exit_code == 0, result.output
    assert (folder / "near\nby and\t.png").is_file()


def test_a_folder_that_may_not_be_written_is_refused_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, said in ((errno.EACCES, "permission"), (errno.EROFS, "read-only"), (errno.EDQUOT, "quota")):

        def refuse(*_: object, number: int = number, **__: object) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            patched.setattr(publish.os, "open", refuse)
            with pytest.raises(WriteError, match=said):
                require_writable(tmp_path / "a/b.json")
    require_writable(tmp_path / "a/b.json")
    require_writable(tmp_path / "a/b", folder=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "circle").symlink_to("circle")
    for place in (tmp_path / "circle/a", tmp_path / ("n" * 300) / "a", Path("/proc/none/a")):
        with pytest.raises(WriteError):
            replace_bytes(place, b"x")


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("elsewhere/real.json")
    for text in (b"first", b"second"):
        replace_bytes(link, text)
        assert link.is_symlink()
        assert (tmp_path / "elsewhere/real.json").read_bytes() == text
    assert {path.name for path in tmp_path.rglob("*")} == {"elsewhere", "link.json", "real.json"}


def test_a_pipe_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    require_writable(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    replace_bytes(pipe, b"whole")
    reader.join()
    assert received == [b"whole"]
    assert pipe.is_fifo()


def test_what_a_killed_writer_left_beside_an_output_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".tmp-0123456789abcdef").write_bytes(b"half")
    (tmp_path / ".tmp-of-somebody-else").write_bytes(b"whole")
    (tmp_path / ".tmp-folder").mkdir()
    replace_bytes(tmp_path / "page.html", b"page")
    assert {path.name for path in tmp_path.iterdir()} == {".tmp-of-somebody-else", ".tmp-folder", "page.html"}


@pytest.mark.parametrize("written", [0, 5])
def test_lines_that_do_not_fit_leave_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    path = tmp_path / "answers.jsonl"
    with AppendedLines(path) as lines:
        lines.append([{"id": "a"}])
        whole = path.read_bytes()
        write, calls = os.write, []

        def part(fd: int, data: memoryview) -> int:
            calls.append(fd)
            if len(calls) > 1 or not written:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(fd, data[:written])

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", part)
            with pytest.raises(WriteError, match="the disk is full"):
                lines.append([{"id": "b"}])
        assert path.read_bytes() == whole
        lines.append([{"id": "c"}])
    assert read_lines(path) == [{"id": "a"}, {"id": "c"}]


def limited(work: Callable[[], None]) -> int:
    """Run `work` in a child whose files may have 4096 bytes; its exit code."""
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
            work()
            os._exit(0)
        except WriteError as error:
            os._exit(7 if "ulimit -f" in str(error) else 8)
        finally:
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_refusals_of_libraries_are_told_alike(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    def tensors() -> None:
        with writing(tmp_path):
            save_file({"a": np.zeros(10_000)}, tmp_path / "a.safetensors")

    def array() -> None:
        with writing(tmp_path):
            np.save(tmp_path / "a.npy", np.zeros(10_000))

    def table() -> None:
        with writing(tmp_path):
            connection = sqlite3.connect(tmp_path / "a.sqlite")
            connection.execute("CREATE TABLE t (x)")
            connection.executemany("INSERT INTO t VALUES (?)", [("y" * 100,)] * 1000)
            connection.commit()

    assert limited(tensors) == 7
    assert limited(array) in (7, 8)  # numpy says only that not all was written
    assert limited(table) in (7, 8)
    for said in (
        "I/O error: No space left on device (os error 28)",
        'IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })',  # before 0.6
    ):
        assert disk_error(SafetensorError(f"Error while serializing: {said}")).errno == errno.ENOSPC
    assert (
        disk_error(RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0")).errno == errno.EIO
    )
    assert disk_error(RuntimeError("shapes differ")) is None
    assert disk_error(SafetensorError("invalid header")) is None


def test_what_no_module_has_put_into_words_still_ends_in_one_line() -> None:
    group = CommandGroup("tool")

    @group.command()
    @click.argument("number", type=int)
    def write(number: int) -> None:
        raise OSError(number, os.strerror(number), "somewhere/report.html")

    for number, said in ((errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EISDIR, "a folder")):
        result = CliRunner().invoke(group, ["write", str(number)])
        assert result.exit_code == 1
        assert said in result.stderr
        assert result.stderr.startswith("error: somewhere/report.html: expected")
        assert len(result.stderr.splitlines()) == 1
    for number in (errno.ENOENT, errno.EBADF):  # nothing that a disk refuses: shown whole
        assert isinstance(CliRunner().invoke(group, ["write", str(number)]).exception, OSError)
