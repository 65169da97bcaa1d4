"""Serve a web page on which a user uploads or records a clip and sees the answer with its evidence.

One request is answered at a time, in order of arrival. Limits on bytes, clip duration, decoding time and tokens keep a
request from blocking the others for long. Uploads are stored in a temporary folder of the page; each is deleted after
`KEPT_S` seconds, and the folder is deleted when the page is closed. Needs gradio (extra `demo`).
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
"""Requests in the queue; further ones are refused."""
NUM_EXAMPLES = 6
WIDE = (11.0, 2.6)
"""Size of a figure in inches."""


@dataclass(frozen=True)
class PageLimits:
    """Limits on one request."""

    clip_s: float = 60.0
    megabytes: int = 100
    """Size of an upload."""
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
    """Serve the page while the block runs; yield its address.

    Args:
        port: None takes the first free port from 7860.
        examples: clips that the page offers.

    Raises:
        ConfigError: gradio is not installed, or the address is not free.
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
    """Build the page and connect its button."""
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
                words = gr.Textbox(
                    label="What is said",
                    placeholder="may be left empty",
                    elem_id="words",
                    visible=opened.answers_in_text,
                )
                task = gr.Dropdown(tasks, value=tasks[0], label="Task", elem_id="task")
                question = gr.Textbox(
                    label="Question",
                    placeholder="in place of the task's own",
                    elem_id="question",
                    visible=opened.answers_in_text,
                )
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=3):
                answer_text = gr.Markdown("Choose a clip and ask.", label="Answer", elem_id="answer")
                labels = gr.Label(label="Label probabilities", elem_id="labels")
                drops = gr.Plot(show_label=False, elem_id="drops")
        frames = gr.Plot(show_label=False, elem_id="frames")
        sound = gr.Plot(show_label=False, elem_id="sound")
        weights = gr.Plot(show_label=False, elem_id="weights")
        outputs = [answer_text, labels, drops, frames, sound, weights]

        def handle_click(path: str | None, text: str, task_name: str, instruction: str) -> list[Any]:
            answer = answer_upload(opened, path, text, task_name, instruction, limits)
            return [gr.update(value=value) for value in panels(answer)]

        ask.click(handle_click, [clip, words, task, question], outputs, api_name="ask", show_progress="minimal")
        with_video = [example for example in examples if example.video][:NUM_EXAMPLES]
        if with_video:
            gr.Examples(
                [[str(example.video), example.text or ""] for example in with_video], [clip, words], label="Examples"
            )
    return page


def answer_upload(
    opened: OpenedModel, path: str | None, text: str, task: str, question: str, limits: PageLimits
) -> ClipAnswer | None:
    """Answer a question about one uploaded file; None if nothing was uploaded."""
    if path is None:
        return None
    request = make_request(opened.processor, task, question, max_new_tokens=limits.max_new_tokens)
    clips = ClipList([Clip(id=Path(path).name, video=Path(path), text=text.strip() or None)])
    clip_limits = PredictionLimits(batch_size=1, workers=1, clip_s=limits.clip_s, decode_s=limits.decode_s)
    (answer,) = predict(opened, clips, request, limits=clip_limits, look=True)
    return answer


def panels(answer: ClipAnswer | None) -> list[Any]:
    """Return the values of the page's outputs: text, probabilities and four figures; None leaves an output empty."""
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
    modalities = ", ".join(answer.shown) or "only words"
    return [
        f"### {markdown_text(answer.text or '')}\nshown: {modalities}",
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
    """Return a theme with system fonts, so that the page loads nothing from other machines."""
    gr = _gradio()
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


@contextmanager
def _uploads_in(folder: str) -> Iterator[None]:
    """Make gradio store its files in `folder` while the block runs."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
