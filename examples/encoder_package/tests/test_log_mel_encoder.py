"""The contract of every encoder, and one answer that is known beforehand."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from log_mel_encoder import SAMPLING_RATE, LogMelEncoder

from featurecache.encoders import open_encoder
from featurecache.testing import EncoderContract, encode_batch


class TestLogMel(EncoderContract):
    changed_options: ClassVar = {"tokens": 16}

    @pytest.fixture
    def open_encoder(self):
        return lambda **options: LogMelEncoder.open(None, "cpu", "float32", options)


def test_the_entry_point_names_the_encoder():
    assert isinstance(open_encoder("log-mel"), LogMelEncoder)


@pytest.mark.parametrize("hertz", [300, 1000, 3000])
def test_a_tone_is_loudest_in_the_band_of_its_frequency(hertz):
    time = np.arange(30 * SAMPLING_RATE) / SAMPLING_RATE
    tone = np.sin(2 * np.pi * hertz * time).astype(np.float32)
    tokens = encode_batch(open_encoder("log-mel"), {0: tone})[0]
    highest = 2595 * np.log10(1 + SAMPLING_RATE / 2 / 700)
    centres = 700 * (10 ** (np.linspace(0, highest, 42)[1:-1] / 2595) - 1)
    assert set(tokens.argmax(1)) == {np.abs(centres - hertz).argmin()}
