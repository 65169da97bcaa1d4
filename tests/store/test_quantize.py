"""int8 and float8 tokens, value by value. Errors on real tokens are in test_formats.py."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from featurecache.store.quantize import (
    FLOAT16_MAX,
    GROUP_TOKENS,
    LARGEST,
    dequantise,
    measured_error,
    quantise,
    scales_shape,
)


@pytest.mark.parametrize(("num_tokens", "groups"), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_every_32_tokens_share_the_scales_of_their_channels(num_tokens, groups):
    tokens = np.random.default_rng(0).standard_normal((num_tokens, 3)).astype(np.float32)
    q, scales = quantise(tokens, "int8")
    assert (q.shape, q.dtype, scales.dtype) == ((num_tokens, 3), np.int8, np.float16)
    assert scales.shape == scales_shape((num_tokens, 3)) == (groups, 3)
    for group in range(groups):
        rows = tokens[group * GROUP_TOKENS : (group + 1) * GROUP_TOKENS]
        exact = np.abs(rows).max(axis=0) / 127
        assert (scales[group] >= exact).all()
        assert (np.nextafter(scales[group], np.float16(0)) < exact).all(), "the next smaller scale would clip"


def test_int8_values_are_rounded_to_the_nearest_step():
    tokens = np.array([[127.0, -254.0], [1.4, 2.9], [-1.6, -3.1], [0.0, 0.0]], np.float32)
    q, scales = quantise(tokens, "int8")
    assert scales.tolist() == [[1.0, 2.0]]
    assert q.tolist() == [[127, -127], [1, 1], [-2, -2], [0, 0]]
    assert dequantise(q, scales).tolist() == [[127.0, -254.0], [1.0, 2.0], [-2.0, -4.0], [0.0, 0.0]]


def test_float8_values_keep_three_bits_behind_the_point():
    tokens = np.array([[448.0], [-1.0625], [1.19], [0.0]], np.float32)
    q, scales = quantise(tokens, "float8")
    assert (q.dtype, scales.tolist()) == (np.uint8, [[1.0]])
    assert dequantise(q, scales)[:, 0].tolist() == [448.0, -1.0, 1.25, 0.0]


def test_groups_do_not_share_scales():
    tokens = np.ones((40, 1), np.float32)
    tokens[:GROUP_TOKENS] *= 127 * 128
    tokens[GROUP_TOKENS:] *= 1.27
    q, scales = quantise(tokens, "int8")
    assert scales[0, 0] == 128
    assert scales[1, 0] == pytest.approx(0.01, rel=1e-3)
    restored = dequantise(q, scales)
    assert restored[:GROUP_TOKENS].tolist() == [[127.0 * 128]] * GROUP_TOKENS
    assert restored[GROUP_TOKENS:, 0] == pytest.approx(1.27, rel=1e-2)


@pytest.mark.parametrize("stored_dtype", list(LARGEST))
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_float16_stays_finite(stored_dtype, sign):
    tokens = np.full((2, 1), sign * FLOAT16_MAX, np.float32)
    assert dequantise(*quantise(tokens, stored_dtype)).tolist() == [[sign * FLOAT16_MAX]] * 2


def test_tokens_are_restored_into_the_array_that_is_handed_over():
    q, scales = quantise(np.array([[127.0], [3.0]], np.float32), "int8")
    out = np.full((2, 1), 9, np.float16)
    assert dequantise(q, scales, out) is out
    assert out.tolist() == [[127.0], [3.0]]
    read_only = np.zeros((2, 1), np.float16)
    read_only.setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        dequantise(q, scales, read_only)


def test_the_error_by_hand():
    exact, read = np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 0.0], [0.0, 1.0]])
    errors = measured_error(exact, read)
    assert errors["error_rms"] == pytest.approx(np.sqrt(17) / 5)
    assert errors["error_max"] == 4
    assert errors["error_cosine"] == pytest.approx(9 / (5 * np.sqrt(10)))


def test_the_error_of_zeros_says_whether_they_stayed_zeros():
    zeros, other = np.zeros((2, 2)), np.eye(2)
    assert measured_error(zeros, zeros) == {"error_rms": 0.0, "error_max": 0.0, "error_cosine": 1.0}
    assert measured_error(zeros, other) == {"error_rms": 0.0, "error_max": 1.0, "error_cosine": 0.0}
    assert measured_error(other, zeros) == {"error_rms": 1.0, "error_max": 1.0, "error_cosine": 0.0}


def test_tokens_are_the_same_where_torch_is_not_loaded(monkeypatch):
    q, scales = quantise(np.random.default_rng(1).standard_normal((40, 7)).astype(np.float32), "int8")
    restored = dequantise(q, scales)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert np.array_equal(dequantise(q, scales), restored)
