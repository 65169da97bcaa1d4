"""Scores on the held-out split while training: loss a token, and the accuracy of every task with one label.

The same questions are asked every time: one a clip, drawn as in training, with nothing hidden beyond the task. Where
the split is large, `data.eval_clips` of its clips are asked, always the same ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from featurecache.clips import ClipList
from fusion_train.assemble import Workbench
from fusion_train.data.prompts import encode_answer
from fusion_train.data.samples import AnswerLimits, SampleStream
from fusion_train.evaluation.evaluate import EVAL_BATCH_SIZE, closed_tasks, evaluate
from fusion_train.seeding import generator


class HeldOut:
    """The held-out clips of a run."""

    def __init__(self, bench: Workbench) -> None:
        """Choose them.

        Raises:
            ClipListError, MissingFeatureError: no such split, or clips without features.
        """
        data, seed = bench.config.data, bench.config.seed
        clips = bench.clips.in_split(data.eval_split or "")
        if data.eval_clips is not None and data.eval_clips < len(clips):
            chosen = generator(seed, "held-out clips").permutation(len(clips))[: data.eval_clips]
            clips = ClipList([clips[int(place)] for place in sorted(chosen)])
        self.bench, self.clips = bench, bench.reader.usable(clips, data.failed_clips)
        self.tasks = closed_tasks(bench, self.clips)
        self._stream = SampleStream(
            self.clips,
            data.tasks,
            bench.label_sets,
            seed=seed,
            modalities=bench.reader.modalities,
            limits=AnswerLimits(
                data.max_answer_tokens, data.max_answer_words, lambda text: len(encode_answer(bench.tokenizer, text))
            ),
        )

    def score(self) -> dict[str, float]:
        """`accuracy/TASK` of every closed task, and `eval_loss`."""
        # Answering from cached keys would be a graph a layer, and there are few questions.
        compiled = self.bench.config.optim.compile
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            scores = {f"accuracy/{task}": self._accuracy(task) for task in self.tasks}
            return scores | {"eval_loss": self._loss()}

    def batches(self) -> Iterator[Any]:
        """The questions whose loss is taken, one a clip."""
        for start in range(0, len(self._stream), EVAL_BATCH_SIZE):
            indices = range(start, min(start + EVAL_BATCH_SIZE, len(self._stream)))
            yield self.bench.collator([self._stream.draw(index) for index in indices])

    def _accuracy(self, task: str) -> float:
        return float(evaluate(self.bench, self.clips, task).summary()["accuracy"])

    @torch.no_grad()
    def _loss(self) -> float:
        model, device = self.bench.model, self.bench.device
        was_training = model.training
        model.eval()
        total, tokens = 0.0, 0
        for batch in self.batches():
            total += float(model(**batch.to(device).tensors()).loss_sum)
            tokens += batch.num_supervised
        model.train(was_training)
        return total / tokens


def overall(scores: dict[str, float]) -> float | None:
    """What picks the best checkpoint: mean accuracy, or the negative loss where no task has one label a clip."""
    accuracies = [value for name, value in scores.items() if name.startswith("accuracy/")]
    if accuracies:
        return sum(accuracies) / len(accuracies)
    return -scores["eval_loss"] if "eval_loss" in scores else None
