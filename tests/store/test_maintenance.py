"""Importing, describing, comparing, collecting; and the commands that do so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from small_stores import SHAPE, build, clip_ids, contents, fill, make_spec, source_of, tokens_of

import featurecache
from featurecache.cli import main
from featurecache.errors import FingerprintError, MissingFeatureError, StoreError, StoreNotFoundError
from featurecache.importers.npy import import_npy
from featurecache.maintenance.describe import describe_clip, draw_clip, statistics, store_info
from featurecache.maintenance.diff import compare_stores
from featurecache.maintenance.gc import find_leftovers, remove_leftovers
from featurecache.media.crash_guard import PREFIX, InFlightFile, clips_of_dead_processes
from featurecache.store.local import LocalStore
from featurecache.store.protocols import Status


@pytest.fixture
def npy_folder(tmp_path: Path) -> Path:
    """The reference's layout: one float32 file (1, K, D) a clip."""
    folder = tmp_path / "features"
    for encoder in ("EVA-ViT-G", "whisper-large-v3"):
        (folder / encoder).mkdir(parents=True)
        for number in range(5):
            np.save(folder / encoder / f"{number:04d}.npy", tokens_of(f"{encoder} {number}")[None])
    return folder


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_folder_of_npy_becomes_a_store_that_says_its_origin_is_unverified(tmp_path: Path, npy_folder: Path) -> None:
    store = featurecache.open_store(tmp_path / "s.zarr", "a")
    done = import_npy(npy_folder, store)
    assert [(imported.name, imported.num_ok) for imported in done] == [("EVA-ViT-G", 5), ("whisper-large-v3", 5)]
    feature = store["whisper-large-v3"]
    assert feature.spec.preprocessing["origin"] == "unverified"
    assert not feature.spec.weights
    assert np.array_equal(feature["0003"], tokens_of("whisper-large-v3 3").astype(np.float16))
    np.save(npy_folder / "whisper-large-v3/new.npy", tokens_of("new"))  # (K, D) is read too
    assert [imported.num_ok for imported in import_npy(npy_folder / "whisper-large-v3", store)] == [1]
    assert len(featurecache.open_store(store.location)["whisper-large-v3"]) == 6


def test_npy_files_that_cannot_be_used_become_failed_clips(tmp_path: Path, npy_folder: Path) -> None:
    folder = npy_folder / "whisper-large-v3"
    np.save(folder / "shape.npy", np.zeros((1, 3, 3), np.float32))
    np.save(folder / "nan.npy", np.full((1, *SHAPE), np.nan, np.float32))
    np.save(folder / "large.npy", np.full((1, *SHAPE), 1e9, np.float32))
    np.save(folder / "whole.npy", np.zeros(SHAPE, np.int64))
    np.save(folder / "object.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (folder / "empty.npy").write_bytes(b"")
    store = featurecache.open_store(tmp_path / "s.zarr", "a")
    (done,) = import_npy(folder, store, "whisper")
    assert set(done.failures) == {"shape", "nan", "large", "whole", "object", "empty"}
    assert store["whisper"].counts[Status.FAILED] == 6
    assert len(store["whisper"]) == 5


def test_npy_files_that_change_under_an_old_id_are_refused_until_a_retry(tmp_path: Path, npy_folder: Path) -> None:
    folder = npy_folder / "whisper-large-v3"
    (folder / "empty.npy").write_bytes(b"")
    store = featurecache.open_store(tmp_path / "s.zarr", "a")
    import_npy(folder, store)
    np.save(folder / "0002.npy", tokens_of("changed")[None])
    np.save(folder / "empty.npy", tokens_of("now there")[None])
    with pytest.raises(FingerprintError, match="--retry") as caught:
        import_npy(folder, store)
    assert caught.value.problems == ["0002"]
    (done,) = import_npy(folder, store, retry=True)
    assert (done.num_ok, done.num_earlier) == (2, 4)
    feature = featurecache.open_store(store.location)["whisper-large-v3"]
    assert np.array_equal(feature["0002"], tokens_of("changed").astype(np.float16))
    (done,) = import_npy(folder, store)
    assert (done.num_ok, done.num_earlier) == (0, 6)


def test_one_file_of_another_shape_does_not_decide_the_shape_of_all(tmp_path: Path, npy_folder: Path) -> None:
    folder = npy_folder / "EVA-ViT-G"
    np.save(folder / "0.npy", np.zeros((1, 3, 3), np.float32))
    (done,) = import_npy(folder, featurecache.open_store(tmp_path / "s.zarr", "a"))
    assert (done.num_ok, list(done.failures)) == (5, ["0"])


def test_importing_what_is_not_there_is_told(tmp_path: Path, npy_folder: Path) -> None:
    store = featurecache.open_store(tmp_path / "s.zarr", "a")
    with pytest.raises(StoreNotFoundError):
        import_npy(tmp_path / "nowhere", store)
    with pytest.raises(StoreError, match="one folder"):
        import_npy(npy_folder, store, "both")
    (tmp_path / "none").mkdir()
    with pytest.raises(StoreNotFoundError, match=r"\.npy"):
        import_npy(tmp_path / "none", store)


def test_info_counts_clips_bytes_and_failures(small_store: LocalStore) -> None:
    (info,) = store_info(small_store).features
    assert (info.num_ok, info.num_failed, info.num_absent, info.num_shards) == (10, 1, 1, 5)
    assert info.failures == {"the decoder gave up": 1}
    (failed,) = [record.id for record in small_store["whisper"].records() if record.reason == "the decoder gave up"]
    assert info.failed_ids == {"the decoder gave up": [failed]}
    assert info.num_pending == 0
    assert info.num_bytes == sum(path.stat().st_size for path in small_store.root.glob("whisper/c/*/0/0"))


def test_info_tells_of_pending_clips_and_of_features_that_cannot_be_read(small_store: LocalStore) -> None:
    other = small_store.writer("eva", make_spec())
    other.plan(clip_ids(7))
    record = small_store.folder("whisper").record(0)
    record.write_bytes(record.read_bytes()[:-1])
    found = store_info(featurecache.open_store(small_store.location))
    assert [(feature.name, feature.num_pending) for feature in found.features] == [("eva", 7)]
    assert "fcache repair" in found.damaged["whisper"]
    result = run("info", "--store", small_store.root)
    assert result.exit_code == 1
    assert "whisper: damaged" in result.output
    assert "`fcache extract` does what is pending" in result.output


def test_a_clip_is_described_and_drawn(small_store: LocalStore, tmp_path: Path) -> None:
    (clip,) = describe_clip(small_store, "set/clip_001")
    assert clip.feature.spec.provenance == {"hub": "some/model"}
    tokens = tokens_of("set/clip_001")
    assert clip.statistics["mean"] == pytest.approx(tokens.mean(), abs=1e-3)
    assert clip.statistics["max"] == pytest.approx(tokens.max(), rel=1e-3)
    with Image.open(draw_clip(small_store["whisper"], "set/clip_001", tmp_path / "plots")) as picture:
        assert min(picture.size) > 100
    with pytest.raises(MissingFeatureError):
        describe_clip(small_store, "nothing")
    with pytest.raises(MissingFeatureError, match='Did you mean "set/clip_0'):
        describe_clip(small_store, "set/clip_01")
    assert statistics(np.zeros((2, 3), np.float16))["zero_tokens"] == 2


def test_differences_between_stores_are_named(tmp_path: Path) -> None:
    left, right = (featurecache.open_store(tmp_path / name, "a") for name in ("l.zarr", "r.wds"))
    for store, change in ((left, 0.0), (right, 0.25)):
        spec = make_spec() if not change else make_spec(tap={"blocks": 9})
        writer = store.writer("whisper", spec)
        writer.plan([*clip_ids(4), "only-left" if not change else "only-right"])
        with writer.begin(writer.pending()[0]) as shard_writer:
            shard_writer.put(0, np.round(tokens_of("a")), source_of("a"))
            shard_writer.put(1, np.round(tokens_of("b")) + change, source_of("b"))
            shard_writer.put(2, np.round(tokens_of("c")), source_of(f"c{change}"))
            if change:
                shard_writer.fail(3, "no")
            else:
                shard_writer.put(3, tokens_of("d"), "")
            shard_writer.put(4, tokens_of("e"), "")
            shard_writer.commit()
    extra = right.writer("eva", make_spec())
    extra.plan(["a"])
    fill(extra)
    eva, whisper = compare_stores(left, right)
    assert eva.only_in == right.location
    assert whisper.spec == ["tap.blocks: 4 != 9"]
    assert (whisper.only_left, whisper.only_right) == (["only-left"], ["only-right"])
    assert (whisper.unequal, whisper.largest) == ([clip_ids(2)[1]], 0.25)
    assert whisper.status == [f"{clip_ids(4)[3]}: ok, failed"]
    assert whisper.source == [clip_ids(3)[2]]
    assert not whisper.same
    assert "by at most 0.25" in str(whisper)


def test_leftovers_are_listed_and_then_removed(small_store: LocalStore) -> None:
    before = contents(small_store.root)
    for path in ("whisper/c/9/0/0", "whisper/.fcache/tmp/.tmp-dead", "mine.txt"):
        (small_store.root / path).parent.mkdir(parents=True, exist_ok=True)
        (small_store.root / path).write_bytes(b"12345")
    littered = contents(small_store.root)
    leftovers = find_leftovers(small_store)
    assert leftovers.num_bytes == 10
    assert contents(small_store.root) == littered
    remove_leftovers(small_store)
    assert contents(small_store.root) == before | {"mine.txt": b"12345"}
    assert not (small_store.root / "whisper/c/9").exists()
    assert leftovers.superseded_bytes == 0  # the retried clip had failed: it had no row


def test_files_of_dead_writers_are_removed_but_not_the_names_of_clips_that_may_crash_the_next_one(
    small_store: LocalStore,
) -> None:
    before = contents(small_store.root)
    waiting, committed = "not extracted yet", clip_ids(1)[0]
    writer = small_store.writer("whisper", small_store.spec("whisper"))
    writer.plan([waiting])
    planned = contents(small_store.root)
    assert planned != before
    leases = small_store.folder("whisper").leases
    leases.mkdir(exist_ok=True)
    (leases / "00000007").touch()
    for number, clip_id in enumerate((committed, waiting)):
        (leases / f"{PREFIX}{number}").write_bytes(bytes([len(clip_id)]) + clip_id.encode())
    alive = InFlightFile(leases, slots=1)
    with alive.holding(committed):
        leftovers = remove_leftovers(small_store)
        assert sorted(path.name for path in leftovers.temporary) == ["00000007", "decoding-0"]
        assert len(list(leases.iterdir())) == 2  # of the waiting clip, and of this process
    alive.close()
    assert clips_of_dead_processes(leases) == {leases / "decoding-1": {waiting}}


def test_the_commands_convert_compare_verify_and_mend(tmp_path: Path) -> None:
    place = build(tmp_path / "a.zarr").root
    assert run("convert", place, tmp_path / "b.wds").exit_code == 0
    assert run("convert", tmp_path / "b.wds", tmp_path / "c.zarr", "--compress").exit_code == 0
    assert run("convert", place, tmp_path / "d.zarr", "--compact").exit_code == 0
    for other in ("b.wds", "c.zarr", "d.zarr"):
        result = run("diff", place, tmp_path / other)
        assert result.exit_code == 0, result.output
        assert "10 clips equal" in result.output
        assert run("verify", "--store", tmp_path / other).exit_code == 0
    shutil.copytree(place, tmp_path / "whole.zarr")
    shard = place / "whisper/c/0/0/0"
    data = bytearray(shard.read_bytes())
    data[-6] ^= 1
    shard.write_bytes(data)
    assert run("verify", "--quick", "--store", place).exit_code == 1
    result = run("repair", "--no-recompute", "--store", place)
    assert (result.exit_code, "1 mended" in result.output) == (0, True), result.output
    assert contents(place) == contents(tmp_path / "whole.zarr")
    data[0] ^= 1
    shard.write_bytes(data)
    result = run("repair", "--no-recompute", "--store", place)
    assert result.exit_code == 1
    assert "must be recomputed: set/clip_000" in result.output


@pytest.mark.parametrize("copy", ["files", "files of prefixed ids", "store"])
def test_lost_rows_are_taken_from_a_copy_or_from_the_files_they_were_imported_from(
    tmp_path: Path, npy_folder: Path, copy: str
) -> None:
    place = tmp_path / "s.zarr"
    prefix = "set/" if copy == "files of prefixed ids" else ""
    assert run("import-npy", npy_folder, "--store", place, "--dtype", "int8", "--prefix", prefix).exit_code == 0
    assert run("convert", place, tmp_path / "copy.wds").exit_code == 0
    sound = contents(place)
    for path in ("EVA-ViT-G/c/0/0/0", "whisper-large-v3.scales/c/0/0/0"):
        data = bytearray((place / path).read_bytes())
        data[0] ^= 1
        (place / path).write_bytes(data)
    (place / "whisper-large-v3/.fcache/records/00000000").write_bytes(b"")
    clips = tmp_path / "clips.jsonl"
    clips.write_text('{"id": "0001", "text": "x"}\n')
    missing = run("repair", "--store", place, "--clips", clips, "--name", "EVA-ViT-G")
    assert missing.exit_code == 1
    assert "its encoder EVA-ViT-G is not installed" in missing.output
    result = run("repair", "--store", place, "--from", tmp_path / "copy.wds" if copy == "store" else npy_folder)
    assert result.exit_code == 0, result.output
    assert "6 rows taken from" in result.output
    assert contents(place) == sound


def test_rows_are_not_taken_from_files_that_have_changed(tmp_path: Path, npy_folder: Path) -> None:
    place = tmp_path / "s.zarr"
    assert run("import-npy", npy_folder / "EVA-ViT-G", "--store", place).exit_code == 0
    shard = place / "EVA-ViT-G/c/0/0/0"
    shard.write_bytes(b"")
    np.save(npy_folder / "EVA-ViT-G/0002.npy", tokens_of("changed")[None])
    result = run("repair", "--store", place, "--from", npy_folder / "EVA-ViT-G")
    assert result.exit_code == 1
    assert "0002 (its media changed" in result.output


def test_problems_of_one_kind_are_not_listed_without_end(small_store: LocalStore) -> None:
    for number in range(30):
        (small_store.root / "whisper" / f"mine-{number}").write_text("x")
    short, long = (run("verify", "--store", small_store.root, *more) for more in ((), ("--all",)))
    assert short.exit_code == long.exit_code == 0
    assert "… and 10 more (foreign); --all lists them" in short.output
    assert short.output.count("is not of this store") == 20
    assert long.output.count("is not of this store") == 30


def test_the_commands_import_show_and_collect(tmp_path: Path, npy_folder: Path) -> None:
    place = tmp_path / "s.zarr"
    result = run("import-npy", npy_folder / "EVA-ViT-G", "--name", "eva", "--store", place, "--dtype", "int8")
    assert result.exit_code == 0, result.output
    assert "5 clips imported" in result.output
    result = run("show", "0001", "--store", place, "--plot", tmp_path / "plots")
    assert result.exit_code == 0, result.output
    assert "by int8" in result.output
    assert list((tmp_path / "plots").glob("*.png"))
    assert "eva" in run("info", "--store", place).output
    (place / "eva/.fcache/tmp/.tmp-dead").write_bytes(b"x")
    assert "would remove" in run("gc", "--store", place).output
    assert (place / "eva/.fcache/tmp/.tmp-dead").exists()
    assert "removed" in run("gc", "--store", place, "--delete").output
    assert not (place / "eva/.fcache/tmp/.tmp-dead").exists()


def test_retrying_a_feature_without_an_encoder_is_told(tmp_path: Path, npy_folder: Path) -> None:
    place = tmp_path / "s.zarr"
    run("import-npy", npy_folder / "EVA-ViT-G", "--name", "eva", "--store", place)
    clips = tmp_path / "clips.jsonl"
    clips.write_text('{"id": "0001", "text": "x"}\n')
    result = run("retry", "--store", place, "--clips", clips)
    assert result.exit_code == 2
    assert "encoders that are installed" in result.output
