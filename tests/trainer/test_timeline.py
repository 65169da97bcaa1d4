"""The timeline of the demo page: places of windows, frames, sound and weights on one axis, and what is read out."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from featurecache.clips.clip_list import Clip
from fusion_train.predict.evidence import AudioTiming, Evidence
from fusion_train.predict.page_parts import answer_html
from fusion_train.predict.picture import COLORS
from fusion_train.predict.pipeline import ClipAnswer
from fusion_train.predict.timeline import AFTER, CLIP_WIDTH, time_axis, timeline_html

RATE = 1000
FRAMES = np.zeros((4, 8, 8, 3), np.uint8)
EVEN = [0.25, 0.75, 1.25, 1.75]
"""Times of four frames of a clip of two seconds."""


def evidence(
    sound_s: float = 2.0, *, tokens: int = 64, count: int = 64, heard_s: float = 30.0, weights=None, frames: bool = True
) -> Evidence:
    views = {"audio": np.sin(np.arange(int(sound_s * RATE)) / 7).astype(np.float32)} if sound_s else {}
    timing = AudioTiming(RATE, tokens, heard_s / tokens) if sound_s else None
    return Evidence(views | ({"video": FRAMES} if frames else {}), weights, {}, timing, count)


def test_windows_of_the_clip_stand_at_their_times_and_the_others_after_it():
    axis = time_axis(evidence(), {"video": EVEN})
    assert axis.duration_s == 2.0
    assert axis.window_s == 30 / 64
    assert axis.num_inside == 4  # the middle of the fifth is at 2.11 s
    assert axis.place(1.0) == CLIP_WIDTH / 2
    assert axis.window(1) == pytest.approx((CLIP_WIDTH * 0.46875 / 2, CLIP_WIDTH * 0.9375 / 2))
    assert axis.window(3)[1] == pytest.approx(CLIP_WIDTH * 1.875 / 2)
    assert axis.window(4)[0] == AFTER
    assert time_axis(evidence(2.2), {}).window(4)[1] == CLIP_WIDTH  # the fifth goes on after 2.2 s
    assert axis.window(63)[1] == pytest.approx(100)
    spans = [axis.window(k) for k in range(64)]
    assert all(left < right for left, right in spans)
    assert all(right <= left + 1e-9 for (_, right), (left, _) in itertools.pairwise(spans))


def test_sound_as_long_as_the_encoder_hears_leaves_no_window_after_the_clip():
    axis = time_axis(evidence(30.0), {})
    assert axis.num_inside == 64
    assert axis.inside == 100
    assert axis.window(63) == pytest.approx((63 / 64 * 100, 100))


def test_an_encoder_that_pools_over_the_clip_has_all_windows_in_it():
    axis = time_axis(evidence(heard_s=2.0), {})
    assert (axis.num_inside, axis.window_s) == (64, 2 / 64)


def test_pictures_may_go_on_after_the_sound():
    shown = evidence(1.0)
    axis = time_axis(shown, {"video": EVEN})
    assert axis.duration_s == 2.0
    html = timeline_html(shown, {"video": EVEN})
    assert html.count('class="window"') == 3
    assert html.count('class="window silent"') == 61
    assert "61 without sound" in html
    assert f'<svg class="m-audio" style="width:{CLIP_WIDTH / 2:.2f}%"' in html


def test_fusion_tokens_that_join_several_audio_tokens_are_the_windows():
    axis = time_axis(evidence(count=16), {})
    assert axis.window_s == 30 / 16
    assert axis.num_inside == 1


def test_without_sound_the_windows_divide_the_clip():
    shown = evidence(0.0)
    axis = time_axis(shown, {"video": EVEN})
    assert axis.duration_s == 2.0
    assert axis.window(32) == (50.0, pytest.approx(51.5625))
    assert "no sound in this clip" in timeline_html(shown, {"video": EVEN})
    assert "silent" not in timeline_html(shown, {"video": EVEN})


def test_a_picture_has_no_time():
    shown = Evidence({"image": FRAMES[:1]}, None, {}, None, 64)
    axis = time_axis(shown, {})
    assert (axis.duration_s, axis.ticks_s()) == (None, [])
    html = timeline_html(shown, {})
    assert "a picture: no time" in html
    assert "data-duration" not in html
    assert "this fusion has no attention branch" in html


@pytest.mark.parametrize(("seconds", "ticks"), [(0.4, 5), (2.0, 5), (13.0, 7), (60.0, 7), (600.0, 7)])
def test_the_axis_has_round_moments(seconds, ticks):
    axis = time_axis(evidence(seconds, heard_s=seconds), {})
    assert len(axis.ticks_s()) == ticks
    assert axis.ticks_s()[0] == 0
    assert axis.ticks_s()[-1] <= seconds + 1e-9


def test_frames_stand_at_their_times_and_those_of_one_moment_side_by_side():
    even = timeline_html(evidence(), {"video": EVEN})
    assert re.findall(r'<img style="left:([\d.]+)%', even) == ["10.50", "31.50", "52.50", "73.50"]
    packed = timeline_html(evidence(), {"video": [0.96, 1.0, 1.04, 1.08]})
    assert "4 frames around 1.0 s" in packed
    assert f'class="strip" style="left:{CLIP_WIDTH * 1.02 / 2:.2f}%"' in packed


def test_repeated_frames_stand_once():
    html = timeline_html(evidence(), {"video": [0.0, 0.5, 1.0, 1.0]})
    assert html.count("<img") == 3
    assert "3 frames, the last repeated to fill 4" in html


def test_the_frame_of_the_image_is_marked_at_its_time():
    shown = evidence()
    both = Evidence({**shown.views, "image": FRAMES[:1]}, None, {}, shown.sound, 64)
    assert f'class="pin" style="left:{CLIP_WIDTH / 2:.2f}%"' in timeline_html(both, {"video": EVEN, "image": [1.0]})


def test_weights_are_drawn_from_the_highest_to_the_lowest_with_zero_between():
    weights = {"audio": np.linspace(-1, 3, 64, dtype=np.float32), "video": np.array([1.0], np.float32)}
    html = timeline_html(evidence(weights=weights), {"video": EVEN})
    assert 'y1="75.00" y2="75.00"' in html  # zero is three quarters below the highest, 3
    path = re.search(r'<path class="m-audio" d="([^"]+)"', html).group(1)
    assert path.startswith("M0.00 100.00H")
    assert path.endswith("0.00H100.00")
    assert path.count("M") == 2  # the clip, then what lies after it
    assert path.count("H") == 64
    assert re.search(r'<path class="m-video" d="M0.00 50.00H', html)


def test_each_window_is_read_out_with_its_sound_its_frame_and_its_weights():
    weights = {"audio": np.full(64, 0.5, np.float32), "video": np.array([-0.25], np.float32)}
    html = timeline_html(evidence(weights=weights), {"video": EVEN}, frames_in_order=True)
    readings = re.findall(r'data-reading="([^"]+)"', html)
    assert len(readings) == 64
    assert readings[0] == "Window 1: sound 0.00 to 0.47 s; frame 1 (0.25 s); weights audio +0.50, video −0.25"
    assert readings[16] == "Window 17: silence after the sound; frame 2 (0.75 s); weights audio +0.50, video −0.25"
    assert html.count("<li>") == 64
    assert "frame 1" not in timeline_html(evidence(), {"video": EVEN})  # tokens in another order name no frame


def answered(**changes) -> ClipAnswer:
    shown = evidence()
    without = {
        "audio": {"sad": 0.2, "<b>calm</b>": 0.8},
        "video": {"sad": 0.71, "<b>calm</b>": 0.29},
    }
    base = {
        "text": "sad",
        "probabilities": {"<b>calm</b>": 0.3, "sad": 0.7},
        "shown": ("audio", "video"),
        "evidence": Evidence(shown.views, None, without, shown.sound, 64),
    }
    return ClipAnswer(Clip("a"), **{**base, **changes})


def test_the_answer_says_how_sure_it_is_and_what_it_rests_on():
    html = answer_html(answered(), "emotion", 1.24)
    assert '<p class="word">sad</p>' in html
    assert "<b>70 %</b> of the probability; next &lt;b&gt;calm&lt;/b&gt;, 30 %" in html
    assert 'It rests most on <b class="m-audio">audio</b>: without it, sad would have 20 %.' in html
    assert "−50 points, answer &lt;b&gt;calm&lt;/b&gt;" in html
    assert "+1 points" in html
    assert "1.2 s" in html
    assert "<b>calm" not in html


def test_an_answer_that_no_modality_decides_says_so():
    shown = answered().evidence
    same = Evidence(shown.views, None, {"audio": {"sad": 0.69, "<b>calm</b>": 0.31}}, shown.sound, 64)
    assert "rests on no modality by itself" in answer_html(answered(evidence=same), "emotion", 1.0)


def test_a_text_of_many_words_is_set_as_a_sentence():
    text = "The person is sad because the train is late again."
    html = answer_html(answered(text=text, probabilities={}, evidence=evidence()), "reason", 1.0)
    assert f'<p class="sentence">{text}</p>' in html
    assert "bars" not in html


def test_many_labels_are_folded():
    probabilities = {f"label {number}": (20 - number) / 210 for number in range(20)}
    html = answer_html(answered(text="label 0", probabilities=probabilities, evidence=evidence()), "emotion", 1.0)
    assert "12 more labels" in html
    assert html.count("<li") == 20


def test_page_and_pictures_share_one_palette():
    from importlib.resources import files

    style = (files("fusion_train.predict") / "page_head.html").read_text(encoding="utf-8")
    for modality, color in COLORS.items():
        assert f"--{modality}: {color};" in style
