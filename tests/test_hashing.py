"""Hashes are remembered, and a changed file is always noticed."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from featurecache.clips.clip_list import Clip
from featurecache.clips.crop import Crop
from featurecache.files import hashing
from featurecache.files.hashing import cache_folder, file_sha256
from featurecache.media.decode import clip_source
from featurecache.views import AudioView, FramesView

AUDIO, PEAK = AudioView(), FramesView(1, "peak", still=True)


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as old enough to be remembered."""
    monkeypatch.setattr(hashing, "SETTLED_S", -1.0)
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    return path


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    digest = hashing._digest
    monkeypatch.setattr(hashing, "_digest", lambda path: (read.append(path), digest(path))[1])
    return read


def test_a_file_is_read_once(settled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted(monkeypatch)
    expected = hashlib.sha256(b"one").hexdigest()
    assert [file_sha256(settled), file_sha256(str(settled))] == [expected, expected]
    assert len(read) == 1
    assert (cache_folder() / "hashes.sqlite").is_file()


def test_changed_bytes_are_noticed_though_size_and_time_are_put_back(settled: Path) -> None:
    before = file_sha256(settled)
    stat = settled.stat()
    settled.write_bytes(b"two")
    os.utime(settled, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_sha256(settled) == hashlib.sha256(b"two").hexdigest() != before


def test_a_file_replaced_by_another_is_noticed(settled: Path) -> None:
    file_sha256(settled)
    other = settled.with_name("other")
    other.write_bytes(b"six")
    other.replace(settled)
    assert file_sha256(settled) == hashlib.sha256(b"six").hexdigest()


def test_a_file_written_just_now_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted(monkeypatch)
    path = tmp_path / "fresh"
    path.write_bytes(b"one")
    file_sha256(path)
    file_sha256(path)
    assert len(read) == 2


def test_a_broken_or_forbidden_memo_does_no_harm(
    settled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = hashlib.sha256(b"one").hexdigest()
    broken = tmp_path / "broken"
    (broken / "featurecache").mkdir(parents=True)
    (broken / "featurecache" / "hashes.sqlite").write_bytes(b"not a database" * 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(broken))
    assert file_sha256(settled) == expected
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert file_sha256(settled) == expected


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "missing")


def test_a_source_depends_on_what_the_view_sees_and_nothing_else(tmp_path: Path) -> None:
    video, image = tmp_path / "v.mp4", tmp_path / "i.png"
    video.write_bytes(b"video")
    image.write_bytes(b"image")
    clip = Clip("a", video=video, peak_frame=3, text="hello")
    moved = tmp_path / "moved.mp4"
    moved.write_bytes(b"video")
    same = Clip("other", video=moved, peak_frame=3, text="different", split="test")
    assert clip_source(same, PEAK) == clip_source(clip, PEAK)
    sources = {
        clip_source(each, PEAK)
        for each in (
            clip,
            Clip("a", video=video, peak_frame=4),
            Clip("a", video=video, peak_frame=3, start_s=1.0),
            Clip("a", video=video, peak_frame=3, end_s=1.0),
            Clip("a", video=video, peak_frame=3, crop=Crop(right=0.5)),
            Clip("a", video=video, peak_frame=3, crop=Crop(left=0.5)),
            Clip("a", image=image),
            Clip("a", image=image, crop=Crop(right=0.5)),
            Clip("a", text="nothing to see"),
        )
    }
    assert len(sources) == 9
    assert clip_source(Clip("a", video=video, peak_frame=4), AUDIO) == clip_source(clip, AUDIO)
    assert clip_source(Clip("a", video=video, crop=Crop(right=0.5)), AUDIO) == clip_source(clip, AUDIO)
    mute = Clip("a", video=video, peak_frame=3, mute=True)
    assert clip_source(mute, AUDIO) == clip_source(Clip("a", text="nothing to hear"), AUDIO) != clip_source(clip, AUDIO)
    assert clip_source(mute, PEAK) == clip_source(clip, PEAK)
    assert clip_source(Clip("a", video=video, image=image), PEAK) == clip_source(Clip("a", image=image), PEAK)
    video.write_bytes(b"Video")
    assert clip_source(clip, PEAK) not in sources


def test_the_memo_closes_what_it_opened_and_leaves_alone_what_it_inherited(
    settled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(*place: object, **how: object) -> sqlite3.Connection:
        opened.append(connect(*place, **how))  # type: ignore[call-overload]
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    for folder in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / folder))
        file_sha256(settled)
    first, second = opened
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        first.execute("SELECT 1")
    child = os.getpid() + 1
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: child)
        file_sha256(settled)
        assert second.execute("SELECT 1").fetchone() == (1,)
        hashing._hash_cache.close()
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            opened[2].execute("SELECT 1")
    second.close()
