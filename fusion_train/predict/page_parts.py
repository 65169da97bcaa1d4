"""The parts of the demo page that it draws itself, as HTML: header, answer, empty states, facts about the model.

Every text from outside (card, labels, answers, file names) is escaped. Knows no gradio.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurecache.outside_text import html_text
from fusion_train.predict.opening import OpenedModel
from fusion_train.predict.pipeline import ClipAnswer

SHOWN_LABELS = 8
"""Labels with a bar; the rest is folded."""
LONG_ANSWER = 40
"""Characters from which an answer is set as a sentence and not as one large word."""
CHANGED_POINTS = 0.02
"""A modality matters if the probability of the answer differs by at least this without it."""
READ_OF = {"audio": "the voice", "image": "one frame", "video": "frames over the clip"}
CAUTION = "What a face or a voice shows is not what a person feels. Do not decide about people by these answers."


def header_html(opened: OpenedModel) -> str:
    """Return the title and the first paragraph of the model's card, and what the model reads."""
    encoders = "".join(
        f'<li><b class="m-{html_text(modality)}">{html_text(modality)}</b> '
        f"{html_text(READ_OF.get(modality, ''))}, {html_text(entry['spec']['encoder'])}</li>"
        for modality, entry in opened.processor.encoders.items()
    )
    words = "<li><b>text</b> what is said</li>" if opened.answers_in_text else ""
    return (
        f'<header class="head"><h1>{html_text(opened.card.title)}</h1>'
        f'<p class="lead">{html_text(opened.card.summary)}</p><ul class="reads">{encoders}{words}</ul></header>'
    )


def empty_answer_html(*, with_examples: bool) -> str:
    """Return what stands in the place of the answer before the first question."""
    start = "Press an example, or record or upload a clip and press Ask" if with_examples else "Record or upload a clip"
    ask = "" if with_examples else ", then press Ask"
    ghosts = "".join(
        f"<p>{title}</p>" + "".join(f'<i style="width:{width}%"></i>' for width in widths)
        for title, widths in (
            ("probability of each label", (72, 41, 18, 9)),
            ("what the answer rests on", (38, 64, 70)),
        )
    )
    return (
        '<section class="answer empty"><p class="kicker">answer</p><p class="word">?</p>'
        f'<p class="next">{start}{ask}. The answer will stand here.</p><div class="ghost">{ghosts}</div></section>'
    )


def empty_timeline_html() -> str:
    """Return what stands in the place of the timeline before the first answer."""
    tracks = "".join(f'<i class="{name}">{name}</i>' for name in ("frames", "sound", "windows", "weights"))
    return (
        '<section class="timeline empty"><h2>What the model saw and heard</h2>'
        "<p>Frames, sound, the windows of the fusion and the weight of each modality will stand here, under one axis "
        f'of time.</p><div class="ghost" aria-hidden="true">{tracks}</div></section>'
    )


def refused_html(reason: str) -> str:
    """Return the place of the answer if there is none: what is wrong and what to do."""
    return (
        '<section class="answer refused" role="alert"><p class="kicker">not answered</p>'
        f'<p class="sentence">{html_text(reason)}</p></section>'
    )


def answer_html(answer: ClipAnswer, question: str, seconds: float) -> str:
    """Return the answer, its probabilities, and the answer without each modality.

    Args:
        question: the question in a few words: the task, and whose labels.
        seconds: time from the request to the answer.
    """
    text = answer.text or ""
    size = "sentence" if len(text) > LONG_ANSWER else "word"
    basis = " · ".join(f'<b class="m-{name}">{name}</b>' for name in answer.shown)
    words = " and the words" if answer.clip.text and basis else "the words" if answer.clip.text else ""
    source = f"from {basis}{words}" if basis or words else "from nothing but the question"
    return (
        f'<section class="answer" aria-live="polite"><p class="kicker">{html_text(question)}</p>'
        f'<p class="{size}">{html_text(text)}</p>{_sureness(answer)}'
        f"{_bars(answer)}{_without(answer)}"
        f'<p class="note">{source}; {seconds:.1f} s</p></section>'
    )


def _ranked(probabilities: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(probabilities.items(), key=lambda item: -item[1])


def _sureness(answer: ClipAnswer) -> str:
    """Say how probable the answer is, and which label comes next."""
    ranked = _ranked(answer.probabilities)
    if not ranked:
        return ""
    line = f"<b>{_percent(ranked[0][1])}</b> of the probability"
    if len(ranked) > 1:
        line += f"; next {html_text(ranked[1][0])}, {_percent(ranked[1][1])}"
    return f'<p class="sure">{line}</p>'


def _bars(answer: ClipAnswer) -> str:
    ranked = _ranked(answer.probabilities)
    rows = [
        f"<li{' class=first' if number == 0 else ''}><span>{html_text(label)}</span>"
        f'<i><i style="width:{value * 100:.2f}%"></i></i><b>{_percent(value)}</b></li>'
        for number, (label, value) in enumerate(ranked)
    ]
    if not rows:
        return ""
    rest = rows[SHOWN_LABELS:]
    more = f'<details><summary>{len(rest)} more labels</summary><ul class="bars">{"".join(rest)}</ul></details>'
    return f'<ul class="bars">{"".join(rows[:SHOWN_LABELS])}</ul>{more if rest else ""}'


def _without(answer: ClipAnswer) -> str:
    """Say on which modality the answer rests most, and show its probability without each."""
    if answer.evidence is None or not answer.evidence.without or answer.text is None:
        return ""
    label, whole = answer.text, answer.probabilities[answer.text]
    drops = answer.evidence.drops(answer.probabilities, label)
    first = max(drops, key=lambda name: drops[name])
    if drops[first] >= CHANGED_POINTS:
        lead = (
            f'It rests most on <b class="m-{first}">{first}</b>: without it, {html_text(label)} would have '
            f"{_percent(whole - drops[first])}."
        )
    else:
        lead = "It rests on no modality by itself: without any one of them the answer would hardly change."
    rows = ""
    for name, others in answer.evidence.without.items():
        value, other = others[label], max(others, key=lambda key: others[key])
        points = round((value - whole) * 100)
        change = f"{points:+d} points".replace("-", "−") if points else "unchanged"
        then = f", answer {html_text(other)}" if other != label else ""
        rows += (
            f'<li><span>without <b class="m-{name}">{name}</b></span>'
            f'<i class="m-{name}"><i style="width:{value * 100:.2f}%"></i><u style="left:{whole * 100:.2f}%"></u></i>'
            f"<b>{_percent(value)}</b><em>{change}{then}</em></li>"
        )
    return f'<p class="rests">{lead}</p><ul class="bars without">{rows}</ul>'


def _percent(value: float) -> str:
    if 0.995 <= value < 1 or 0 < value < 0.005:
        return f"{value:.1%}".replace("%", " %")
    return f"{value * 100:.0f} %"


def timeline_section(content: str) -> str:
    """Return the tracks of an answer under their heading."""
    return f'<section class="timeline"><h2>What the model saw and heard</h2>{content}</section>'


def about_html(opened: OpenedModel, limits: Mapping[str, Any]) -> str:
    """Return the facts about the model: tasks, labels by dataset, encoders, identity, and limits of the page."""
    rows = [("tasks", ", ".join(opened.processor.tasks) or "none are named")]
    for dataset, sets in opened.processor.label_sets.items():
        labels = "; ".join(f"{task}: {', '.join(names)}" for task, names in sets.items())
        rows.append((f"labels of {dataset or 'clips without a dataset'}", labels))
    for modality, entry in opened.processor.encoders.items():
        spec = entry["spec"]
        rows.append((f"{modality} encoder", f"{spec['encoder']}, {' × '.join(map(str, spec['shape']))} tokens × width"))
    rows += [("model", f"{opened.name}, {opened.identity}"), *limits.items()]
    facts = "".join(f"<dt>{html_text(name)}</dt><dd>{html_text(value)}</dd>" for name, value in rows)
    fold = f'<details class="about"><summary>About this model</summary><dl>{facts}</dl></details>'
    return f'{fold}<p class="note">{CAUTION}</p>'
