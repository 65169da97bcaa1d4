"""Search at the shape of MER2026 Track 1: against the challenge's loop, by size of the stack, and false winners."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler

from featurecache.clips.clip_list import Clip
from featurecache.console import note
from fusion_train.models.utterance_heads import MerAttention, build_head
from fusion_train.search.draws import RandomSampler, draw_trials
from fusion_train.search.parts import Parts, divide
from fusion_train.search.rungs import Searching, run_rungs
from fusion_train.search.running import selected_of
from fusion_train.search.search_file import SearchBudget, SearchFile
from fusion_train.search.selection import FoldAnswers, Selected, select
from fusion_train.search.stacked_training import Fit, Stack, products_in
from fusion_train.search.trial_results import TrialResults
from fusion_train.search.utterance_vectors import SearchData

WIDTHS = (512, 768, 768, 1024, 768, 1024, 768, 1024, 768, 768, 1024, 768, 1024, 1408, 1408, 1280)
"""Widths of the 16 features, of 512 to 1,408 dimensions as encoders of these families give them."""
CLASSES = ("neutral", "angry", "happy", "sad", "worried", "surprise")
SHARES = (0.25, 0.22, 0.2, 0.16, 0.11, 0.06)
STRENGTHS = np.linspace(0.02, 0.09, 16)
"""How far the means of the classes lie from each other, by feature."""
CHALLENGE_BATCH, CHALLENGE_DECAY, CHALLENGE_MODALITIES = 32, 1e-5, 3
"""Of the challenge's script, which trains 100 epochs, scores each, and reads one feature as all three modalities."""
LOOP_CLIPS = 1000
"""Clips of an epoch of the loop that is measured: its speed does not depend on their number."""
STACKS = (1, 8, 64, 512)

OPTIONS = [
    click.Option(["--clips"], type=int, default=9395, show_default=True),
    click.Option(["--draws"], type=int, default=50, show_default=True, help="Of each of the 16 features."),
    click.Option(["--minutes"], type=float, default=10.0, show_default=True, help="Budget of the search; 0: none."),
    click.Option(["--threads"], type=int, default=2, show_default=True, help="Cores."),
    click.Option(["--precision"], type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True),
    click.Option(["--repetitions"], type=int, default=200, show_default=True, help="Of the search without an effect."),
    click.Option(["--part", "parts"], multiple=True, type=click.Choice(["loop", "stack", "winners", "search"])),
]


def measure(
    clips: int, draws: int, minutes: float, threads: int, precision: str, repetitions: int, parts: Sequence[str]
) -> dict[str, Any]:
    """Measure the parts that are asked for; none: all."""
    torch.set_num_threads(threads)
    parts = parts or ("winners", "loop", "stack", "search")
    figures: dict[str, Any] = {
        "clips": clips,
        "threads": threads,
        "precision": precision,
        "load_before": Path("/proc/loadavg").read_text().split()[0],
    }
    if "winners" in parts:
        figures |= false_winners(repetitions)
    if set(parts) & {"loop", "stack", "search"}:
        data = synthetic(clips, len(WIDTHS) if "search" in parts else 4)
        if "loop" in parts or "search" in parts:
            figures |= challenge_loop(data)
        if "stack" in parts:
            figures |= stacks(data, precision)
        if "search" in parts:
            figures |= whole_search(data, draws, minutes, threads, precision)
            rate = figures["search_clips_per_s"] / figures["loop_clips_per_s"]
            figures["search_over_loop"] = round(rate, 2)
    figures["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    figures["load_after"] = Path("/proc/loadavg").read_text().split()[0]
    return figures


def synthetic(clips: int, features: int) -> SearchData:
    """Clips with planted classes; each feature shows them more clearly than the one before."""
    random = np.random.default_rng(0)
    targets = random.choice(len(CLASSES), clips, p=SHARES)
    vectors = {}
    for number, (width, strength) in enumerate(zip(WIDTHS[:features], STRENGTHS, strict=False)):
        means = random.normal(size=(len(CLASSES), width)).astype(np.float32)
        noise = random.standard_normal((clips, width), dtype=np.float32)
        noise += strength * means[targets]
        vectors[f"feature{number:02}"] = torch.from_numpy(noise)
    listed = tuple(Clip(f"c{number:05}", labels={"emotion": CLASSES[label]}) for number, label in enumerate(targets))
    return SearchData(listed, (), CLASSES, torch.from_numpy(targets), vectors, "synthetic")


class ChallengeClips(Dataset):  # type: ignore[type-arg]
    """One feature as all three modalities, clip by clip, as the challenge's loader gives it."""

    def __init__(self, vectors: Tensor, targets: Tensor) -> None:
        self.vectors, self.targets = vectors.numpy(), targets.numpy()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        modalities = [self.vectors[index]] * CHALLENGE_MODALITIES
        return {"modalities": modalities, "target": self.targets[index], "name": str(index)}


def collate(instances: list[dict[str, Any]]) -> tuple[list[Tensor], Tensor, list[str]]:
    """A batch of the challenge's loader."""
    modalities = [
        torch.from_numpy(np.array([instance["modalities"][m] for instance in instances]))
        for m in range(CHALLENGE_MODALITIES)
    ]
    targets = torch.from_numpy(np.array([instance["target"] for instance in instances]))
    return modalities, targets, [instance["name"] for instance in instances]


def challenge_loop(data: SearchData) -> dict[str, Any]:
    """Clips trained per second of the challenge's loop: one model, batches of 32, an evaluation after each epoch.

    One epoch of one model for four features and the three hidden widths of its grid; all epochs have the same speed.
    """
    trained, started = 0, time.perf_counter()
    rows = np.random.default_rng(0).permutation(len(data.clips))[:LOOP_CLIPS]
    train, held_out = np.split(rows, [len(rows) * 4 // 5])
    for name in list(data.vectors)[:4]:
        dataset = ChallengeClips(data.vectors[name], data.targets)
        for hidden in (64, 128, 256):
            dims = [data.vectors[name].shape[1]] * CHALLENGE_MODALITIES
            model = MerAttention(dims, num_classes=len(CLASSES), hidden=hidden, dropout=0.3)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=CHALLENGE_DECAY)
            model.train()
            for modalities, targets, _ in _loader(dataset, train):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(modalities), targets)
                loss.backward()
                optimizer.step()
                trained += len(targets)
            model.eval()
            with torch.no_grad():
                for modalities, _, _ in _loader(dataset, held_out):
                    model(modalities)
    return {"loop_clips_per_s": round(trained / (time.perf_counter() - started))}


def _loader(dataset: ChallengeClips, rows: np.ndarray) -> Iterator[Any]:
    sampler = SubsetRandomSampler(rows.tolist())
    return iter(DataLoader(dataset, CHALLENGE_BATCH, sampler=sampler, num_workers=0, collate_fn=collate))


def stacks(data: SearchData, precision: str) -> dict[str, Any]:
    """Clips trained per second by the number of models in a stack, hidden width 128, on one thread."""
    torch.set_num_threads(1)
    name = next(name for name, vectors in data.vectors.items() if vectors.shape[1] == 1024)
    figures: dict[str, Any] = {}
    for batch in (32, 128):
        for size in STACKS:
            rows = np.arange(max(batch * 2, min(len(data.clips), 8192 // size * 2)) // batch * batch)
            fits = [Fit([data.vectors[name]], rows, rows[:0], rows[:0], n, 1e-3, 1e-4) for n in range(size)]
            stack = Stack(
                lambda _: build_head("mer-attention", [1024], num_classes=6, hidden=128, dropout=0.3),
                fits,
                data.targets,
            )
            started = time.perf_counter()
            with products_in(precision):
                stack.train_epoch(0, batch)
            seconds = time.perf_counter() - started
            figures[f"stack_{size}_batch_{batch}_clips_per_s"] = round(size * len(rows) / seconds)
        alone = figures[f"stack_1_batch_{batch}_clips_per_s"]
        for size in STACKS[1:]:
            figures[f"stack_{size}_batch_{batch}_speed_up"] = round(
                figures[f"stack_{size}_batch_{batch}_clips_per_s"] / alone, 2
            )
    return figures


def whole_search(data: SearchData, draws: int, minutes: float, threads: int, precision: str) -> dict[str, Any]:
    """The search itself: every feature by itself, the challenge's head, halving, five folds."""
    search = SearchFile(
        features={"all": tuple(data.vectors)},
        combine=("alone",),
        heads=("mer-attention",),
        draws=draws,
        precision=precision,
        budget=SearchBudget(minutes=minutes or None),
    )
    parts, groups = divide(data, search.folds, None, 0)
    trials = {trial.name: trial for trial in draw_trials(search, RandomSampler(0))}
    with tempfile.TemporaryDirectory() as folder:
        searching = Searching(search, data, trials, parts, TrialResults(Path(folder) / "search"), threads)
        started = time.perf_counter()
        with searching.results.begin({}) as lines:
            run_rungs(searching, lines, note)
        trained_s = time.perf_counter() - started
        selected = selected_of(searching, groups)
    fits = searching.results.fits
    trained = sum(fit.epochs * len(parts[key.fold].train) for key, fit in fits.items())
    return {
        "search_trials": selected.num_trials,
        "search_models": len(fits),
        "search_s": round(time.perf_counter() - started, 1),
        "search_clips_per_s": round(trained / trained_s),
        "search_first": selected.board[0].trial,
        "search_best_of_n": round(selected.naive * 100, 2),
        "search_corrected": round(selected.nested.value * 100, 2),
        "search_finalists": len(selected.board),
    }


def false_winners(repetitions: int, *, trials: int = 40, clips: int = 1000) -> dict[str, Any]:
    """Simulated answers of equally good trials, and of one that is better: winners, bias and power."""
    figures: dict[str, Any] = {"winner_repetitions": repetitions}
    cases = (("null", 0.0, clips, trials), ("one_point", 0.01, 9395, 10), ("three_points", 0.03, 9395, 10))
    for name, advantage, count, others in cases:
        winners, right, naive, nested = 0, 0, [], []
        repeated = repetitions if not advantage else max(1, repetitions // 4)
        for seed in range(repeated):
            selected = simulated_search(seed, others, count, advantage)
            winners += selected.winner is not None
            right += selected.winner is not None and selected.winner.trial == "0"
            truth = 0.6 + advantage * (selected.board[0].trial == "0")
            chosen = [0.6 + advantage * (fold[0] == "0") for fold in selected.nested.chosen]
            naive.append(selected.naive - truth)
            nested.append(selected.nested.value - float(np.mean(chosen)))
        figures[f"{name}_declared"] = round(winners / repeated, 3)
        figures[f"{name}_found"] = round(right / repeated, 3)
        figures[f"{name}_naive_bias"] = round(float(np.mean(naive)) * 100, 2)
        figures[f"{name}_corrected_bias"] = round(float(np.mean(nested)) * 100, 2)
    return figures


def simulated_search(seed: int, trials: int, clips: int, advantage: float) -> Selected:
    """Answers that are right with probability 0.6, correlated over trials by the difficulty of the clip."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 2, clips)
    difficulty = random.choice([0.35, 0.85], clips)  # 0.6 on average
    folds = np.array_split(random.permutation(clips), 5)
    names = [str(number) for number in range(trials)]

    def answers(rows: np.ndarray) -> np.ndarray:
        chance = difficulty[rows] + advantage * (np.arange(trials) == 0)[:, None]
        right = random.random((trials, len(rows))) < chance
        return np.eye(2)[np.where(right, targets[rows], 1 - targets[rows])][:, None]

    parts = [Parts(np.arange(0), np.sort(folds[(k + 1) % 5]), np.sort(folds[k])) for k in range(5)]
    found = [FoldAnswers(names, part.inner, part.outer, answers(part.inner), answers(part.outer)) for part in parts]
    return select(
        found,
        names,
        targets,
        range(clips),
        "WAR",
        num_trials=trials,
        num_classes=2,
        top=3,
        seed=seed,
        resamples=300,
    )
