"""On real acted speech: ten sentences by ten actors are no copies of each other, and their copies are found.

Runs where the environment variable EMODB names a folder with the recordings of the Berlin Database of Emotional Speech
(03a01Fa.wav: speaker, sentence, emotion, version).
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from featurecache.clips.clip_list import Clip
from featurecache.explore.agreement import agreement, time_series
from featurecache.explore.calibration import UNCALIBRATED_AGREEMENT
from featurecache.explore.calibration_run import AUGMENTATIONS, augment

FOLDER = Path(os.environ.get("EMODB", ""))
RECORDINGS = sorted(FOLDER.glob("*.wav")) if os.environ.get("EMODB") else []
SENTENCE = "a01"
NUM_ALTERED = 6

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not RECORDINGS, reason="EMODB names no folder of recordings")]


def test_the_same_sentence_is_no_pair_and_its_copies_are(tmp_path: Path) -> None:
    clips = [Clip(path.stem, audio=path) for path in RECORDINGS if path.stem[2:5] == SENTENCE]
    series = {clip.id: time_series(clip) for clip in clips}
    others = [agreement(series[a.id], series[b.id]) for a, b in itertools.combinations(clips, 2)]
    assert max(value for value in others if value is not None) < UNCALIBRATED_AGREEMENT - 0.05
    for how in AUGMENTATIONS:
        if how.video and not how.audio:
            continue
        copies = []
        for clip in clips[:: len(clips) // NUM_ALTERED]:
            augment(clip, how, tmp_path / "copy.mp4")
            copies.append(agreement(series[clip.id], time_series(Clip("copy", audio=tmp_path / "copy.mp4"))))
        assert np.min(copies) > UNCALIBRATED_AGREEMENT, how.name
