"""What `fusion-train predict` costs beside its bare parts, on an exported folder and raw clips.

Cold: a fresh process from start to first answer, against one that only imports, opens the folder and calls the parts.
Warm: seconds a clip of each part alone, one after another in one thread, and of `predict`, which overlaps them; its
overhead is its wall time over the bare sum, negative where overlapping won. Batch: clips/s of `predict` against the
rate of its slowest part alone with the same batch size. Contestants take turns, the best pass of each counts. Each
part has one torch thread, so that decoding and encoding do not fight for the same cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from featurecache.clips.clip_list import ClipList
from fusion_train.predict.opening import OpenedModel, open_model
from fusion_train.predict.pipeline import PredictionLimits, predict
from fusion_train.predict.request import collect_clips, make_request
from fusion_train.predict.timing import STAGES, Timings, timing_answers

OPTIONS = [
    click.Option(["--model"], required=True, help="Exported folder."),
    click.Option(["--clips"], required=True, help="Clip list or folder of clips."),
    click.Option(["--count"], type=int, default=100, show_default=True, help="Clips of the batch."),
    click.Option(["--batch-size"], type=int, default=8, show_default=True),
    click.Option(["--passes"], type=int, default=3, show_default=True),
    click.Option(["--cold-passes"], type=int, default=5, show_default=True),
    click.Option(["--task"], default="emotion", show_default=True),
    click.Option(["--device"], default="cpu", show_default=True),
]
BARE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from featurecache.clips.clip_list import Clip
from fusion_train.remote.modeling_emotion_llama import EmotionLlamaForCausalLM
from fusion_train.predict.opening import open_processor
folder, clip, task = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
model = EmotionLlamaForCausalLM.from_pretrained(folder).eval()
processor = open_processor(folder, model.config)
labels = processor.labels(task)
inputs = processor.collate([processor.prepare(Clip(clip.name, video=clip), task, None, labels)])
if labels:
    print(model.label_probabilities(processor.label_ids(labels), **inputs).argmax())
else:
    print(processor.answers(model.generate(**inputs))[0])
"""


def measure(
    model: str, clips: str, count: int, batch_size: int, passes: int, cold_passes: int, task: str, device: str
) -> dict[str, Any]:
    """All figures; seconds are of the best pass."""
    torch.set_num_threads(1)
    opened = open_model(Path(model), device)
    chosen = ClipList(list(collect_clips([Path(clips)]))[:count])
    video = next(clip.video for clip in chosen if clip.video)
    figures: dict[str, Any] = {"num_clips": len(chosen), "batch_size": batch_size, "device": device, "task": task}
    figures |= cold_figures(model, str(video), task, cold_passes)
    one = ClipList([chosen[0]])
    figures |= _prefixed("single", pass_figures(opened, one, task, 1, 3 * passes))
    figures |= _prefixed("batch", pass_figures(opened, chosen, task, batch_size, passes))
    return figures


def cold_figures(model: str, video: str, task: str, passes: int) -> dict[str, float]:
    """A whole process for one clip, ours and bare."""
    ours = [str(Path(sys.executable).parent / "fusion-train"), "predict", "--model", model, video, "--task", task]
    bare = [sys.executable, "-c", BARE, model, video, task]
    best = _take_turns({"predict": lambda: _process(ours), "bare": lambda: _process(bare)}, passes)
    return {
        "cold_first_answer_s": best["predict"],
        "cold_bare_s": best["bare"],
        "cold_overhead": best["predict"] / best["bare"] - 1,
    }


def pass_figures(opened: OpenedModel, clips: ClipList, task: str, batch_size: int, passes: int) -> dict[str, float]:
    """Every part alone, in turn with `predict`."""
    question = make_request(opened.processor, task)
    labels = question.labels(opened.processor, clips[0])
    stages: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def parts() -> float:
        spent = bare_parts(opened, clips, task, labels, question.closed(labels), batch_size)
        for stage, seconds in spent.items():
            stages[stage].append(seconds)
        return sum(spent.values())

    def whole() -> float:
        began = time.perf_counter()
        for answer in predict(opened, clips, question, limits=PredictionLimits(batch_size)):
            if answer.error is not None:
                raise answer.error
        return time.perf_counter() - began

    best = _take_turns({"parts": parts, "predict": whole}, passes)
    alone = {stage: min(seconds) for stage, seconds in stages.items()}
    language_s = alone["prefix"] + alone["text"]
    slowest_s = max(alone["decode"], alone["encode"], language_s)
    return {
        **{f"{stage}_s_per_clip": seconds / len(clips) for stage, seconds in alone.items()},
        "bare_sum_s": best["parts"],
        "predict_s": best["predict"],
        "overhead": best["predict"] / best["parts"] - 1,
        "clips_per_s": len(clips) / best["predict"],
        "slowest_part_clips_per_s": len(clips) / slowest_s,
        "rate_over_slowest_part": slowest_s / best["predict"],
    }


@torch.inference_mode()
def bare_parts(
    opened: OpenedModel, clips: ClipList, task: str, labels: tuple[str, ...], closed: bool, batch_size: int
) -> dict[str, float]:
    """Seconds of each stage, the calls of the library with nothing around them."""
    timings = Timings()
    model, processor = opened.model, opened.processor
    began = time.perf_counter()
    prepared = [processor.prepare(clip, task, None, labels) for clip in clips]
    timings.add("decode", time.perf_counter() - began)
    for start in range(0, len(prepared), batch_size):
        began = time.perf_counter()
        inputs = processor.collate(prepared[start : start + batch_size]).to(opened.device)
        prompt = {name: inputs.pop(name) for name in ("input_ids", "attention_mask", "present")}
        features = model.encode(prompt["present"], **inputs)
        if opened.device.type == "cuda":
            torch.cuda.synchronize()
        timings.add("encode", time.perf_counter() - began)
        with timing_answers(model.emotion_llama.llm, timings):
            if closed:
                model.label_probabilities(processor.label_ids(labels), **prompt, features=features).tolist()
            else:
                processor.answers(model.generate(**prompt, features=features))
    return dict(timings.stages)


def _take_turns(contestants: dict[str, Callable[[], float]], passes: int) -> dict[str, float]:
    """Name -> seconds of the best of `passes`, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(passes + 1):
        for name, run in contestants.items():
            seconds = run()
            if number:
                found[name].append(seconds)
    return {name: min(seconds) for name, seconds in found.items()}


def _process(command: list[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(json.dumps(done.stderr[-500:]))
    return time.perf_counter() - began


def _prefixed(prefix: str, figures: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{key}": value for key, value in figures.items()}
