"""Every damage is found by `verify`, and mended by `repair` to the very bytes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from small_stores import KINDS, build, clip_ids, contents, fill, make_spec, source_of, tokens_of

import featurecache
from featurecache.errors import CorruptStoreError, SpecError
from featurecache.maintenance.repair import Recompute, RecomputedClip, repair_store
from featurecache.maintenance.verify import VerifyReport, verify_store
from featurecache.store.formats import FORMATS
from featurecache.store.protocols import Status


def recompute_like(location: Path) -> Recompute:
    """Compute clips as the extraction of a sound store did, and remember which."""
    feature = featurecache.open_store(location)["whisper"]

    def recompute(name: str, ids: Sequence[str]) -> Iterator[RecomputedClip]:
        assert name == "whisper"
        for clip_id in ids:
            record = feature.record(clip_id)
            assert record is not None
            tokens = tokens_of(clip_id) if record.status is Status.OK else None
            yield RecomputedClip(clip_id, record.status, record.source, tokens, record.reason)

    return recompute


@pytest.fixture
def plain(place: Path, kind: str) -> Path:
    """A store without retries, so that recomputing a clip has one answer."""
    store = featurecache.open_store(place, mode="a")
    writer = store.writer("whisper", make_spec(), shard_rows=4, codec=KINDS[kind][1])
    for count in (10, 14):
        writer.plan(clip_ids(count))
        fill(writer, failed=clip_ids(1, 5), absent=clip_ids(1, 4))
    return place


def verified(location: Path) -> VerifyReport:
    return verify_store(featurecache.open_store(location))


def test_a_sound_store_has_no_problems(plain: Path) -> None:
    report = verified(plain)
    assert not report.problems
    assert (report.num_shards, report.num_rows, report.exit_code) == (4, 12, 0)
    assert "sound" in str(report)


@pytest.mark.parametrize("stored_dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("flips", [pytest.param(6, id="some"), pytest.param(1000, marks=pytest.mark.slow, id="1000")])
def test_every_flipped_bit_is_found_and_mended(place: Path, kind: str, copied, stored_dtype: str, flips: int) -> None:
    store = featurecache.open_store(place, mode="a")
    writer = store.writer("whisper", make_spec(stored_dtype), shard_rows=4, codec=KINDS[kind][1])
    writer.plan(clip_ids(9))
    fill(writer, failed=clip_ids(1, 5), absent=clip_ids(1, 4))
    recompute = recompute_like(copied(place))
    sound = contents(place)
    names = sorted(sound)
    randomness = random.Random(f"{kind} {stored_dtype}")
    for number in range(flips):
        sizes = [len(sound[name]) for name in names] if number % 2 else None  # half of them by size, half by file
        name = randomness.choices(names, sizes)[0]
        bit = randomness.randrange(8 * len(sound[name]))
        flipped = bytearray(sound[name])
        flipped[bit // 8] ^= 1 << bit % 8
        (place / name).write_bytes(flipped)
        assert verified(place).damage, f"bit {bit} of {name} was not noticed"
        report = repair_store(featurecache.open_store(place, mode="a"), recompute)
        assert not report.left, (name, bit)
        assert contents(place) == sound, (name, bit)


DAMAGES = ["truncated", "emptied", "deleted", "extended", "foreign", "swapped"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", ["shard", "record", "plan", "spec", "derived", "root"])
def test_whole_files_that_are_lost_or_wrong_are_found_and_mended(
    plain: Path, kind: str, copied, tmp_path: Path, damage: str, what: str
) -> None:
    feature = featurecache.open_store(plain)["whisper"]
    shards = [feature.format.paths(feature.folder, shard, feature.parts)[0] for shard in (0, 1)]
    files = {
        "shard": [shard.relative_to(plain).as_posix() for shard in shards],
        "record": ["whisper/.fcache/records/00000000", "whisper/.fcache/records/00000001"],
        "plan": ["whisper/.fcache/plan/00000", "whisper/.fcache/plan/00001"],
        "spec": ["whisper/.fcache/spec.json"] * 2,
        "derived": [f"whisper/{FORMATS[KINDS[kind].format].spec_copy}"] * 2,
        "root": [*FORMATS[KINDS[kind].format].root_files()] * 2,
    }[what]
    recompute = recompute_like(copied(plain))
    sound = contents(plain)
    path, second = (plain / name for name in files)
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[:-3])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "extended":
        path.write_bytes(data + b"\0")
    elif damage == "deleted":
        path.unlink()
    elif damage == "swapped":
        if path == second:
            pytest.skip("there is only one")
        other = second.read_bytes()
        second.write_bytes(data)
        path.write_bytes(other)
    else:
        foreign = build(tmp_path / "other" / plain.name, kind, "float32")
        path.write_bytes((foreign.root / files[0]).read_bytes())
        if path.read_bytes() == data:
            pytest.skip("the same in every store")
    opened = featurecache.open_store(plain, mode="a", format=KINDS[kind].format)
    if (what, damage) == ("record", "deleted"):  # a shard without a record is as if it were never extracted
        assert {problem.kind for problem in verify_store(opened).notices} == {"pending", "orphan"}
        fill(opened.writer("whisper", make_spec()), failed=clip_ids(1, 5), absent=clip_ids(1, 4))
    else:
        assert verify_store(opened).damage
    assert not repair_store(opened, recompute).left
    assert contents(plain) == sound


def test_only_lost_rows_are_computed_anew(plain: Path, kind: str, copied) -> None:
    good = copied(plain)
    recompute = recompute_like(good)
    feature = featurecache.open_store(plain)["whisper"]
    bad = clip_ids(1, 2)[0]
    record = feature.record(bad)
    path = feature.format.paths(feature.folder, record.shard, feature.parts)[0]
    data = bytearray(path.read_bytes())
    tokens = feature.rows_at(0, record.slot)[0][0].tobytes()
    compressed = KINDS[kind].codec != "none"
    begin = int(feature.committed[0].columns["offset"][record.slot]) + 20 if compressed else data.find(tokens)
    data[begin + 7] ^= 1
    path.write_bytes(data)
    store = featurecache.open_store(plain, mode="a")
    assert not repair_store(store).mended  # nothing to mend it with
    assert repair_store(store).left
    report = repair_store(store, recompute)
    assert report.recomputed == [("whisper", bad)]
    assert contents(plain) == contents(good)


def test_a_damaged_index_costs_no_recomputing(tmp_path: Path) -> None:
    store = build(tmp_path / "s.zarr")
    sound = contents(store.root)
    path = store.root / "whisper/c/1/0/0"
    data = bytearray(path.read_bytes())
    data[-8] ^= 4
    path.write_bytes(data)
    assert [problem.kind for problem in verify_store(store, quick=True).damage] == ["index"]
    assert not repair_store(store).recomputed
    assert contents(store.root) == sound


def test_media_that_changed_are_not_mixed_in_by_repair(plain: Path, copied) -> None:
    feature = featurecache.open_store(plain)["whisper"]
    for path in feature.format.paths(feature.folder, 0, feature.parts):
        path.unlink()

    def recompute(name: str, ids: Sequence[str]) -> Iterator[RecomputedClip]:
        yield from (RecomputedClip(clip_id, Status.OK, source_of("other media"), tokens_of(clip_id)) for clip_id in ids)

    report = repair_store(featurecache.open_store(plain, mode="a"), recompute)
    assert "fcache retry" in report.left[0]
    assert not report.recomputed


def test_reading_a_damaged_row_names_the_clip_and_the_next_step(plain: Path, kind: str) -> None:
    feature = featurecache.open_store(plain)["whisper"]
    path = feature.format.paths(feature.folder, 0, feature.parts)[0]
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    record = feature.committed[0]
    begin = feature.format.begin(record, 1, feature.parts[0])
    data[(int(record.columns["offset"][1]) + 20) if begin is None else begin] ^= 1
    path.write_bytes(data.tobytes())
    bad = clip_ids(1, 1)[0]
    for read in (lambda each: each.read([bad]), lambda each: each[bad]):
        with pytest.raises(CorruptStoreError, match="fcache repair"):
            read(featurecache.open_store(plain)["whisper"])
    if KINDS[kind].codec == "none":  # a damaged compressed row cannot even be unpacked
        assert featurecache.open_store(plain, verify="never")["whisper"].read([bad]).shape[0] == 1


def test_a_damaged_record_or_spec_is_refused_on_opening(small_store) -> None:
    record = small_store.folder("whisper").record(0)
    record.write_bytes(record.read_bytes()[:-1])
    with pytest.raises(CorruptStoreError, match="fcache repair"):
        featurecache.open_store(small_store.location)["whisper"]
    spec = small_store.folder("whisper").spec
    spec.write_text(spec.read_text().replace('"heads": 2', '"heads": 3'))
    with pytest.raises(SpecError, match="fingerprint"):
        featurecache.open_store(small_store.location)["whisper"]


def test_oddities_are_told_and_are_no_damage(tmp_path: Path) -> None:
    store = featurecache.open_store(tmp_path / "s.zarr", mode="a")
    writer = store.writer("whisper", make_spec(), shard_rows=4)
    writer.plan(["zero", "one", "twin", "rest", "pending"])
    with writer.begin(writer.pending()[0]) as shard_writer:
        shard_writer.put(0, np.zeros(writer.shape, np.float32), source_of("zero"))
        for slot, clip_id in enumerate(["one", "twin", "rest"], 1):
            tokens = tokens_of("one" if clip_id == "twin" else clip_id)
            shard_writer.put(
                slot, tokens[:1].repeat(len(tokens), 0) if clip_id == "rest" else tokens, source_of(clip_id)
            )
        shard_writer.commit()
    (tmp_path / "s.zarr/notes.txt").write_text("mine")
    (tmp_path / "s.zarr/whisper/c/9/0").mkdir(parents=True)
    (tmp_path / "s.zarr/whisper/c/9/0/0").write_text("orphan")
    (tmp_path / "s.zarr/whisper/.fcache/tmp/.tmp-1").write_text("left")
    report = verify_store(store)
    assert not report.damage
    assert {problem.kind for problem in report.notices} == {
        "zero",
        "equal",
        "twins",
        "pending",
        "foreign",
        "orphan",
        "temporary",
    }
    equal_rows = [problem for problem in report.notices if problem.kind == "equal"]
    assert [(problem.clip_id, problem.message) for problem in equal_rows] == [("rest", "its 5 tokens are all equal")]


def test_lost_plans_of_shards_that_were_not_extracted_are_planned_again(tmp_path: Path) -> None:
    store = featurecache.open_store(tmp_path / "s.zarr", mode="a")
    writer = store.writer("whisper", make_spec(), shard_rows=4)
    writer.plan(clip_ids(12))
    with writer.begin(writer.pending()[0]) as shard_writer:
        for slot, clip_id in enumerate(shard_writer.shard.ids):
            shard_writer.put(slot, tokens_of(clip_id), source_of(clip_id))
        shard_writer.commit()
    store.folder("whisper").segment(0).write_bytes(b"lost")
    assert repair_store(store).mended
    writer = store.writer("whisper", make_spec())
    assert not writer.pending()
    writer.plan(clip_ids(12))
    fill(writer)
    assert sorted(writer.ids) == clip_ids(12)
    assert not verify_store(store).damage


def test_a_spec_lost_in_both_copies_is_told(small_store) -> None:
    small_store.folder("whisper").spec.unlink()
    shutil.copy(small_store.root / "zarr.json", small_store.root / "whisper/zarr.json")
    report = repair_store(small_store)
    assert "restore one of them" in report.left[0]
