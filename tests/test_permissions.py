"""Who may read what is written: a replaced file keeps its permissions, everything new follows the umask."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from featurecache.files import publish
from featurecache.files.publish import TemporaryFile, make_temporary_folder, publish_folder, replace_bytes, sweep
from fusion_train import checkpoint


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444, 0o400], ids=oct)
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, umask: int, mode: int) -> None:
    path, link = tmp_path / "answers.jsonl", tmp_path / "link.jsonl"
    path.write_bytes(b"first")
    path.chmod(mode)
    link.symlink_to(path)
    for place, text in ((path, b"second"), (link, b"third")):
        replace_bytes(place, text)
        assert (path.read_bytes(), mode_of(path)) == (text, mode)


def test_a_new_file_follows_the_umask(tmp_path: Path, umask: int) -> None:
    replace_bytes(tmp_path / "new.json", b"{}")
    assert mode_of(tmp_path / "new.json") == 0o666 & ~umask


def test_what_replaces_a_private_file_is_private_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, write = [], TemporaryFile.write

    def watched(file: TemporaryFile, data: bytes) -> None:
        write(file, data)
        seen.append(mode_of(file.path))

    monkeypatch.setattr(TemporaryFile, "write", watched)
    path = tmp_path / "key.json"
    path.write_bytes(b"first")
    path.chmod(0o600)
    replace_bytes(path, b"second")
    assert seen == [0o600]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to others needs root")
def test_a_replaced_file_keeps_its_owner_and_group(tmp_path: Path) -> None:
    path = tmp_path / "shared.json"
    path.write_bytes(b"first")
    path.chmod(0o640)
    os.chown(path, 1234, 2345)
    replace_bytes(path, b"second")
    assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (1234, 2345, 0o640)


@pytest.mark.parametrize(("before", "after"), [(0o640, 0o600), (0o664, 0o644), (0o600, 0o600), (0o606, 0o606)])
def test_a_group_that_cannot_be_kept_gives_no_other_group_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    path = tmp_path / "shared.json"
    path.write_bytes(b"first")
    path.chmod(before)
    monkeypatch.setattr(publish.os, "fchown", refuse)
    replace_bytes(path, b"second")
    assert mode_of(path) == after


def test_temporary_files_of_other_users_are_left_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, own = tmp_path / ".tmp-0123456789abcdef", tmp_path / ".tmp-fedcba9876543210"
    theirs.write_bytes(b"half")
    own.write_bytes(b"half")
    opened = os.open

    def guarded(path: Path, *arguments: int) -> int:
        if Path(path) == theirs:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(publish.os, "open", guarded)
        assert sweep(tmp_path, shared=True) == [own]
        replace_bytes(tmp_path / "page.html", b"page")
    assert theirs.exists()


def test_a_published_folder_and_files_that_a_library_kept_private_follow_the_umask(tmp_path: Path, umask: int) -> None:
    folder = make_temporary_folder(tmp_path, ".made-")
    (folder / "language_model").mkdir()
    for path in (folder / "model.safetensors", folder / "language_model" / "model.safetensors"):
        save_file({"weight": torch.ones(2)}, path)
        path.chmod(0o600)  # as newer versions leave it
    publish_folder(folder, tmp_path / "model")
    paths = [tmp_path / "model", *(tmp_path / "model").rglob("*")]
    assert len(paths) == 4
    assert {mode_of(path) for path in paths if path.is_dir()} == {0o777 & ~umask}
    assert {mode_of(path) for path in paths if path.is_file()} == {0o666 & ~umask}


def test_others_may_read_a_checkpoint_if_the_umask_lets_them(tmp_path: Path, umask: int) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    folder = checkpoint.save(tmp_path / "checkpoints", model, optimizer, checkpoint.State(1, "x", {}), keep=1)
    assert mode_of(folder) == 0o777 & ~umask
    assert {mode_of(path) for path in folder.iterdir()} == {0o666 & ~umask}
