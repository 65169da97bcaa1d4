"""The files of the index: checksums, equal bytes from equal stores, folders that cannot be written."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import planted
import pytest
from click.testing import CliRunner, Result

import featurecache
from featurecache.cli import main
from featurecache.errors import CorruptStoreError
from featurecache.explore import index_files as files_module
from featurecache.explore import search
from featurecache.explore.calibration import Calibration
from featurecache.explore.index_files import CALIBRATION, IndexFiles, index_faults, index_files
from featurecache.explore.search import open_neighbourhood, update_indices
from featurecache.maintenance.verify import verify_store


def fcache(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an indexed store, its list and a calibration."""
    monkeypatch.chdir(tmp_path)
    clips = planted.planted_clips(40)
    store = planted.write_store(tmp_path / "features.zarr", clips)
    planted.write_list(tmp_path / "clips.jsonl", clips)
    update_indices(store)
    rule = Calibration(
        0.5,
        0.1,
        0.7,
        10.0,
        -5.0,
        {name: store[name].fingerprint for name in store.names},
        dict.fromkeys(store.names, 1.0),
        40,
        320,
        0,
        160,
        {"mirrored": 1.0},
    )
    index_files(store.location).write(CALIBRATION, rule.to_bytes())
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x40
    path.write_bytes(data)


def test_a_flipped_bit_anywhere_in_the_index_is_found_and_never_used(here: Path) -> None:
    sound = fcache("similar", "c005", "--json").output
    root = here / "features.zarr.similar"
    assert verify_store(featurecache.open_store(here / "features.zarr")).exit_code == 0
    random = np.random.default_rng(0)
    for name, data in contents(root).items():
        for place in random.integers(len(data), size=2).tolist():
            flip(root / name, place)
            report = verify_store(featurecache.open_store(here / "features.zarr"))
            assert [problem.kind for problem in report.damage] == ["similarity"], (name, place)
            assert Path(name).name in str(report.damage[0])
            result = fcache("similar", "c005", "--json")
            assert result.exit_code == 0, result.output
            assert result.stdout == sound
            assert (name == CALIBRATION) != ("made anew" in result.stderr)
            (root / name).write_bytes(data)


def test_the_library_names_a_damaged_file_instead_of_using_it(here: Path) -> None:
    victim = next((here / "features.zarr.similar" / "face" / "vectors").iterdir())
    flip(victim, victim.stat().st_size // 2)
    with pytest.raises(CorruptStoreError, match=victim.name):
        open_neighbourhood(featurecache.open_store(here / "features.zarr"))


def test_a_damaged_calibration_is_refused(here: Path) -> None:
    path = here / "features.zarr.similar" / CALIBRATION
    path.write_text(path.read_text().replace('"agreement": 0.7', '"agreement": 0.1'))
    result = fcache("duplicates")
    assert result.exit_code == 1
    assert "calibration.json" in result.stderr
    assert "Traceback" not in result.output


def test_repair_removes_what_is_damaged_of_the_index(here: Path) -> None:
    victim = next((here / "features.zarr.similar" / "voice" / "vectors").iterdir())
    flip(victim, 30)
    assert fcache("verify").exit_code == 1
    assert "mended: voice: " + victim.name in fcache("repair").stdout
    assert fcache("verify").exit_code == 0
    assert "vectors computed" in fcache("index").output
    assert victim.is_file()


def test_equal_stores_give_equal_bytes_with_any_number_of_threads(tmp_path: Path) -> None:
    clips = planted.planted_clips(90)
    roots = []
    for number, threads in enumerate(("1", "2")):
        location = tmp_path / str(number) / "s.zarr"
        planted.write_store(location, clips)
        code = f"import featurecache; from featurecache.explore.search import update_indices as u; \
u(featurecache.open_store({str(location)!r}))"
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        )
        roots.append(tmp_path / str(number) / "s.zarr.similar")
    assert contents(roots[0]) == contents(roots[1])


def test_an_index_that_grew_with_its_store_equals_one_made_at_once(tmp_path: Path) -> None:
    clips = planted.planted_clips(90)
    for count in (20, 48, 90):
        update_indices(planted.write_store(tmp_path / "grown" / "s.zarr", clips[:count]))
    writer = featurecache.open_store(tmp_path / "grown" / "s.zarr", "a").writer("face", planted.spec_of("face"))
    writer.retry(["c085"])
    (shard,) = writer.pending()
    with writer.begin(shard) as open_shard:
        open_shard.put(0, planted.tokens("c006", "face", planted.label_of(6)), "f" * 64)
        open_shard.commit()
    update_indices(featurecache.open_store(tmp_path / "grown" / "s.zarr"))
    shutil.copytree(tmp_path / "grown" / "s.zarr", tmp_path / "copied" / "s.zarr")
    update_indices(featurecache.open_store(tmp_path / "copied" / "s.zarr"))
    assert contents(tmp_path / "grown" / "s.zarr.similar") == contents(tmp_path / "copied" / "s.zarr.similar")


COMMANDS = [
    ("similar", "c005", "--json"),
    ("duplicates",),
    ("leaks", "--train", "train", "--test", "test"),
    ("audit",),
    ("map", "--by", "emotion", "--out", "map"),
]


@pytest.mark.parametrize(
    ("command", "reason"),
    [*((command, errno.EROFS) for command in COMMANDS), (COMMANDS[0], errno.EACCES), (COMMANDS[0], errno.ENOSPC)],
    ids=lambda value: value[0] if isinstance(value, tuple) else errno.errorcode[value],
)
def test_where_nothing_can_be_written_the_index_is_kept_in_memory(
    here: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], reason: int
) -> None:
    (here / "features.zarr.similar" / CALIBRATION).unlink()
    expected = fcache(*command)
    shutil.rmtree(here / "features.zarr.similar")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(files_module, "make_folder", refuse)
    result = fcache(*command)
    assert result.exit_code == 0, result.output
    assert result.stdout == expected.stdout
    assert "kept in memory" in result.stderr
    assert not (here / "features.zarr.similar").exists()


def test_the_index_command_says_what_it_could_not_write(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(here / "features.zarr.similar")
    (here / "features.zarr.similar").write_text("in the way")
    result = fcache("index")
    assert result.exit_code == 1
    assert "--index DIR" in result.stderr
    assert "Traceback" not in result.output


def test_an_index_may_lie_in_a_folder_of_its_own(here: Path) -> None:
    expected = fcache("similar", "c005", "--json").stdout
    shutil.rmtree(here / "features.zarr.similar")
    assert "elsewhere" in fcache("index", "--index", "elsewhere").output
    assert fcache("similar", "c005", "--json", "--index", "elsewhere").stdout == expected
    assert not (here / "features.zarr.similar").exists()
    flip(here / "elsewhere" / "face" / "space", 99)
    assert fcache("verify").exit_code == 0
    assert fcache("verify", "--index", "elsewhere").exit_code == 1


def test_a_damaged_inverted_file_is_noticed_and_built_anew(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_EXACT", 10)
    store = featurecache.open_store(here / "features.zarr")
    neighbourhood = open_neighbourhood(store)
    search.approximate_index(store, neighbourhood)
    folder = here / "features.zarr.similar" / "approximate"
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        flip(path, len(data) // 2)
        assert verify_store(store).exit_code == 1
        search.approximate_index(store, neighbourhood)
        assert verify_store(store).exit_code == 0
        assert path.read_bytes() == data


def test_files_of_an_earlier_format_are_noticed_and_removed(here: Path) -> None:
    old = here / "features.zarr.similar" / "face" / "space.safetensors"
    old.write_bytes(b"x")
    report = verify_store(featurecache.open_store(here / "features.zarr"))
    assert report.exit_code == 0
    assert "space.safetensors" in str(report.notices)
    fcache("index")
    assert not old.exists()


def test_no_fault_is_found_where_there_is_no_index(tmp_path: Path) -> None:
    assert index_faults(IndexFiles(tmp_path / "nothing"), ["face"]) == []


def test_a_stated_similarity_is_at_most_one(here: Path) -> None:
    rows = [json.loads(line) for line in fcache("similar", "c005", "--json").stdout.splitlines()]
    assert all(-1 <= row["similarity"] <= 1 for row in rows)
