"""A web page on which one uploads or records a clip and sees the answer, and what it rests on.

One request is answered at a time, in the order of arrival; what one may ask is bounded in bytes, seconds of clip,
seconds of decoding and tokens, so none holds up the others for long. Uploads lie in a folder of the page's own, are
deleted when they are `KEPT_S` old, and with the folder when the page is closed. Needs gradio (extra `demo`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from featurecache.clips.clip_list import Clip, ClipList
from featurecache.extras import require
from featurecache.outside_text import markdown_text
from fusion_train.errors import ConfigError
from fusion_train.predict.opening import OpenedModel
from fusion_train.predict.picture import draw_drops, draw_sound, draw_weights, frames_figure
from fusion_train.predict.pipeline import ClipAnswer, PredictionLimits, predict
from fusion_train.predict.request import make_request

if TYPE_CHECKING:
    import gradio

KEPT_S = 600
SWEPT_EVERY_S = 60
MAX_WAITING = 16
NUM_EXAMPLES = 6
WIDE = (11.0, 2.6)


@dataclass(frozen=True)
class PageLimits:
    """What one request may ask."""

    clip_s: float = 60.0
    megabytes: int = 100
    decode_s: float = 30.0
    max_new_tokens: int = 200


@contextmanager
def serving(
    opened: OpenedModel,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: PageLimits | None = None,
    examples: Sequence[Clip] = (),
) -> Iterator[str]:
    """Serve the page while the block runs; gives its address.

    Args:
        port: None takes the first free one from 7860.

    Raises:
        ConfigError: gradio is not installed, or the address cannot be had.
    """
    limits = limits or PageLimits()
    with tempfile.TemporaryDirectory(prefix="fusion-train-demo-") as uploads, _uploads_in(uploads):
        page = build_page(opened, limits, examples)
        page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                max_file_size=limits.megabytes << 20,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                footer_links=[],
                ssr_mode=False,
                theme=_theme(),
            )
        except OSError as error:
            raise ConfigError(
                f"{host}:{port or 7860}",
                expected="an address that is free",
                got=str(error).partition("\n")[0],
                next_step="Choose another with --port.",
            ) from error
        try:
            yield address
        finally:
            page.close()


def build_page(opened: OpenedModel, limits: PageLimits, examples: Sequence[Clip] = ()) -> gradio.Blocks:
    """Lay out the page."""
    gr = _gradio()
    tasks = list(opened.processor.tasks) or ["emotion"]
    with gr.Blocks(
        title=f"{opened.name}: ask about a clip", analytics_enabled=False, delete_cache=(SWEPT_EVERY_S, KEPT_S)
    ) as page:
        gr.Markdown(
            f"## Ask {markdown_text(opened.name)} about a clip\n"
            f"At most {limits.clip_s:g} s and {limits.megabytes} MB. What a face or a voice shows is not what "
            "a person feels."
        )
        with gr.Row():
            with gr.Column(scale=2):
                clip = gr.Video(
                    label="Clip", sources=["upload", "webcam"], include_audio=True, height=300, elem_id="clip"
                )
                words = gr.Textbox(label="What is said", placeholder="may be left empty", elem_id="words")
                task = gr.Dropdown(tasks, value=tasks[0], label="Task", elem_id="task")
                question = gr.Textbox(label="Question", placeholder="in place of the task's own", elem_id="question")
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=3):
                said = gr.Markdown("Choose a clip and ask.", label="Answer", elem_id="answer")
                labels = gr.Label(label="Label probabilities", elem_id="labels")
                drops = gr.Plot(show_label=False, elem_id="drops")
        frames = gr.Plot(show_label=False, elem_id="frames")
        sound = gr.Plot(show_label=False, elem_id="sound")
        weights = gr.Plot(show_label=False, elem_id="weights")
        outputs = [said, labels, drops, frames, sound, weights]

        def answered(path: str | None, text: str, task_name: str, asked: str) -> list[Any]:
            answer = answer_one(opened, path, text, task_name, asked, limits)
            return [gr.update(value=value) for value in shown(answer)]

        ask.click(answered, [clip, words, task, question], outputs, api_name="ask", show_progress="minimal")
        chosen = [example for example in examples if example.video][:NUM_EXAMPLES]
        if chosen:
            gr.Examples(
                [[str(example.video), example.text or ""] for example in chosen], [clip, words], label="Examples"
            )
    return page


def answer_one(
    opened: OpenedModel, path: str | None, text: str, task: str, question: str, limits: PageLimits
) -> ClipAnswer | None:
    """Ask about one uploaded file; None where there is none."""
    if path is None:
        return None
    asked = make_request(opened.processor, task, question, max_new_tokens=limits.max_new_tokens)
    clips = ClipList([Clip(id=Path(path).name, video=Path(path), text=text.strip() or None)])
    bounds = PredictionLimits(batch_size=1, workers=1, clip_s=limits.clip_s, decode_s=limits.decode_s)
    (answer,) = predict(opened, clips, asked, limits=bounds, look=True)
    return answer


def shown(answer: ClipAnswer | None) -> list[Any]:
    """Text, probabilities and four figures; None leaves a place empty."""
    if answer is None:
        return ["**Choose a clip first.**", *[None] * 5]
    if answer.error is not None or answer.evidence is None:
        return [f"**Not answered.** {markdown_text(str(answer.error))}", *[None] * 5]
    evidence = answer.evidence
    frames = Figure(figsize=(WIDE[0], 3.2), layout="constrained")
    frames_figure(evidence, frames)
    drops = None
    if evidence.without:
        drops = Figure(figsize=(6.0, 2.2), layout="constrained")
        draw_drops(drops.subplots(), answer)
    sound, weights = (Figure(figsize=WIDE, layout="constrained") for _ in range(2))
    draw_sound(sound.subplots(), evidence)
    draw_weights(weights.subplots(), evidence)
    seen = ", ".join(answer.shown) or "words alone"
    return [
        f"### {markdown_text(answer.text or '')}\nshown: {seen}",
        answer.probabilities or None,
        drops,
        frames,
        sound,
        weights,
    ]


def _gradio() -> Any:
    require("demo", "gradio", subject="fusion-train demo")
    import gradio

    return gradio


def _theme() -> Any:
    """Fonts of the system: the page asks no other machine for anything."""
    gr = _gradio()
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


@contextmanager
def _uploads_in(folder: str) -> Iterator[None]:
    """Let gradio keep its files in `folder`."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
