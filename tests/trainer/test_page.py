"""`fusion-train demo`: the page, clicked through in a headless Chromium where there is one.

Needs gradio; clicking also selenium, chromium and chromedriver. What is absent is skipped.
"""

from __future__ import annotations

import base64
import copy
import gc
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from exporting import SILENT
from PIL import Image
from recordings import picture, sine, write_clip, write_wav
from toy import LABELS

from featurecache.clips.clip_list import Clip
from fusion_train.cli import main
from fusion_train.errors import ConfigError
from fusion_train.predict import page
from fusion_train.predict.opening import Card, OpenedModel, open_model, read_card
from fusion_train.predict.page import (
    ALL_DATASETS,
    PageLimits,
    Question,
    answer_clip,
    dataset_choices,
    meant_dataset,
    panels,
    uploaded_clip,
)
from fusion_train.predict.page_parts import header_html
from fusion_train.predict.posters import write_poster
from fusion_train.remote.processing_emotion_probe import EmotionProbeProcessor

# Warnings of gradio and selenium are theirs; their servers' sockets close after the test.
pytestmark = pytest.mark.filterwarnings("ignore")
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
PATIENCE_S = 30


@pytest.fixture(scope="module", autouse=True)
def _sockets_that_gradio_leaves_open():
    """Collect them here, where nobody minds, and not in whichever test comes next."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def opened(exported) -> OpenedModel:
    return open_model(exported, "cpu")


EMOTION = Question("emotion")


def of(path: str | Path, text: str | None = None) -> Clip:
    return Clip(Path(path).name, video=Path(path), text=text)


def test_what_one_request_may_ask_is_bounded(opened, trained, tmp_path):
    long = write_clip(tmp_path / "long.mp4", num_frames=12, rate=1)
    limits = PageLimits(clip_s=5, max_new_tokens=3)
    assert "at most 0:05" in str(answer_clip(opened, of(long), EMOTION, limits).error)
    text = answer_clip(opened, of(trained.video("v0")), Question("reason"), limits).text
    assert len(opened.processor.tokenizer(text, add_special_tokens=False)["input_ids"]) <= 4


def test_every_part_of_an_answer_is_shown(opened, trained):
    answer, timeline = panels(opened, of(trained.video("v0"), "I see."), EMOTION, PageLimits())
    assert "emotion, one of 3 labels" in answer
    assert answer.count("<li") == 3 + 3  # labels, then the answer without each modality
    assert "from" in answer
    assert "and the words;" in answer
    for track in ("frames even", "sound", "windows", "weights"):
        assert f'class="track {track}"' in timeline
    assert timeline.count('class="cell"') == opened.model.fusion_tokens
    assert 'class="pin"' in timeline
    silent, silent_timeline = panels(opened, of(trained.video(SILENT)), EMOTION, PageLimits())
    assert "without <b" in silent
    assert 'class="m-audio"' not in silent
    assert "no sound in this clip" in silent_timeline


def test_nothing_and_nonsense_are_answered_in_words(opened, tmp_path):
    answer, timeline = panels(opened, None, EMOTION, PageLimits())
    assert "Choose a clip first" in answer
    assert "timeline empty" in timeline
    (tmp_path / "bad.mp4").write_bytes(b"")
    answer, timeline = panels(opened, of(tmp_path / "bad.mp4"), EMOTION, PageLimits())
    assert "not answered" in answer
    assert "clip &quot;bad.mp4&quot;" in answer
    assert "timeline empty" in timeline


def test_a_playlist_without_an_end_is_refused_and_the_next_request_is_answered(opened, trained, tmp_path):
    (tmp_path / "a.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{trained.video('v0')}\n")
    began = time.monotonic()
    answer, _ = panels(opened, of(tmp_path / "a.mp4"), EMOTION, PageLimits())
    assert time.monotonic() - began < PageLimits().decode_s
    assert "a playlist (HLS)" in answer
    assert answer_clip(opened, of(trained.video("v0")), EMOTION, PageLimits()).text


def test_sound_alone_and_a_picture_alone_are_clips(opened, tmp_path):
    voice = write_wav(tmp_path / "voice.wav", sine(1.0)[None])
    answer, timeline = panels(opened, uploaded_clip({"audio": str(voice)}, ""), EMOTION, PageLimits())
    assert "no pictures in this clip" in timeline
    assert "without <b" in answer
    face = tmp_path / "face.png"
    Image.fromarray(picture(3)).save(face)
    _, timeline = panels(opened, uploaded_clip({"image": str(face)}, ""), EMOTION, PageLimits())
    assert "a picture: no time" in timeline
    assert "no sound in this clip" in timeline


def test_the_title_is_that_of_the_card(opened, exported, tmp_path):
    assert opened.card.title == "run"
    assert opened.card.summary.startswith("A multimodal language model that names")
    (tmp_path / "README.md").write_text("---\nlicense: other\n---\n\n# How \\<I\\> feel\n\n## Use\n\nTwo\nlines.\n")
    assert read_card(tmp_path, "run") == Card("How <I> feel", "Two lines.")
    (tmp_path / "README.md").unlink()
    assert read_card(tmp_path, "run") == Card("run", "")
    title = replace(opened, card=Card("How <I> feel", "Two lines."))
    assert "<h1>How &lt;I&gt; feel</h1>" in header_html(title)


@pytest.fixture(scope="module")
def probe_of_two(exported_probe) -> OpenedModel:
    """A probe whose classes are those of two datasets."""
    probe = open_model(exported_probe, "cpu")
    sets = {"meld": {"emotion": ["angry", "happy"]}, "mer": {"emotion": ["sad"]}}
    one = probe.processor
    return replace(probe, processor=EmotionProbeProcessor(one.encoders, one.networks, sets, one.tasks))


def test_a_probe_over_several_datasets_answers_with_the_labels_of_the_chosen_one(probe_of_two, probe):
    assert dataset_choices(probe_of_two, "emotion") == [("meld: angry, happy", "meld"), ("mer: sad", "mer")]
    clip = of(probe.video("v0"))
    answer = answer_clip(probe_of_two, clip, Question("emotion", "meld"), PageLimits())
    assert set(answer.probabilities) == {"angry", "happy"}
    assert answer_clip(probe_of_two, clip, Question("emotion", "mer"), PageLimits()).text == "sad"
    assert "one of 2 labels of meld" in panels(probe_of_two, clip, Question("emotion", "meld"), PageLimits())[0]
    assert "expected dataset= one of meld, mer" in panels(probe_of_two, clip, EMOTION, PageLimits())[0]


def test_a_model_with_one_dataset_does_not_ask_and_one_with_several_offers_all_labels(opened):
    assert dataset_choices(opened, "emotion") == []
    both = copy.copy(opened.processor)
    both.label_sets = {"a": {"emotion": ["happy"]}, "": {"emotion": ["sad"]}, "c": {}}
    two = replace(opened, processor=both)
    assert [value for _, value in dataset_choices(two, "emotion")] == [ALL_DATASETS, "a", ""]
    assert dataset_choices(two, "reason") == []
    clip = Clip("x", text="x", dataset="a")
    assert meant_dataset(clip, Question("emotion", ALL_DATASETS)) is None
    assert meant_dataset(clip, Question("emotion")) == "a"
    assert meant_dataset(clip, Question("emotion", "")) == ""


def test_an_example_has_a_poster_unless_it_cannot_be_decoded(trained, tmp_path):
    assert Image.open(write_poster(of(trained.video("v0")), tmp_path / "0.png")).size == (192, 144)
    voice = write_wav(tmp_path / "voice.wav", sine(1.0)[None])
    assert Image.open(write_poster(Clip("v", audio=voice), tmp_path / "1.png")).mode == "RGBA"
    assert write_poster(Clip("none", text="only words"), tmp_path / "2.png") is None


def test_without_gradio_the_command_says_what_to_install(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(main, ["demo", "--model", str(exported)])
    assert result.exit_code == 2
    assert "pip install 'featurecache[demo]'" in result.stderr


@pytest.fixture(scope="module")
def served(opened, trained):
    pytest.importorskip("gradio")
    clips = list(trained.clips)[:2]
    with page.serving(opened, limits=PageLimits(clip_s=20, megabytes=1), examples=clips) as address:
        yield address


def test_the_page_is_served_to_this_machine_alone(served):
    port = int(served.rstrip("/").rsplit(":", 1)[1])
    assert served.startswith("http://127.0.0.1:")
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert {row[1] for row in listening if row[1].endswith(f":{port:04X}") and row[3] == "0A"} == {
        f"0100007F:{port:04X}"
    }


def test_a_port_in_use_is_refused_with_advice(opened, served):
    with pytest.raises(ConfigError, match="--port"), page.serving(opened, port=int(served.rstrip("/").split(":")[-1])):
        pass


def test_uploads_are_gone_once_the_page_is_closed(opened, trained, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(page.tempfile, "tempdir", str(tmp_path))
    with page.serving(opened, examples=list(trained.clips)[:1]):
        assert "example-0.png" in [path.name for path in tmp_path.rglob("*.png")]
    assert not list(tmp_path.rglob("*.*"))


def test_requests_are_answered_in_turn(served, trained, opened, monkeypatch):
    """Two at once: one waits for the other, and neither fails."""
    client = pytest.importorskip("gradio_client")
    running, most = [0], [0]
    real = page.answer_clip

    def counted(*given):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.3)
        try:
            return real(*given)
        finally:
            running[0] -= 1

    monkeypatch.setattr(page, "answer_clip", counted)
    found = []

    def ask(clip: str) -> None:
        one = client.Client(served, verbose=False)
        file = {"video": client.handle_file(trained.video(clip))}
        found.append(one.predict(file["video"], "", "emotion", "", api_name="/ask"))

    threads = [threading.Thread(target=ask, args=(clip,)) for clip in ("v0", "v1", "v3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert all(answer["answer"] in LABELS and answer["model"] == opened.identity for answer in found)
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert most[0] == 1


def test_an_upload_beyond_the_limit_is_refused(served, tmp_path):
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n' + b"0" * (2 << 20)
    request = urllib.request.Request(
        f"{served}gradio_api/upload",
        data=body + b"\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 413


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1300,1900",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def parts(browser, selector: str) -> list:
    return browser.find_elements("css selector", selector)


def ask_in(browser, address: str, clip: Path, awaited: str) -> str:
    """Upload, click, wait for a text in the answer."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(address)
    wait = WebDriverWait(browser, PATIENCE_S)
    wait.until(lambda _: parts(browser, "#clip input[type=file]") and parts(browser, "#ask"))
    parts(browser, "#clip input[type=file]")[0].send_keys(str(clip))
    wait.until(lambda _: not parts(browser, "#clip input[type=file]") or parts(browser, "#clip video"))
    parts(browser, "#ask")[0].click()
    wait.until(lambda _: awaited in parts(browser, "#answer")[0].text)
    return parts(browser, "#answer")[0].text


def test_clicking_through_upload_answer_and_a_broken_file(served, browser, trained, tmp_path):
    said = ask_in(browser, served, Path(trained.video("v0")), "of the probability")
    assert said.splitlines()[1] in ("angry", "happy", "sad")
    assert "from audio · image · video" in said
    for track in ("frames img", "sound polygon", "windows .window", "weights path"):
        assert parts(browser, f"#timeline .{track}"), track
    cell = parts(browser, "#timeline .cell")[0]
    browser.execute_script("arguments[0].click()", cell)
    assert parts(browser, "#timeline .reading")[0].text.startswith("Window 1: sound 0.00 to")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no film at all" * 100)
    said = ask_in(browser, served, bad, "not answered")
    assert 'clip "bad.mp4": expected its video file to be readable' in said
    assert not parts(browser, "#timeline .tracks")
    # The page goes on after that.
    good = write_clip(tmp_path / "good.mp4", num_frames=6, sound=sine(1.0))
    assert "of the probability" in ask_in(browser, served, good, "of the probability")


def test_a_probe_of_two_datasets_asks_which_and_nothing_that_it_cannot_read(probe_of_two, probe, browser):
    pytest.importorskip("gradio")
    from selenium.webdriver.support.ui import WebDriverWait

    with page.serving(probe_of_two, examples=list(probe.clips)[:1]) as address:
        browser.get(address)
        wait = WebDriverWait(browser, PATIENCE_S)
        wait.until(lambda _: parts(browser, "#dataset input"))
        assert [choice.text for choice in parts(browser, "#dataset label")] == ["meld: angry, happy", "mer: sad"]
        assert not parts(browser, "#words")
        assert not parts(browser, "#question")
        parts(browser, "#dataset label")[1].click()
        parts(browser, "#example-0")[0].click()
        wait.until(lambda _: parts(browser, "#answer .word") and parts(browser, "#answer .word")[0].text == "sad")
        assert "one of 1 labels of mer" in parts(browser, "#answer")[0].text


def test_examples_of_any_folder_and_kind_are_answered_when_pressed(opened, trained, browser, tmp_path, monkeypatch):
    """Gradio gives out files of the working directory and of the temporary folder; others must be named."""
    pytest.importorskip("gradio")
    from selenium.webdriver.support.ui import WebDriverWait

    voice = write_wav(tmp_path / "voice.wav", sine(1.0)[None])
    clips = [of(trained.video("v0"), "Number 0!"), Clip("voice", audio=voice)]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(page.tempfile, "tempdir", str(tmp_path / "temporary"))
    with page.serving(opened, examples=clips) as address:
        browser.get(address)
        wait = WebDriverWait(browser, PATIENCE_S)
        wait.until(lambda _: parts(browser, "#example-1"))
        assert [button.text for button in parts(browser, ".example")] == ["Number 0!", "voice"]
        parts(browser, "#example-0")[0].click()
        wait.until(lambda _: "and the words" in parts(browser, "#answer")[0].text)
        assert parts(browser, "#words textarea, #words input")[0].get_attribute("value") == "Number 0!"
        parts(browser, "#example-1")[0].click()
        wait.until(lambda _: "no pictures in this clip" in parts(browser, "#timeline")[0].text)
        assert parts(browser, "#media button[aria-selected=true]")[0].text == "Sound"


SIZES = {
    "1280-light": (1280, "light"),
    "1280-dark": (1280, "dark"),
    "420-light": (420, "light"),
    "420-dark": (420, "dark"),
}
BACKGROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}


def look(browser, address: str, width: int, scheme: str) -> None:
    """Open the page in a window of this width, in light or dark."""
    from selenium.webdriver.support.ui import WebDriverWait

    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(address)
    WebDriverWait(browser, PATIENCE_S).until(lambda _: parts(browser, "#answer .empty") and parts(browser, "#ask"))


def screenshot(browser, path: Path) -> tuple[int, int]:
    """Write a picture of the whole page; return its size."""
    width, height = browser.execute_script("return [window.innerWidth, document.documentElement.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    taken = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
    )
    path.write_bytes(base64.b64decode(taken["data"]))
    return Image.open(path).size


def box(browser, selector: str) -> dict[str, float]:
    """Return the place of a part on the page; it must be visible."""
    place = browser.execute_script(
        "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return {left: b.left, right: b.right, top: b.top + scrollY, bottom: b.bottom + scrollY,"
        " width: b.width, height: b.height}",
        selector,
    )
    assert min(place["width"], place["height"]) > 0, selector
    return place


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.parametrize("size", SIZES)
def test_four_screenshots_show_every_part_at_a_readable_size(served, browser, tmp_path, size):
    from selenium.webdriver.support.ui import WebDriverWait

    width, scheme = SIZES[size]
    look(browser, served, width, scheme)
    narrow = width < 700
    try:
        assert parts(browser, "#head h1")[0].text == "run"
        for part in ("#answer .empty", "#timeline .empty", "#clip", "#ask", "#example-0", "#about"):
            box(browser, part)
        assert "The answer will stand here" in parts(browser, "#answer")[0].text
        assert "will stand here" in parts(browser, "#timeline")[0].text
        names = [tab.text for tab in parts(browser, "#media button[role=tab]") if tab.text]
        assert names == ["Video", "Sound", "Picture"]
        assert len(parts(browser, "#clip .source-selection button")) == 2  # a file, the camera
        assert box(browser, "#answer")["top"] < box(browser, "#clip")["bottom"]
        screenshot(browser, tmp_path / f"empty-{size}.png")

        parts(browser, "#example-0")[0].click()
        WebDriverWait(browser, PATIENCE_S).until(lambda _: parts(browser, "#timeline .tracks"))
        answer, tracks = box(browser, "#answer .answer"), box(browser, "#timeline .tracks")
        word = browser.execute_script("return parseFloat(getComputedStyle(document.querySelector('.word')).fontSize)")
        sizes = browser.execute_script(
            "return [...document.querySelectorAll('.answer *, .timeline *, .head *')].filter(e => e.innerText)"
            ".map(e => parseFloat(getComputedStyle(e).fontSize))"
        )
        assert word >= 40
        assert word == max(sizes)
        assert min(sizes) >= 13
        assert len(set(sizes)) <= 5  # one type scale
        assert answer["width"] >= (350 if narrow else 600)
        assert answer["top"] < box(browser, "#clip")["top"] + 1
        assert tracks["width"] >= (350 if narrow else 1000)
        assert tracks["top"] > answer["bottom"]
        for track, least in (("frames", 60), ("sound", 50), ("windows", 14), ("weights", 100)):
            body = box(browser, f".track.{track} .body")
            assert body["height"] >= least, track
            assert (body["left"], body["right"]) == (tracks["left"], tracks["right"]), track  # one axis
        assert len(parts(browser, ".cell")) == 64
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == BACKGROUND[scheme]
        assert screenshot(browser, tmp_path / f"answer-{size}.png")[0] == width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.slow
@pytest.mark.extra
def test_the_command_serves_and_ends_cleanly(exported):
    pytest.importorskip("gradio")
    command = [str(Path(sys.executable).parent / "fusion-train"), "demo", "--model", str(exported)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(address) as answer:
            assert answer.status == 200
        process.terminate()
        assert "uploads are deleted" in process.stdout.read()
    assert process.returncode == 0
