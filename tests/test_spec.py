"""A spec's fingerprint names everything that decides the bytes, and nothing else. Errors are advice."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurecache import errors
from featurecache.errors import FeatureCacheError, MissingFeatureError, SpecError, suggest
from featurecache.spec import Spec, canonical_json

SPEC = Spec(
    encoder="whisper",
    implementation=1,
    weights={"model.safetensors": "ab" * 32},
    architecture={"heads": 20},
    tap={"module": "encoder", "blocks": 32},
    preprocessing={"sampling_rate": 16_000, "mean": [0.5, 0.25]},
    pooling={"tokens": 64},
    compute_dtype="float32",
    stored_dtype="float16",
    shape=(64, 1280),
    provenance={"hub": "openai/whisper-large-v3"},
)
CHANGES = {
    "encoder": "other",
    "implementation": 2,
    "weights": {"model.safetensors": "cd" * 32},
    "architecture": {"heads": 16},
    "tap": {"module": "encoder", "blocks": 31},
    "preprocessing": {"sampling_rate": 8_000, "mean": [0.5, 0.25]},
    "pooling": {"tokens": 32},
    "compute_dtype": "bfloat16",
    "stored_dtype": "float32",
    "shape": (32, 1280),
    "format": 2,
}


def test_the_table_of_changes_covers_every_fingerprinted_field() -> None:
    assert set(CHANGES) == set(SPEC.identity())


@pytest.mark.parametrize("field", CHANGES)
def test_any_changed_field_changes_the_fingerprint_and_is_named(field: str) -> None:
    other = dataclasses.replace(SPEC, **{field: CHANGES[field]})
    assert other.fingerprint != SPEC.fingerprint
    differences = SPEC.differences(other)
    assert differences
    assert all(difference.startswith(field) for difference in differences)


def test_where_the_weights_came_from_is_not_fingerprinted() -> None:
    assert dataclasses.replace(SPEC, provenance={"folder": "elsewhere"}).fingerprint == SPEC.fingerprint


def test_the_fingerprint_of_a_known_spec_never_changes() -> None:
    assert SPEC.fingerprint == "5ef08bbe39a9d6f637d59cbc74a115cf2bfaa024b1475c20d8fbc2365a25490a"


def test_a_spec_survives_its_text_form() -> None:
    read = Spec.from_json(SPEC.to_json())
    assert read == SPEC
    assert read.provenance == SPEC.provenance
    assert read.to_json() == SPEC.to_json()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(shape=[32, 1280]), "which its fields give"),
        (lambda d: d.update(fingerprint="0" * 64), "which its fields give"),
        (lambda d: d.pop("tap"), "a spec of format 1"),
        (lambda d: d.update(extra=1), "a spec of format 1"),
        (lambda d: d.update(format=99), "format 1"),
        (lambda d: d.update(shape=[0, 4]), "two positive numbers"),
        (lambda d: d.update(stored_dtype="float61"), "Did you mean"),
    ],
)
def test_an_edited_spec_is_refused(edit, message: str) -> None:  # type: ignore[no-untyped-def]
    document = json.loads(SPEC.to_json())
    edit(document)
    with pytest.raises(SpecError, match=message):
        Spec.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{", '"x"'])
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        Spec.from_json(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    text = canonical_json(value)
    assert canonical_json(dict(reversed(value.items()))) == text
    assert json.loads(text) == value
    assert text.isascii()


def test_canonical_json_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


def test_an_error_reads_as_subject_expected_got_and_next_step() -> None:
    error = FeatureCacheError("features.zarr", expected="40 blocks", got="39", next_step="Use --name.", problems=["a"])
    assert str(error) == "features.zarr: expected 40 blocks, got 39. Use --name.\n  a"
    assert str(FeatureCacheError("x", got="nothing")) == "x: nothing."
    many = FeatureCacheError("x", got="many", problems=[str(n) for n in range(30)])
    assert str(many).endswith("… and 10 more")


def test_a_missing_feature_is_a_key_error_whose_text_is_readable() -> None:
    error = MissingFeatureError("whisper", clip_ids=["a"], got="1 clip without tokens")
    assert isinstance(error, KeyError)
    assert str(error) == "whisper: 1 clip without tokens."
    assert error.clip_ids == ["a"]


def test_every_exception_descends_from_the_root_and_has_an_exit_code() -> None:
    exceptions = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(exceptions) > 8
    assert all(issubclass(value, FeatureCacheError) and value.exit_code in (1, 2) for value in exceptions)


def test_the_nearest_name_is_suggested_or_none() -> None:
    assert suggest("wisper", ["whisper", "eva"]) == ' Did you mean "whisper"?'
    assert suggest("zzz", ["whisper", "eva"]) == ""
