"""`fusion-train demo`: the page, clicked through in a headless Chromium where there is one.

Needs gradio; clicking also selenium, chromium and chromedriver. What is absent is skipped.
"""

from __future__ import annotations

import gc
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from exporting import SILENT
from recordings import sine, write_clip

from featurecache.outside_text import markdown_text
from fusion_train.cli import main
from fusion_train.errors import ConfigError
from fusion_train.predict import page
from fusion_train.predict.opening import OpenedModel, open_model
from fusion_train.predict.page import PageLimits, answer_upload, panels

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


def test_what_one_request_may_ask_is_bounded(opened, trained, tmp_path):
    long = write_clip(tmp_path / "long.mp4", num_frames=12, rate=1)
    limits = PageLimits(clip_s=5, max_new_tokens=3)
    assert "at most 0:05" in str(answer_upload(opened, str(long), "", "emotion", "", limits).error)
    text = answer_upload(opened, trained.video("v0"), "", "reason", "", limits).text
    assert len(opened.processor.tokenizer(text, add_special_tokens=False)["input_ids"]) <= 4


def test_every_part_of_an_answer_is_shown(opened, trained):
    text, probabilities, drops, frames, sound, weights = panels(
        answer_upload(opened, trained.video("v0"), "I see.", "emotion", "", PageLimits())
    )
    assert "shown: audio, image, video" in text
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
    assert all(figure is not None for figure in (drops, frames, sound, weights))
    silent = panels(answer_upload(opened, trained.video(SILENT), "", "emotion", "", PageLimits()))
    assert "shown: image, video" in silent[0]


def test_nothing_and_nonsense_are_answered_in_words(opened, tmp_path):
    assert panels(answer_upload(opened, None, "", "emotion", "", PageLimits()))[0] == "**Choose a clip first.**"
    (tmp_path / "bad.mp4").write_bytes(b"")
    said = panels(answer_upload(opened, str(tmp_path / "bad.mp4"), "", "emotion", "", PageLimits()))
    assert said[0].startswith("**Not answered.** clip")
    assert said[1:] == [None] * 5
    assert markdown_text("<b>*x*") == "\\<b\\>\\*x\\*"


def test_a_playlist_without_an_end_is_refused_and_the_next_request_is_answered(opened, trained, tmp_path):
    (tmp_path / "a.mp4").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{trained.video('v0')}\n")
    began = time.monotonic()
    said = panels(answer_upload(opened, str(tmp_path / "a.mp4"), "", "emotion", "", PageLimits()))
    assert time.monotonic() - began < PageLimits().decode_s
    assert "a playlist \\(HLS\\)" in said[0]
    assert answer_upload(opened, trained.video("v0"), "", "emotion", "", PageLimits()).text


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
        assert [path.name for path in tmp_path.rglob("*.mp4")] == ["t0.mp4"]
    assert not list(tmp_path.rglob("*.mp4"))


def test_requests_are_answered_in_turn(served, trained, opened, monkeypatch):
    """Two at once: one waits for the other, and neither fails."""
    client = pytest.importorskip("gradio_client")
    running, most = [0], [0]
    real = page.answer_upload

    def counted(*given):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.3)
        try:
            return real(*given)
        finally:
            running[0] -= 1

    monkeypatch.setattr(page, "answer_upload", counted)
    found = []

    def ask(clip: str) -> None:
        one = client.Client(served, verbose=False)
        file = {"video": client.handle_file(trained.video(clip))}
        found.append(one.predict(file["video"], "", "emotion", "", api_name="/ask")[0])

    threads = [threading.Thread(target=ask, args=(clip,)) for clip in ("v0", "v1", "v3")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
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


def ask_in(browser, address: str, clip: Path, awaited: str) -> str:
    """Upload, click, wait for a text in the answer."""
    from selenium.webdriver.support.ui import WebDriverWait

    def one(selector: str):
        return browser.find_element("css selector", selector)

    browser.get(address)
    wait = WebDriverWait(browser, PATIENCE_S)
    wait.until(lambda _: browser.find_elements("css selector", "#clip input[type=file]"))
    one("#clip input[type=file]").send_keys(str(clip))
    wait.until(
        lambda _: (
            not browser.find_elements("css selector", "#clip input[type=file]")
            or browser.find_elements("css selector", "#clip video")
        )
    )
    one("#ask").click()
    wait.until(lambda _: awaited in one("#answer").text)
    return one("#answer").text


def test_clicking_through_upload_answer_and_a_broken_file(served, browser, trained, tmp_path):
    said = ask_in(browser, served, Path(trained.video("v0")), "shown:")
    assert said.splitlines()[0] in ("angry", "happy", "sad")
    assert "shown: audio, image, video" in said
    assert "%" in browser.find_element("css selector", "#labels").text
    for panel in ("drops", "frames", "sound", "weights"):
        assert browser.find_elements("css selector", f"#{panel} img"), panel
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no film at all" * 100)
    said = ask_in(browser, served, bad, "Not answered.")
    assert 'clip "bad.mp4": expected its video file to be readable' in said
    assert not browser.find_elements("css selector", "#frames img")
    # The page goes on after that.
    good = write_clip(tmp_path / "good.mp4", num_frames=6, sound=sine(1.0))
    assert "shown:" in ask_in(browser, served, good, "shown:")


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
