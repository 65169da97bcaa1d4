"""What several files of tests need: the self-made wheels."""

from __future__ import annotations

import pytest
from wheel_files import write_tables

from fusion_train.metrics import EmotionWheels


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> EmotionWheels:
    return EmotionWheels.load(write_tables(tmp_path_factory.mktemp("wheels")))
