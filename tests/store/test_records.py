"""Commit records: every field, and every bound from both sides. Stores made to do harm are in test_hostile.py."""

from __future__ import annotations

import numpy as np
import pytest

from featurecache.errors import CorruptStoreError
from featurecache.store import columns
from featurecache.store.layout import MAX_ROW_BYTES, MAX_SHARD_ROWS, id_hash
from featurecache.store.protocols import ClipRecord, Status
from featurecache.store.records import (
    MAGIC,
    MAX_REASON_CHARACTERS,
    QUANTISED_COLUMNS,
    RecordBuilder,
    check_record,
    clean_reason,
)

SOURCES = ["ab" * 32, "", "01" * 32]
IDS = [b"one", "zw\u00f6lf".encode(), b"c/3"]


def make_builder(optional=QUANTISED_COLUMNS) -> RecordBuilder:
    builder = RecordBuilder(7, IDS, 4, "f" * 64, "none", 60, optional)
    errors = {name: 0.25 * number for number, name in enumerate(optional)}
    builder.set(2, Status.OK, SOURCES[2], values={"crc32c": 9, "absmax": 2.5, "nan": 0, **errors})
    builder.set(0, Status.FAILED, SOURCES[0], "the decoder\ngave up")
    builder.set(1, Status.ABSENT, SOURCES[1], "no sound", values={"nan": 3})
    return builder


def checked(change=None, replaced=None, drop=(), shard: int = 7, fingerprint: str = "f" * 64):
    """The record written and read again, its header and columns changed in between."""
    header, arrays = columns.unpack(make_builder().build((240, 24)).pack(), MAGIC, "record", "")
    chosen_arrays = {name: column for name, column in (arrays | (replaced or {})).items() if name not in drop}
    return check_record(header | (change or {}), chosen_arrays, "record", shard, fingerprint)


def test_every_field_of_every_clip_is_read_back():
    record = checked()
    assert (record.shard, record.shard_rows, record.fingerprint, record.codec) == (7, 4, "f" * 64, "none")
    assert (record.row_bytes, record.file_bytes, len(record)) == (60, (240, 24), 3)
    assert record.reasons == ("", "no sound", "the decoder gave up")
    assert list(record.encoded_ids()) == IDS
    assert record.columns["id_hash"].tolist() == [id_hash(encoded) for encoded in IDS]
    none = dict.fromkeys(QUANTISED_COLUMNS[1:], 0.0)
    assert list(record.clips()) == [
        ClipRecord("one", Status.FAILED, 7, 0, SOURCES[0], "the decoder gave up", 0, 0.0, 0, none),
        ClipRecord("zw\u00f6lf", Status.ABSENT, 7, 1, "", "no sound", 0, 0.0, 3, none),
        ClipRecord(
            "c/3",
            Status.OK,
            7,
            2,
            SOURCES[2],
            "",
            9,
            2.5,
            0,
            {"error_rms": 0.25, "error_max": 0.5, "error_cosine": 0.75},
        ),
    ]


def test_a_record_without_measured_errors_states_none():
    assert make_builder(optional=()).build((240,)).clip(2).errors == {}


@pytest.mark.parametrize(
    ("slot", "source", "message"),
    [
        (-1, "", "slot -1: expected 0 to 2"),
        (3, "", "slot 3: expected 0 to 2"),
        (1, "ab" * 31, "source: expected 64 hex digits"),
        (1, "ab" * 33, "source: expected 64 hex digits"),
        (0, "", "slot 0: decided before"),
    ],
)
def test_slots_are_decided_once_and_inside_the_shard(slot, source, message):
    builder = RecordBuilder(7, IDS, 4, "f" * 64, "none", 60)
    builder.set(0, Status.OK, "")
    with pytest.raises(ValueError, match=message):
        builder.set(slot, Status.OK, source)
    assert builder.decided.tolist() == [True, False, False]
    with pytest.raises(ValueError, match="2 slots are undecided"):
        builder.build((240,))


def test_a_part_holds_its_slots_in_their_new_order_with_all_that_was_decided():
    whole = make_builder().build((240, 24))
    part = make_builder().subset(9, [2, 0]).build((120, 12))
    assert (part.shard, part.shard_rows, part.codec, part.row_bytes) == (9, 4, "none", 60)
    for new, old in enumerate([2, 0]):
        before, after = whole.clip(old), part.clip(new)
        assert (after.id, after.status, after.source) == (before.id, before.status, before.source)
        assert (after.reason, after.crc32c, after.errors) == (before.reason, before.crc32c, before.errors)
        assert part.columns["id_hash"][new] == whole.columns["id_hash"][old]
    undecided = RecordBuilder(7, IDS, 4, "f" * 64, "none", 60).subset(9, [1])
    assert undecided.decided.tolist() == [False]
    assert make_builder().reason(1) == "no sound"


@pytest.mark.parametrize(
    "change",
    [
        {"shard_rows": 3},
        {"shard_rows": MAX_SHARD_ROWS},
        {"row_bytes": 1},
        {"row_bytes": MAX_ROW_BYTES},
        {"file_bytes": [1]},
        {"file_bytes": [1 << 62, 1]},
        {"reasons": ["", "a", "b", "c"]},
    ],
)
def test_the_largest_and_smallest_of_everything_are_read(change):
    assert checked(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_rows": 2}, "1 to 65536 rows per shard, got 2 with 3 clips"),
        ({"shard_rows": MAX_SHARD_ROWS + 1}, "rows per shard"),
        ({"shard_rows": True}, "rows per shard"),
        ({"shard_rows": 4.0}, "rows per shard"),
        ({"row_bytes": 0}, "rows of 1 to"),
        ({"row_bytes": MAX_ROW_BYTES + 1}, "rows of 1 to"),
        ({"file_bytes": []}, "one or two file sizes"),
        ({"file_bytes": [1, 2, 3]}, "one or two file sizes"),
        ({"file_bytes": [0]}, "one or two file sizes"),
        ({"file_bytes": [1, (1 << 62) + 1]}, "one or two file sizes"),
        ({"file_bytes": 240}, "one or two file sizes"),
        ({"reasons": ["", "a"]}, "known reasons and statuses"),
        ({"reasons": "abc"}, "a list of reasons"),
        ({"reasons": ["", "a", 3]}, "a list of reasons"),
        ({"codec": None}, "a codec"),
        ({"format": 2}, "format 1, got 2. Install the release of featurecache that wrote it."),
    ],
)
def test_a_header_that_contradicts_its_shard_is_refused(change, message):
    with pytest.raises(CorruptStoreError, match=message):
        checked(change)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"status": np.array([0, 3, 0], "|u1")}, "known reasons and statuses"),
        ({"crc32c": np.zeros(2, "<u4")}, "3 items of <u4 in crc32c, got 2 of <u4"),
        ({"crc32c": np.zeros(3, "<u8")}, "3 items of <u4 in crc32c, got 3 of <u8"),
        ({"source": np.zeros(95, "|u1")}, r"96 items of \|u1 in source"),
        ({"error_rms": np.zeros(4, "<f4")}, "3 items of <f4 in error_rms"),
        ({"ids": np.zeros(3, "<u2")}, "ids as bytes"),
        ({"ids_starts": np.zeros(4, "<u8")}, "ids as bytes"),
        ({"ids_starts": np.zeros(4, "<u4")}, "3 texts inside"),
        ({"offset": np.array([0, 241, 0], "<u8")}, "rows inside files"),
        ({"scales_length": np.array([0, 0, 241], "<u8")}, "rows inside files"),
    ],
)
def test_columns_that_do_not_fit_their_shard_are_refused(replaced, message):
    with pytest.raises(CorruptStoreError, match=message):
        checked(replaced=replaced)


def test_places_may_reach_the_end_of_a_file_and_every_status_is_known():
    places = np.array([0, 240, 0], "<u8")
    record = checked(replaced={"offset": places, "length": places, "status": np.array([0, 1, 2], "|u1")})
    assert [clip.status for clip in record.clips()] == [Status.OK, Status.FAILED, Status.ABSENT]


@pytest.mark.parametrize("name", ["status", "source", "ids", "ids_starts", "reason"])
def test_a_missing_column_is_named(name):
    with pytest.raises(CorruptStoreError, match=f"every column, got no {name}"):
        checked(drop=[name])


def test_a_record_in_another_place_is_refused():
    with pytest.raises(CorruptStoreError, match="the record of shard 8, got shard 7"):
        checked(shard=8)
    with pytest.raises(CorruptStoreError, match="fingerprint gggggggggggg…, got ffffffffffff…"):
        checked(fingerprint="g" * 64)


def test_reasons_are_one_line_of_bounded_length():
    assert clean_reason("a\tb\x1b[31m") == "a b [31m"
    assert clean_reason("x" * MAX_REASON_CHARACTERS) == "x" * MAX_REASON_CHARACTERS
    assert clean_reason("x" * (MAX_REASON_CHARACTERS + 1)) == "x" * (MAX_REASON_CHARACTERS - 1) + "…"
