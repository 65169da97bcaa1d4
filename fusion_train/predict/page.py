"""Serve a web page on which a user uploads or records a clip and sees the answer, and what it rests on.

The answer stands first; below it frames, sound, windows and modality weights share one axis of time (`timeline`). The
page gives programs the same answers as JSON, at `/ask` of gradio's client.

One request is answered at a time, in order of arrival. Limits on bytes, clip duration, decoding time and tokens keep a
request from blocking the others for long. Uploads are stored in a temporary folder of the page; each is deleted after
`KEPT_S` seconds, and the folder is deleted when the page is closed. Needs gradio (extra `demo`).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurecache.clips.clip_list import MEDIA_KINDS, Clip, ClipList
from featurecache.errors import FeatureCacheError
from featurecache.extras import require
from featurecache.media.decode import frame_times_s
from featurecache.views import FramesView
from fusion_train.errors import ConfigError
from fusion_train.predict import page_parts
from fusion_train.predict.answer_file import row
from fusion_train.predict.opening import OpenedModel
from fusion_train.predict.pipeline import ClipAnswer, PredictionLimits, predict
from fusion_train.predict.posters import write_poster
from fusion_train.predict.request import PredictionRequest, make_request
from fusion_train.predict.timeline import timeline_html
from fusion_train.prompts.prompt import find_task

if TYPE_CHECKING:
    import gradio

KEPT_S = 600
SWEPT_EVERY_S = 60
MAX_WAITING = 16
"""Requests in the queue; further ones are refused."""
NUM_EXAMPLES = 6
ALL_DATASETS = "*"
"""Value of the dataset control that stands for the labels of all datasets."""
ONE_AT_A_TIME = "model"
"""Name of the queue that all requests share."""
HEAD = "page_head.html"
"""Style and script of the page, a file of this package."""
NO_CLIP = "Choose a clip first: record or upload one, or take an example."
TO_THE_ANSWER = "() => document.querySelector('#answer').scrollIntoView({behavior: 'smooth', block: 'nearest'})"


@dataclass(frozen=True)
class PageLimits:
    """Limits on one request."""

    clip_s: float = 60.0
    megabytes: int = 100
    """Size of an upload."""
    decode_s: float = 30.0
    max_new_tokens: int = 200


@dataclass(frozen=True)
class Question:
    """What a user asks about a clip."""

    task: str
    dataset: str | None = None
    """Dataset of training whose labels are meant, or `ALL_DATASETS`; None: that of the clip, or all if it has none."""
    words: str = ""
    """Replaces the instruction of the task."""


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
        examples: clips that the page offers, at most `NUM_EXAMPLES`.

    Raises:
        ConfigError: gradio is not installed, or the address is not free.
    """
    limits = limits or PageLimits()
    offered = [clip for clip in examples if _media(clip)][:NUM_EXAMPLES]
    with tempfile.TemporaryDirectory(prefix="fusion-train-demo-") as uploads, _uploads_in(uploads):
        page = build_page(opened, limits, offered, Path(uploads))
        page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                max_file_size=limits.megabytes << 20,
                allowed_paths=[str(path.absolute()) for clip in offered for path in _media(clip)],
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                footer_links=[],
                ssr_mode=False,
                theme=_theme(),
                head=(files("fusion_train.predict") / HEAD).read_text(encoding="utf-8"),
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


def build_page(opened: OpenedModel, limits: PageLimits, examples: Sequence[Clip], folder: Path) -> gradio.Blocks:
    """Build the page and connect its controls.

    Args:
        examples: clips with media, all of which are offered.
        folder: where the pictures of the examples are written.
    """
    gr = _gradio()
    modalities = set(opened.processor.encoders)
    title = opened.card.title
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(SWEPT_EVERY_S, KEPT_S)) as page:
        draw = partial(gr.HTML, apply_default_css=False, elem_classes="drawn")
        draw(page_parts.header_html(opened), elem_id="head")
        kind, example = gr.State("video"), gr.State(None)
        with gr.Row(elem_id="layout", equal_height=False):
            with gr.Column(elem_id="result"):
                answer = draw(page_parts.empty_answer_html(with_examples=bool(examples)), elem_id="answer")
            with gr.Column(elem_id="form"):
                tabs, media = _media_inputs(gr, modalities, kind)
                words, task, dataset, own_question = _question_inputs(gr, opened)
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(elem_id="offers", visible=bool(examples)):
                draw('<p class="kicker">Examples</p>')
                with gr.Row(elem_id="examples"):
                    buttons = [_example_button(gr, number, clip, folder) for number, clip in enumerate(examples)]
            with gr.Column(elem_id="below"):
                timeline = draw(page_parts.empty_timeline_html(), elem_id="timeline")
        draw(page_parts.about_html(opened, _limits_in_words(limits)), elem_id="about")

        answering = partial(_answer_in_page, opened, limits, examples)
        inputs, outputs = [kind, example, *media.values(), words, task, dataset, own_question], [answer, timeline]
        shared: dict[str, Any] = {
            "concurrency_id": ONE_AT_A_TIME,
            "concurrency_limit": 1,
            "show_progress_on": answer,
            "api_visibility": "private",
        }
        ask.click(answering, inputs, outputs, **shared).then(None, js=TO_THE_ANSWER, api_visibility="private")
        for number, button in enumerate(buttons):
            fill = partial(_example_values, gr, opened, number, examples[number])
            filled = [tabs, kind, example, *media.values(), words, dataset]
            button.click(fill, [task, dataset], filled, api_visibility="private").then(
                answering, inputs, outputs, **shared
            ).then(None, js=TO_THE_ANSWER, api_visibility="private")
        changes = [event for component in media.values() for event in (component.input, component.clear)]
        gr.on(changes, lambda: None, None, example, api_visibility="private", queue=False)
        asked = [media["video"], words, task, own_question, dataset, media["audio"], media["image"]]
        _connect_program(gr, opened, limits, asked)
    return page


def _media_inputs(gr: Any, modalities: set[str], kind: Any) -> tuple[Any, dict[str, Any]]:
    """Add a tab per kind of media and keep the open one in `kind`; what the model cannot read is not shown.

    Returns the tabs, and kind -> component in the order of `MEDIA_KINDS`.
    """
    read = {"video": True, "audio": "audio" in modalities, "image": bool(modalities & {"image", "video"})}
    components: dict[str, Any] = {}
    with gr.Tabs(elem_id="media") as tabs:
        with gr.Tab("Video", id="video") as tab:
            components["video"] = gr.Video(
                show_label=False,
                sources=["upload", "webcam"],
                include_audio=True,
                height=280,
                elem_id="clip",
                label="Video",
            )
        tab.select(lambda: "video", None, kind, api_visibility="private", queue=False)
        with gr.Tab("Sound", id="audio", visible=read["audio"]) as tab:
            components["audio"] = gr.Audio(
                show_label=False, sources=["upload", "microphone"], type="filepath", elem_id="sound-clip", label="Sound"
            )
        tab.select(lambda: "audio", None, kind, api_visibility="private", queue=False)
        with gr.Tab("Picture", id="image", visible=read["image"]) as tab:
            components["image"] = gr.Image(
                show_label=False,
                sources=["upload", "webcam"],
                type="filepath",
                height=280,
                elem_id="picture",
                label="Picture",
            )
        tab.select(lambda: "image", None, kind, api_visibility="private", queue=False)
    return tabs, components


def _question_inputs(gr: Any, opened: OpenedModel) -> list[Any]:
    """Add the controls of the question; return words of the clip, task, dataset, question in words."""
    tasks = list(opened.processor.tasks) or [first_task(opened)]
    words = gr.Textbox(
        label="What is said",
        placeholder="may be left empty",
        elem_id="words",
        visible=opened.answers_in_text,
        max_lines=3,
    )
    task = gr.Radio(tasks, value=tasks[0], label="Task", elem_id="task", visible=len(tasks) > 1)
    choices = dataset_choices(opened, first_task(opened))
    dataset = gr.Radio(
        choices,
        value=choices[0][1] if choices else None,
        label="Labels of which dataset",
        elem_id="dataset",
        visible=bool(choices),
    )
    question = gr.Textbox(
        label="Question of your own",
        placeholder="in place of the task's",
        elem_id="question",
        visible=opened.answers_in_text,
        max_lines=3,
    )

    def offer_datasets(name: str) -> Any:
        choices = dataset_choices(opened, name)
        return gr.update(choices=choices, value=choices[0][1] if choices else None, visible=bool(choices))

    task.change(offer_datasets, task, dataset, api_visibility="private", queue=False)
    return [words, task, dataset, question]


def dataset_choices(opened: OpenedModel, task: str) -> list[tuple[str, str]]:
    """Return (shown, value) of the datasets of training among which a user must or may choose; empty if there is one.

    A probe has classes of its own per dataset, so one must be named. A language model may be asked with all labels.
    """
    key = str(find_task(task).closed_key)
    sets = {name: sets[key] for name, sets in opened.processor.label_sets.items() if sets.get(key)}
    if len(sets) < 2:
        return []
    choices = [(f"{name or '(unnamed)'}: {', '.join(sorted(labels))}", name) for name, labels in sets.items()]
    return [("all labels", ALL_DATASETS), *choices] if opened.answers_in_text else choices


def _media(clip: Clip) -> list[Path]:
    return [path for kind in MEDIA_KINDS if (path := getattr(clip, kind))]


def _example_button(gr: Any, number: int, clip: Clip, folder: Path) -> Any:
    poster = write_poster(clip, folder / f"example-{number}.png")
    return gr.Button(
        clip.text or clip.id, icon=poster, elem_classes="example", elem_id=f"example-{number}", size="sm", min_width=90
    )


def _example_values(gr: Any, opened: OpenedModel, number: int, clip: Clip, task: str, dataset: str | None) -> list[Any]:
    """Return the open tab and its kind, the example's number, the file of each kind, the words, and the dataset."""
    kind = next(kind for kind in MEDIA_KINDS if getattr(clip, kind))
    paths = [str(path) if (path := getattr(clip, kind)) else None for kind in MEDIA_KINDS]
    known = clip.dataset in [value for _, value in dataset_choices(opened, task)]
    return [gr.update(selected=kind), kind, number, *paths, clip.text or "", clip.dataset if known else dataset]


def _connect_program(gr: Any, opened: OpenedModel, limits: PageLimits, inputs: Sequence[Any]) -> None:
    """Give programs the answer as `fusion-train predict --json` prints it; `inputs` are those of `ask`, in order."""

    def ask(
        video: str | None = None,
        text: str | None = None,
        task: str | None = None,
        question: str | None = None,
        dataset: str | None = None,
        audio: str | None = None,
        image: str | None = None,
    ) -> dict[str, Any]:
        clip = uploaded_clip({"video": video, "audio": audio, "image": image}, text)
        if clip is None:
            return {"error": NO_CLIP}
        asked = _question(opened, task, dataset, question)
        answer = answer_clip(opened, clip, asked, limits)
        common: dict[str, Any] = {
            "task": asked.task,
            "question": asked.words.strip() or None,
            "choices": [],
            "model": opened.identity,
        }
        return row(answer, common)

    gr.Button(visible=False).click(
        ask,
        inputs,
        gr.JSON(visible=False),
        api_name="ask",
        concurrency_id=ONE_AT_A_TIME,
        concurrency_limit=1,
    )


def uploaded_clip(paths: dict[str, str | None], text: str | None) -> Clip | None:
    """Return the clip of uploaded files by kind (video, audio, image); None if there is none."""
    media = {kind: Path(path) for kind, path in paths.items() if path}
    if not media:
        return None
    return Clip(
        id=next(iter(media.values())).name,
        text=(text or "").strip() or None,
        video=media.get("video"),
        audio=media.get("audio"),
        image=media.get("image"),
    )


def meant_dataset(clip: Clip, question: Question) -> str | None:
    """Return the dataset whose labels are meant; None for those of all datasets."""
    if question.dataset == ALL_DATASETS:
        return None
    return clip.dataset if question.dataset is None else question.dataset


def answer_clip(opened: OpenedModel, clip: Clip, question: Question, limits: PageLimits) -> ClipAnswer:
    """Answer a question about one clip; an error of the clip or of the question is part of the answer."""
    try:
        request = _request(opened, question, limits)
        clip_limits = PredictionLimits(batch_size=1, workers=1, clip_s=limits.clip_s, decode_s=limits.decode_s)
        clips = ClipList([replace(clip, dataset=meant_dataset(clip, question))])
        (answer,) = predict(opened, clips, request, limits=clip_limits, look=True)
    except FeatureCacheError as error:
        return ClipAnswer(clip, error=error)
    return answer


def _question(opened: OpenedModel, task: str | None, dataset: str | None, words: str | None) -> Question:
    """Return the question of the controls; a control that is not shown gives None."""
    return Question(task or first_task(opened), dataset, words or "")


def first_task(opened: OpenedModel) -> str:
    """Return the first task that the model was trained on."""
    return next(iter(opened.processor.tasks), "emotion")


def _request(opened: OpenedModel, question: Question, limits: PageLimits) -> PredictionRequest:
    return make_request(opened.processor, question.task, question.words, max_new_tokens=limits.max_new_tokens)


def _answer_in_page(
    opened: OpenedModel, limits: PageLimits, examples: Sequence[Clip], kind: str, example: int | None, *values: Any
) -> tuple[str, str]:
    """Return the answer and the timeline as HTML; `values` are those of the media inputs, then of the question."""
    *paths, text, task, dataset, words = values
    text = (text or "").strip() if opened.answers_in_text else ""
    if example is not None:
        clip: Clip | None = replace(examples[example], text=text or None)
    else:
        clip = uploaded_clip({kind: paths[MEDIA_KINDS.index(kind)]}, text)
    question = _question(opened, task, dataset, words)
    return panels(opened, clip, question, limits)


def panels(opened: OpenedModel, clip: Clip | None, question: Question, limits: PageLimits) -> tuple[str, str]:
    """Answer, and return the answer and the timeline as HTML; a reason in words if there is none."""
    if clip is None:
        return page_parts.refused_html(NO_CLIP), page_parts.empty_timeline_html()
    began = time.perf_counter()
    answer = answer_clip(opened, clip, question, limits)
    if answer.error is not None or answer.evidence is None:
        return page_parts.refused_html(str(answer.error)), page_parts.empty_timeline_html()
    asked = question.words.strip() or question.task
    if answer.probabilities:
        asked += f", one of {len(answer.probabilities)} labels"
        dataset = meant_dataset(clip, question)
        asked += f" of {dataset}" if dataset and len(opened.processor.label_sets) > 1 else ""
    content = timeline_html(
        answer.evidence, _frame_times(opened, answer), frames_in_order=_frames_in_order(opened.processor.encoders)
    )
    return (
        page_parts.answer_html(answer, asked, time.perf_counter() - began),
        page_parts.timeline_section(content),
    )


def _frame_times(opened: OpenedModel, answer: ClipAnswer) -> dict[str, list[float]]:
    """Return modality -> times of the frames that were shown, of those that have times."""
    encoders = opened.model.encoders()
    times = {
        name: frame_times_s(answer.clip, encoders[name].view)
        for name in answer.shown
        if isinstance(encoders[name].view, FramesView)
    }
    return {name: seconds for name, seconds in times.items() if seconds}


def _frames_in_order(encoders: dict[str, Any]) -> bool:
    """Whether the tokens of the video are ordered by frame."""
    order = encoders.get("video", {}).get("spec", {}).get("pooling", {}).get("order", "")
    return str(order).startswith(("frame", "time"))


def _limits_in_words(limits: PageLimits) -> dict[str, str]:
    return {"limits": f"clips of at most {limits.clip_s:g} s and {limits.megabytes} MB; uploads are deleted"}


def _gradio() -> Any:
    require("demo", "gradio", subject="fusion-train demo")
    import gradio

    return gradio


def _theme() -> Any:
    """Return a theme with system fonts, so that the page loads nothing from other machines."""
    gr = _gradio()
    return gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


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
