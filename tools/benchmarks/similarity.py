"""Index building beside the store's own reading, searching beside brute force, and what planted faults are found.

Building reads every token once; its limit is the store's read rate. Searching is exact up to 200,000 clips, so it must
equal NumPy's brute force; above, recall@10 is measured with the speed-up. Planted duplicates and label noise need real
media: `--demo FOLDER` names what `make demo` left, `--emodb FOLDER` a list and a store of EmoDB.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

import featurecache
from benchmarks.store_read import BATCH, make_tokens
from featurecache.clips.clip_list import Clip, ClipList
from featurecache.explore.calibration_run import known_calibration
from featurecache.explore.duplicates import find_duplicates
from featurecache.explore.labels import label_neighbourhood
from featurecache.explore.projection import CONTENT, COPIES, OVERALL
from featurecache.explore.search import (
    Neighbourhood,
    build_approximate,
    open_neighbourhood,
    recall_at,
    update_indices,
)
from featurecache.explore.store_map import positions
from featurecache.importers.npy import unverified_spec

SHAPE = (64, 1280)
AXES = 128
NOISE_RATES = (0.05, 0.10, 0.20)
BOOTSTRAPS = 2000

OPTIONS = [
    click.Option(["--megabytes"], type=int, default=2048, show_default=True, help="Size of the feature indexed."),
    click.Option(["--clips"], type=int, default=166_000, show_default=True, help="Vectors of the exact search."),
    click.Option(["--vectors"], type=int, default=1_000_000, show_default=True, help="Of the approximate search."),
    click.Option(["--demo"], default=None, help="Folder of the demo, for planted duplicates and noise."),
    click.Option(["--emodb"], default=None, help="Folder with clips.jsonl of EmoDB and features.zarr made of it."),
    click.Option(["--folder"], default=None, help="Where to write; a temporary folder by default."),
]


def measure(
    megabytes: int, clips: int, vectors: int, demo: str | None, emodb: str | None, folder: str | None
) -> dict[str, Any]:
    """All figures."""
    figures: dict[str, Any] = {"cores": os.cpu_count()}
    with tempfile.TemporaryDirectory(dir=folder, prefix="similarity-") as place:
        figures |= building(Path(place), megabytes)
    figures |= exact_search(clips)
    figures |= approximate_search(vectors)
    if demo is not None:
        figures |= planted_duplicates(Path(demo))
        figures |= planted_noise(Path(demo))
    if emodb is not None:
        figures |= acted_speech(Path(emodb))
    return figures


def acted_speech(folder: Path) -> dict[str, Any]:
    """What the nearest clips of EmoDB share in every way of comparing, and the pairs taken for copies: there are none.

    The list has `speaker`, `text` and the label `emotion`.
    """
    store, clips = featurecache.open_store(folder / "features.zarr"), featurecache.load_clips(folder / "clips.jsonl")
    update_indices(store)
    ways = {way: open_neighbourhood(store, comparison=way) for way in (OVERALL, CONTENT, COPIES)}
    ways["label"], _ = label_neighbourhood(ways[OVERALL], clips, "emotion")
    figures: dict[str, Any] = {}
    for way, found in ways.items():
        listed = [clips.by_id(clip_id) for clip_id in found.ids]
        traits = {
            "emotion": [clip.labels["emotion"] for clip in listed],
            "sentence": [clip.text for clip in listed],
            "speaker": [clip.speaker for clip in listed],
        }
        similarity = found.vectors @ found.vectors.T
        np.fill_diagonal(similarity, -np.inf)
        for trait, values in traits.items():
            figures[f"near_{way}_{trait}"] = shared(similarity, np.array(values))
        speakers = np.array(traits["speaker"])
        similarity[speakers[:, None] == speakers] = -np.inf
        figures[f"near_{way}_emotion_of_other_speakers"] = shared(similarity, np.array(traits["emotion"]))
        points = positions(found.vectors, "pca")
        distance = np.square(points[:, None] - points).sum(2)
        np.fill_diagonal(distance, np.inf)
        figures[f"map_{way}_emotion"] = shared(-distance, np.array(traits["emotion"]))
    rule = known_calibration(store, ways[COPIES])
    duplicates = find_duplicates(store, ways[COPIES], clips, rule)
    return figures | {"emodb_pairs": len(duplicates.pairs), "emodb_calibrated": rule.calibrated}


def shared(nearness: np.ndarray, values: np.ndarray) -> float:
    """(N, N) nearness, (N,) values -> share of the ten nearest that have the same value."""
    nearest = np.argsort(-nearness, axis=1)[:, :10]
    return round(float((values[nearest] == values[:, None]).mean()), 4)


def building(root: Path, megabytes: int) -> dict[str, Any]:
    """Seconds of an index update over seconds of reading the same clips, both from a dropped page cache and warm."""
    tokens = make_tokens(256 << 20, SHAPE)
    count = (megabytes << 20) // tokens[0].nbytes
    store = featurecache.open_store(root / "s.zarr", "a")
    writer = store.writer("whisper", unverified_spec("whisper", SHAPE, "float16"))
    writer.plan([f"clip_{number:07d}" for number in range(count)])
    for shard in writer.pending():
        with writer.begin(shard) as open_shard:
            for slot, clip_id in enumerate(shard.ids):
                open_shard.put(slot, tokens[int(clip_id[5:]) % len(tokens)], "00" * 31 + "01")
            open_shard.commit()
    del tokens
    figures: dict[str, Any] = {"building_clips": count}
    for state in ("cold", "warm"):
        seconds = {}
        for what in ("read", "index"):
            if state == "cold":
                drop_cache(root / "s.zarr")
            done = subprocess.run(
                [sys.executable, "-c", CHILD, str(root / "s.zarr"), what, str(BATCH)],
                capture_output=True,
                text=True,
                check=True,
            )
            seconds[what], peak = map(float, done.stdout.split())
            figures[f"building_{state}_{what}_s"] = round(seconds[what], 2)
            figures[f"building_{state}_{what}_peak_mb"] = round(peak)
        figures[f"building_{state}_over_reading"] = round(seconds["read"] / seconds["index"], 3)
    return figures


CHILD = """
import resource, shutil, sys, time
import featurecache
from featurecache.explore.search import update_indices
place, what, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
shutil.rmtree(place + ".similar", ignore_errors=True)
import numpy as np, torch
store = featurecache.open_store(place)
feature = store["whisper"]
began = time.perf_counter()
if what == "index":
    update_indices(store)
else:
    ids = feature.ids
    out = np.empty((batch, *feature.shape), feature.dtype)
    for begin in range(0, len(ids) - batch + 1, batch):
        feature.read(ids[begin : begin + batch], out=out)
seconds = time.perf_counter() - began
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def drop_cache(root: Path) -> None:
    """Ask the kernel to forget every file of a folder."""
    for path in root.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def exact_search(clips: int) -> dict[str, Any]:
    """One query, and a batch of 256, against NumPy on the same vectors."""
    found = clustered(clips)
    figures: dict[str, Any] = {"exact_clips": clips}
    for count in (1, 256):
        queries = found.vectors[:count]
        ours_s, (similarities, places) = best(lambda queries=queries: found.search(queries, 10))
        brute_s, (expected, order) = best(lambda queries=queries: brute_force(found.vectors, queries, 10))
        figures[f"exact_{count}_queries_ms"] = round(1e3 * ours_s, 2)
        figures[f"exact_{count}_queries_numpy_over_ours"] = round(brute_s / ours_s, 2)
        same = np.allclose(similarities, expected, atol=1e-5) and recall_at(order, places)
        figures[f"exact_{count}_queries_same_as_numpy"] = round(float(same), 4)
    return figures


def approximate_search(count: int) -> dict[str, Any]:
    """An inverted file against the exact search."""
    found = clustered(count)
    began = time.perf_counter()
    index, measured = build_approximate(found)
    figures: dict[str, Any] = {
        "approximate_vectors": count,
        "approximate_build_s": round(time.perf_counter() - began, 1),
    }
    queries = found.vectors[np.random.default_rng(1).choice(count, 200, replace=False)]
    exact_s, (_, expected) = best(lambda: found.search(queries, 10), 1)
    index_s, (_, places) = best(lambda: found.search(queries, 10, index), 3)
    figures["approximate_recall_at_10"] = round(recall_at(expected, places), 4)
    figures["approximate_speed_up"] = round(exact_s / index_s, 1)
    figures["approximate_lists_read"] = f"{measured['lists_read']} of {measured['lists']}"
    figures["approximate_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return figures


def clustered(count: int) -> Neighbourhood:
    """Vectors of length 1 in loose clusters, as clips of films and speakers are."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((max(8, count // 200), AXES)).astype(np.float32)
    vectors = centres[random.integers(len(centres), size=count)]
    vectors += random.standard_normal((count, AXES), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Neighbourhood({"whisper": ([str(n) for n in range(count)], vectors)}, {"whisper": 1.0})


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    similarity = queries @ vectors.T
    nearest = np.argpartition(-similarity, k, axis=1)[:, :k]
    order = np.take_along_axis(nearest, np.argsort(-np.take_along_axis(similarity, nearest, 1), 1), 1)
    return np.take_along_axis(similarity, order, 1), order


def best(call: Any, times: int = 5) -> tuple[float, Any]:
    """Seconds of the quickest of some calls, and what it returned."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - began)
    return min(seconds), result


def planted_duplicates(demo: Path) -> dict[str, Any]:
    """Altered copies of demo clips; threshold set on half of them, recall and false positives on the other half."""
    from featurecache.explore.calibration_run import calibrate
    from featurecache.extract.job import opener

    folders = {"whisper": "whisper", "eva-global": "eva", "eva-temporal": "eva"}
    models = {name: str(demo / "models" / folder) for name, folder in folders.items()}
    store, clips = featurecache.open_store(demo / "features.zarr"), featurecache.load_clips(demo / "clips.jsonl")
    update_indices(store)
    found = open_neighbourhood(store, comparison=COPIES)
    rule = calibrate(store, found, clips, opener(models, {}, "cpu"), num_clips=80)
    figures = {f"duplicates_recall_{name.replace(' ', '_')}": round(share, 4) for name, share in rule.recall.items()}
    figures["duplicates_recall"] = round(float(np.mean(list(rule.recall.values()))), 4)
    counts = {
        "duplicates_false_positives": rule.num_false_positives,
        "duplicates_pairs_that_matter": rule.num_false_pairs,
    }
    return figures | counts


def planted_noise(demo: Path) -> dict[str, Any]:
    """Wrong labels among the demo's training clips: precision of the top of the list, accuracy gained on test clips."""
    from sklearn.linear_model import LogisticRegression

    from featurecache.explore.labels import PROBE_C, audit

    found = open_neighbourhood(featurecache.open_store(demo / "features.zarr"))
    clips = featurecache.load_clips(demo / "clips.jsonl")
    train, test = [c for c in clips if c.split == "train"], [c for c in clips if c.split == "test"]
    rows = lambda some: found.vectors[[found.row_of(clip.id) for clip in some]]  # noqa: E731
    labels = sorted({clip.labels["emotion"] for clip in clips})
    truth = np.array([clip.labels["emotion"] for clip in test])
    figures: dict[str, Any] = {}
    for rate in NOISE_RATES:
        random = np.random.default_rng(0)
        wrong = set(random.choice(len(train), round(rate * len(train)), replace=False).tolist())
        noisy = [relabelled(clip, labels, random) if n in wrong else clip for n, clip in enumerate(train)]
        report = audit(found, ClipList(noisy), "emotion")
        planted = {train[n].id for n in wrong}
        top = [issue.id for issue in report.issues][: len(planted)]
        doubted = {issue.id for issue in report.issues}
        right = []
        for some in (noisy, [clip for clip in noisy if clip.id not in doubted]):
            probe = LogisticRegression(C=PROBE_C, max_iter=1000).fit(rows(some), [c.labels["emotion"] for c in some])
            right.append(probe.predict(rows(test)) == truth)
        gain = right[1].astype(float) - right[0]
        draws = random.choice(gain, (BOOTSTRAPS, len(gain))).mean(1)
        name = f"noise_{round(100 * rate)}"
        figures[f"{name}_precision_of_top"] = round(len(planted & set(top)) / len(top), 3)
        figures[f"{name}_found"] = round(len(planted & doubted) / len(planted), 3)
        figures[f"{name}_accuracy"] = [round(float(each.mean()), 4) for each in right]
        figures[f"{name}_gain_95"] = [round(float(q), 4) for q in np.quantile(draws, [0.025, 0.975])]
    return figures


def relabelled(clip: Clip, labels: list[str], random: np.random.Generator) -> Clip:
    """The clip with one of the other labels."""
    others = [label for label in labels if label != clip.labels["emotion"]]
    return dataclasses.replace(clip, labels={"emotion": str(random.choice(others))})
