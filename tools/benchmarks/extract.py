"""Extraction beside its limits: the bare encoder, the reference procedure, one worker, a GPU's matrix peak.

Every ratio comes from one run, with contestants in turns and the best pass of each. Parts can be measured one by one
with --only. On a CPU `pipeline` and `ray` use encoders large enough to be the bottleneck, `decode`, `decode_workers`,
`scaling` and `memory` tiny ones. With --device cuda (the default where there is one) `pipeline` runs the full-size
networks in float16, with random weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import extract_material as material
import extract_reference as reference
import numpy as np
import psutil
import torch

import featurecache
from featurecache.clips.clip_list import Clip, ClipList, load_clips
from featurecache.encoders import Encoder
from featurecache.engines.local import run as run_local
from featurecache.extract.decode_processes import DecodeProcesses
from featurecache.extract.job import EncoderSettings, ExtractionJob
from featurecache.extract.pipeline import pool_tokens, stack_inputs
from featurecache.extract.prepare import PrepareClip, prepare, prepare_all
from featurecache.extract.run import extract
from featurecache.files.jsonl import dump_lines
from featurecache.media.decode import decode_each

NUM_FILES = 4
TURNS = 5
SIZE, SECONDS = (1280, 720), 4.0
NAMES = ("whisper", "eva-global", "eva-temporal")
CLIPS_TO_DO = 130_000
MAX_RECORDINGS = 8
"""Recordings of each kind that `decode_workers` takes out of --recordings."""
PARTS = ("decode", "decode_workers", "pipeline", "procedure", "scaling", "ray", "memory")
SLOW_PARTS = ("full_size",)

OPTIONS = [
    click.Option(["--only"], type=click.Choice(PARTS + SLOW_PARTS), multiple=True, help="A part; may be repeated."),
    click.Option(["--device"], default=None, help="cpu or cuda."),
    click.Option(["--clips", "num_clips"], type=int, default=8, show_default=True, help="Clips of the slow parts."),
    click.Option(["--workers"], type=int, default=None, help="Decode workers; one per core by default."),
    click.Option(["--recordings"], default=None, help="A folder of recordings of your own, for `decode_workers`."),
]


def measure(
    only: tuple[str, ...], device: str | None, num_clips: int, workers: int | None, recordings: str | None
) -> dict[str, Any]:
    """All figures of the parts asked for."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    workers = workers or os.cpu_count() or 1
    figures: dict[str, Any] = {"device": _device_name(device), "cores": os.cpu_count(), "workers": workers}
    with tempfile.TemporaryDirectory(prefix="extract-") as place:
        bench = Benchmark(Path(place), device, num_clips, workers, recordings)
        for part in only or PARTS:
            found = getattr(bench, part)()
            click.echo(f"{part}: {json.dumps(found)}", err=True)  # kept though a later part is stopped
            figures |= found
    return figures


class Benchmark:
    """Material in a folder, and a method a part."""

    def __init__(self, root: Path, device: str, num_clips: int, workers: int, recordings: str | None) -> None:
        self.root, self.device, self.num_clips, self.workers = root, device, num_clips, workers
        self.recordings = None if recordings is None else Path(recordings).resolve()
        peaks = [material.write_clip(root / f"{number}.mp4", number, SIZE, SECONDS) for number in range(NUM_FILES)]
        self.peaks = dict(enumerate(peaks))
        self._weights: dict[str, dict[str, str]] = {}

    def clip_list(self, count: int) -> Path:
        """A list of `count` clips over the files."""
        path = self.root / f"{count}.jsonl"
        rows = [
            {"id": f"c{n:05d}", "video": f"{n % NUM_FILES}.mp4", "peak_frame": self.peaks[n % NUM_FILES]}
            for n in range(count)
        ]
        path.write_bytes(dump_lines(rows))
        return path

    def work(self, size: str, count: int, store: str, workers: int | None = None) -> ExtractionJob:
        """An extraction by all three encoders of one size."""
        if size not in self._weights:
            self._weights[size] = material.save_encoders(self.root / size, size)
        features = {name: EncoderSettings(name, self._weights[size][name]) for name in NAMES}
        return ExtractionJob(
            str(self.root / store), str(self.clip_list(count)), features, workers=workers or self.workers
        )

    def decode(self) -> dict[str, Any]:
        """Sound and all frames of three views, in one thread, against OpenCV and moviepy; seconds of processor time."""
        views = [encoder.view for encoder in self.work("tiny", 1, "none").open_encoders(["cpu"])[0].values()]
        paths = [self.root / f"{number}.mp4" for number in range(NUM_FILES)]

        def ours() -> None:
            for number, path in enumerate(paths):
                decode_each(Clip(str(number), video=path, peak_frame=self.peaks[number]), views)

        def theirs() -> None:
            for number, path in enumerate(paths):
                reference.waveform(path)
                reference.sixteen_frames(path)
                reference.peak_frame(path, self.peaks[number])

        (ours_s, ours_cpu_s), (theirs_s, theirs_cpu_s) = _in_turns(ours, theirs, passes=3)
        return {
            "decode_ms_a_clip": round(1e3 * ours_s / NUM_FILES, 1),
            "decode_reference_ms_a_clip": round(1e3 * theirs_s / NUM_FILES, 1),
            "decode_over_reference_wall": round(theirs_s / ours_s, 2),
            "decode_core_ms_a_clip": round(1e3 * ours_cpu_s / NUM_FILES, 1),
            "decode_reference_core_ms_a_clip": round(1e3 * theirs_cpu_s / NUM_FILES, 1),
            "decode_over_reference_a_core": round(theirs_cpu_s / ours_cpu_s, 2),
        }

    def pipeline(self) -> dict[str, Any]:
        """The whole against the encoders' forwards and pooling on the same batches in memory."""
        size = "full" if self.device == "cuda" else "small"
        work = self.work(size, self.num_clips, "warm-up.zarr")
        encoders = work.open_encoders([self.device])[0]
        clips = work.load_clips()
        batches = _batches(clips, encoders)
        _forward_all(encoders, batches)  # warm
        run_extract(work, clips, encoders)
        bare_s, whole_s, summary = [], [], None
        for turn in range(TURNS):
            began = time.perf_counter()
            _forward_all(encoders, batches)
            bare_s.append(time.perf_counter() - began)
            summary = run_extract(self.work(size, self.num_clips, f"pipeline-{turn}.zarr"), clips, encoders)
            whole_s.append(summary.wall_s)
        tflop = sum(material.forward_tflop(size).values())
        bare, whole = self.num_clips / min(bare_s), self.num_clips / min(whole_s)
        peak = _matmul_tflops(self.device, torch.float16 if self.device == "cuda" else torch.float32)
        figures = {
            "pipeline_clips": self.num_clips,
            "pipeline_tflop_a_clip": round(tflop, 3),
            "bare_forward_clips_per_s": round(bare, 3),
            "extract_clips_per_s": round(whole, 3),
            "extract_over_bare_forward": round(whole / bare, 3),
            "extract_over_bare_forward_median": round(statistics.median(bare_s) / statistics.median(whole_s), 3),
            "matmul_peak_tflops": round(peak, 2),
            "utilisation": round(whole * tflop / peak, 3),
            "parts": summary.to_dict()["parts"] if summary else None,
            "bottleneck": summary.bottleneck if summary else None,
        }
        if size == "full":
            figures["hours_for_130k_clips_three_views"] = round(CLIPS_TO_DO / whole / 3600, 2)
        return figures

    def procedure(self) -> dict[str, Any]:
        """End to end against the reference procedure, with tiny encoders (decode decides) and with larger ones."""
        figures = {}
        for size, count in (("tiny", 4 * NUM_FILES), ("small", NUM_FILES)):
            work = self.work(size, count, f"procedure-{size}.zarr")
            encoders = work.open_encoders([self.device])[0]
            clips = work.load_clips()
            triples = [(clip.id, clip.video, clip.peak_frame) for clip in clips]
            _forward_all(encoders, _batches(clips[:1], encoders))
            (ours_s, _), (theirs_s, _) = _in_turns(
                lambda work=work, clips=clips, encoders=encoders: run_extract(work, clips, encoders, fresh=True),
                lambda t=triples, e=encoders, size=size: reference.extract(t, e, self.root / "npy" / size),
                passes=1,
            )
            figures |= {
                f"procedure_{size}_clips_per_s": round(count / ours_s, 3),
                f"procedure_{size}_reference_clips_per_s": round(count / theirs_s, 3),
                f"procedure_{size}_over_reference": round(theirs_s / ours_s, 2),
            }
        return figures

    def scaling(self) -> dict[str, Any]:
        """One rank on one core and two ranks on two, with encoders so small that decoding decides."""
        ranks = {count: self._ranks(count) for count in (1, 2)}
        return {
            "two_ranks_over_one": round(ranks[1] / ranks[2], 2),
            "one_rank_s": round(ranks[1], 2),
            "two_ranks_s": round(ranks[2], 2),
        }

    def decode_workers(self) -> dict[str, Any]:
        """Clips per second that are hashed, decoded and preprocessed by one worker and by several, as threads and as
        processes, in turns; on the generated clips, and on the recordings of --recordings."""
        work = self.work("tiny", 2 * NUM_FILES, "none")
        encoders = work.open_encoders(["cpu"])[0]
        lists = {"generated": work.load_clips()} | ({"recordings": self._recorded()} if self.recordings else {})
        figures: dict[str, Any] = {}
        with contextlib.ExitStack() as stack:
            prepare_by: dict[tuple[str, int], PrepareClip] = {}
            for count in (1, self.workers):
                began = time.perf_counter()
                processes = DecodeProcesses(encoders, count, {}, None)
                stack.callback(processes.close)
                processes.prepare(lists["generated"][0], encoders)
                figures["processes_start_s"] = round(time.perf_counter() - began, 1)
                prepare_by |= {("threads", count): prepare, ("processes", count): processes.prepare}
            for name, clips in lists.items():
                rates: dict[tuple[str, int], list[float]] = {contestant: [] for contestant in prepare_by}
                core_ms: dict[tuple[str, int], list[float]] = {contestant: [] for contestant in prepare_by}
                for _ in range(TURNS):
                    for (kind, count), prepare_clip in prepare_by.items():
                        wall_s, core_s = _preparing(clips, encoders, count, prepare_clip)
                        rates[kind, count].append(len(clips) / wall_s)
                        core_ms[kind, count].append(1e3 * core_s / len(clips))
                for (kind, count), measured in rates.items():
                    figures[f"{name}_{kind}_{count}_clips_per_s"] = _spread_of(measured)
                    figures[f"{name}_{kind}_{count}_core_ms_per_clip"] = _spread_of(core_ms[kind, count])
                for count in (1, self.workers):
                    pairs = zip(rates["processes", count], rates["threads", count], strict=True)
                    figures[f"{name}_{count}_processes_over_threads"] = _spread_of([a / b for a, b in pairs])
                for kind in ("threads", "processes"):
                    pairs = zip(rates[kind, self.workers], rates[kind, 1], strict=True)
                    figures[f"{name}_{self.workers}_{kind}_over_1"] = _spread_of([a / b for a, b in pairs])
                click.echo(f"{name}: {json.dumps(figures)}", err=True)  # kept though the next list is stopped
        return figures

    def _recorded(self) -> ClipList:
        """A list of all recordings below the folder of --recordings, at most `MAX_RECORDINGS` of each kind."""
        assert self.recordings is not None
        rows, folder = list[dict[str, object]](), self.recordings
        for kind, suffixes in (("video", {".mp4", ".mkv"}), ("audio", {".wav", ".flac"})):
            paths = [path for path in sorted(folder.rglob("*")) if path.suffix in suffixes]
            paths = paths[:: max(1, -(-len(paths) // MAX_RECORDINGS))]
            rows += [{"id": f"{kind}-{n}", kind: str(p.relative_to(folder))} for n, p in enumerate(paths)]
        path = self.root / "recordings.jsonl"
        path.write_bytes(dump_lines(rows))
        return load_clips(path, folder)

    def _ranks(self, num_ranks: int) -> float:
        """Seconds of the slowest of `num_ranks` processes, each on a core of its own."""
        best = float("inf")
        for turn in range(2):
            work = self.work("tiny", 8 * NUM_FILES, f"ranks-{num_ranks}-{turn}.zarr", workers=1)
            told = _in_processes(work, num_ranks, pinned=True)
            best = min(best, max(each["wall_s"] for each in told))
        return best

    def ray(self) -> dict[str, Any]:
        """One Ray actor with all cores against this process, by encoders large enough to be the bottleneck."""
        from featurecache.engines.ray import run as run_ray

        here_s, ray_s, with_start_s = [], [], []
        for turn in range(2):
            work = self.work("small", self.num_clips, f"ray-here-{turn}.zarr")
            here_s.append(run_local(work, [self.device]).wall_s)
            work = self.work("small", self.num_clips, f"ray-{turn}.zarr")
            began = time.perf_counter()
            ray_s.append(run_ray(work, actors=1).wall_s)
            with_start_s.append(time.perf_counter() - began)
        return {
            "local_clips_per_s": round(self.num_clips / min(here_s), 3),
            "ray_clips_per_s": round(self.num_clips / min(ray_s), 3),
            "ray_adds": round(min(ray_s) / min(here_s) - 1, 3),
            "ray_start_s": round(min(a - b for a, b in zip(with_start_s, ray_s, strict=True)), 1),
        }

    def full_size(self) -> dict[str, Any]:
        """Two clips through networks of the real sizes, saved and loaded as published; only where asked for."""
        began = time.perf_counter()
        work = self.work("full", 2, "full-size.zarr", workers=1)
        saved_at = time.perf_counter()
        told = _in_processes(work, 1, pinned=False)[0]
        return {
            "full_size_save_s": round(saved_at - began, 1),
            "full_size_load_s": round(time.perf_counter() - saved_at - told["wall_s"], 1),
            "full_size_s_a_clip": round(told["wall_s"] / 2, 1),
            "full_size_peak_MB": told["peak_MB"],
        }

    def memory(self) -> dict[str, Any]:
        """Peak of a process that extracts few clips, and of one that extracts eight times as many."""
        figures = {}
        for count in (16, 128):
            told = _in_processes(self.work("tiny", count, f"memory-{count}.zarr"), 1, pinned=False)[0]
            figures[f"peak_MB_{count}_clips"] = told["peak_MB"]
            figures["memory_bound_of_inputs_MB"] = round(told["memory_bound_bytes"] / 1e6, 1)
        return figures


def run_extract(work: ExtractionJob, clips: ClipList, encoders: Mapping[str, Encoder], fresh: bool = False) -> Any:
    """Extract with encoders that are open already; `fresh` takes a store of its own each time."""
    location = work.store + f"-{time.perf_counter_ns()}" if fresh else work.store
    return extract(featurecache.open_store(location, "a"), clips, encoders, **work.extract_options)


def _batches(clips: ClipList, encoders: Mapping[str, Encoder]) -> dict[str, list[np.ndarray]]:
    """Every encoder's batches, as extraction makes them."""
    inputs: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for clip in clips:
        for name, each in prepare(clip, encoders).by_feature.items():
            inputs[name].append(each.array)  # type: ignore[arg-type]
    return {
        name: [
            stack_inputs(encoder, dict(enumerate(inputs[name][first : first + encoder.batch_size])))
            for first in range(0, len(inputs[name]), encoder.batch_size)
        ]
        for name, encoder in encoders.items()
    }


def _forward_all(encoders: Mapping[str, Encoder], batches: Mapping[str, list[np.ndarray]]) -> None:
    pooled = [
        pool_tokens(encoder, encoder.forward(batch), (), {})
        for name, encoder in encoders.items()
        for batch in batches[name]
    ]
    for each in pooled:
        each.cpu()


def _preparing(
    clips: ClipList, encoders: Mapping[str, Encoder], workers: int, prepare_clip: PrepareClip
) -> tuple[float, float]:
    """Wall seconds, and processor seconds of this process and those below it."""
    began, began_core_s = time.perf_counter(), _processor_s()
    with ThreadPoolExecutor(workers) as pool:
        for _ in prepare_all(((clip, encoders) for clip in clips), pool, 2 * workers, prepare_clip):
            pass
    return time.perf_counter() - began, _processor_s() - began_core_s


def _processor_s() -> float:
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def _spread_of(values: Sequence[float]) -> list[float]:
    """Least, median and greatest."""
    return [round(value, 2) for value in (min(values), statistics.median(values), max(values))]


def _matmul_tflops(device: str, dtype: torch.dtype) -> float:
    """The best of a large matrix product."""
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(10):
        began = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times) / 1e12


def _in_turns(
    first: Callable[[], Any], second: Callable[[], Any], passes: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Least (wall, processor) seconds of both, children's included."""
    taken: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    for _ in range(passes):
        for place, run in zip(taken, (first, second), strict=True):
            before, began = sum(os.times()[:4]), time.perf_counter()
            run()
            place.append((time.perf_counter() - began, sum(os.times()[:4]) - before))
    a, b = ((min(wall for wall, _ in runs), min(cpu for _, cpu in runs)) for runs in taken)
    return a, b


PROGRAM = """
import json, os, sys
from pathlib import Path
work, rank, count, pinned = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "True"
if pinned:
    os.sched_setaffinity(0, {rank})
import torch
if pinned:
    torch.set_num_threads(1)
from featurecache.extract.job import EncoderSettings, ExtractionJob
from featurecache.engines.local import run
features = {name: EncoderSettings(name, weights) for name, weights in work.pop("weights").items()}
summary = run(ExtractionJob(features=features, **work), ["cpu"], rank=(rank, count))
peak_kb = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(json.dumps(summary.to_dict() | {"peak_MB": round(peak_kb / 1024, 1)}))
"""


def _in_processes(work: ExtractionJob, num_ranks: int, pinned: bool) -> list[dict[str, Any]]:
    """Extract in `num_ranks` processes at once; return what each summed up."""
    plain = {"store": work.store, "clips": work.clips, "workers": work.workers, "shard_clips": 8}
    plain["weights"] = {name: opening.weights for name, opening in work.features.items()}
    command = [sys.executable, "-c", PROGRAM, json.dumps(plain)]
    started = [
        subprocess.Popen([*command, str(rank), str(num_ranks), str(pinned)], stdout=subprocess.PIPE, text=True)
        for rank in range(num_ranks)
    ]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return model[0] if model else "cpu"
