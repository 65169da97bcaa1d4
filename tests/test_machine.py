"""Systems other than Linux: what they lack is replaced, and Windows is told at once."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from featurecache import machine

TESTS = Path(__file__).parent
PACKAGES = ("featurecache", "fusion_train")
LINUX_ALONE = {
    "sched_getaffinity", "posix_fadvise", "posix_fallocate", "preadv", "pwritev", "O_TMPFILE", "O_DIRECT",
    "copy_file_range", "memfd_create", "pidfd_open", "getrandom", "SC_AVPHYS_PAGES",
}  # fmt: skip
LIKE_MACOS = """
import os
for name in {names!r}:
    if hasattr(os, name):
        delattr(os, name)
for name in [name for name in dir(os) if name.startswith(("POSIX_FADV_", "RWF_"))]:
    delattr(os, name)
import asyncio  # which asks for SC_IOV_MAX itself from Python 3.13 on
names = {{name: number for name, number in os.sysconf_names.items() if name not in ("SC_AVPHYS_PAGES", "SC_IOV_MAX")}}
whole = os.sysconf
os.sysconf_names, os.sysconf = names, lambda name: whole(names[name])
"""
STORE = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
import featurecache
from featurecache.store.shard_files import OpenFile, RowRead, read_rows
from small_stores import build, clip_ids, tokens_of

ids = clip_ids(3)
feature = build(Path(sys.argv[2]))["whisper"]
assert (feature.read(ids) == np.stack([tokens_of(clip_id) for clip_id in ids]).astype(np.float16)).all()

file = OpenFile(Path(sys.argv[1]) / "small_stores.py")
whole = Path(file.path).read_bytes()
rows = [RowRead(file, begin, np.zeros(200, np.uint8), lambda row: None) for begin in (400, 0, 200, 1000)]
read_rows(rows)
assert all(row.target.tobytes() == whole[row.begin : row.begin + 200] for row in rows)
file.cold = True  # as where the disk has to be waited for
read_rows([RowRead(file, 1200, rows[0].target, lambda row: None)])
assert rows[0].target.tobytes() == whole[1200:1400] and file.advised
"""


def run_without(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = LIKE_MACOS.format(names=sorted(LINUX_ALONE)) + code
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_calls_that_linux_alone_has_are_made_in_one_module():
    used = set()
    for package in PACKAGES:
        for path in (TESTS.parent / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
                if isinstance(name, str) and (name in LINUX_ALONE or name.startswith(("/proc/", "/sys/"))):
                    used.add(path.name)
    assert used == {"machine.py"}


def test_cores_and_memory_are_known_without_linux(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.usable_cores() == os.cpu_count()
    monkeypatch.setattr(os, "sysconf_names", {"SC_PHYS_PAGES": os.sysconf_names["SC_PHYS_PAGES"]})
    assert machine.memory_bytes() == psutil.virtual_memory().total
    assert machine.free_memory_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert machine.max_buffers() == 16


@pytest.mark.parametrize("has_preadv", [True, False])
def test_buffers_are_filled_in_order_and_as_far_as_the_file_goes(tmp_path, monkeypatch, has_preadv):
    if not has_preadv:
        monkeypatch.delattr(os, "preadv")
    data = np.random.default_rng(0).integers(0, 256, 100, np.uint8)
    (tmp_path / "file").write_bytes(data.tobytes())
    targets = [np.zeros(40, np.uint8), np.zeros(30, np.uint8), np.zeros(40, np.uint8)]
    with (tmp_path / "file").open("rb") as file:
        assert machine.read_into(file.fileno(), targets, 10, 0) == 90
    assert (np.concatenate(targets)[:90] == data[10:]).all()
    assert not targets[-1][20:].any()


def test_a_store_is_written_and_read_without_the_calls_of_linux(tmp_path):
    done = run_without(STORE, str(TESTS / "store"), str(tmp_path / "features.zarr"))
    assert done.returncode == 0, done.stderr


def test_a_device_for_a_sweep_s_worker_is_described_without_the_calls_of_linux(monkeypatch):
    from fusion_train.sweeps.engines.processes import environment

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environment("cpu", ["cpu", "cpu"])["OMP_NUM_THREADS"] == "3"


def test_windows_is_told_what_is_supported_when_it_is_imported():
    code = "import sys; sys.modules['fcntl'] = None; import featurecache"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: featurecache: expected Linux or macOS, got Windows, which has no fcntl. "
        "Install it in WSL 2 (wsl --install)."
    )


@pytest.mark.parametrize("memfd", ["there", "forbidden", "missing"])
def test_a_file_without_a_name_can_be_had_where_memfd_is_missing(memfd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(name: str) -> int:
        raise PermissionError(1, "Operation not permitted")

    if memfd == "forbidden":
        monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    elif memfd == "missing":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    descriptor = machine.anonymous_file()
    assert os.pwrite(descriptor, b"abc", 5) == 3
    assert os.pread(descriptor, 8, 0) == bytes(5) + b"abc"
    assert os.fstat(descriptor).st_nlink == 0
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
