"""Ask a run the questions of a set; every batch of answers is on the disk before the next one is asked.

    samples -> those not answered yet -> this process's share -> answers -> SET.part-RANK.jsonl
    all done -> SET.jsonl, sorted by clip, published whole; the parts go

Killed at any instant, the same call asks what is left, with any number of processes: a clip is answered exactly once.
Each row says who answered: weights, features, what was hidden or taken out, the prompt's hash. Rows by another are
refused, never mixed. Several processes: see `processes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from featurecache.errors import suggest
from featurecache.files.lease import beside, sole_writer
from featurecache.files.publish import replace_bytes
from featurecache.interrupt import Interrupted
from fusion_train.data.samples import Sample
from fusion_train.errors import DataError
from fusion_train.evaluation.append_only import AppendedLines, read_lines, sealed_lines
from fusion_train.evaluation.evaluate import EVAL_BATCH_SIZE, answer, groups, prompt_hash, refuse_not_finite, row_of
from fusion_train.processes import this_process
from fusion_train.run_context import RunContext

PART = ".part-"


@dataclass(frozen=True)
class Asking:
    """How the questions of one set are asked."""

    context: RunContext
    samples: Sequence[Sample]
    references: Mapping[str, Any]
    """Clip id -> what the answer is scored against, as the clip list has it."""
    path: Path
    how: Literal["choose", "generate"] = "choose"
    batch_size: int = EVAL_BATCH_SIZE
    wording: Mapping[str, Any] | None = None
    """`Wording.by`: whose wording is asked; None for a probe, which is asked in no words."""
    by: Mapping[str, Any] = field(init=False)
    """Who answers; equal in every row of a file."""

    def __post_init__(self) -> None:
        by = {
            "model": self.context.weights,
            "features": self.context.reader.fingerprints,
            "ablated": dict(getattr(self.context.model, "ablated", {})),
            "answer": self.how,
            "wording": self.wording,
        }
        object.__setattr__(self, "by", by)

    def rows(self) -> list[dict[str, Any]]:
        """What is answered already, by clip.

        Raises:
            DataError: answers by another run, to other questions, or two to one clip.
        """
        found = read_lines(self.path)
        for part in self.parts():
            found += read_lines(part, torn=True)
        self._refuse_others(found)
        return found

    def parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}{PART}*.jsonl"))

    def _refuse_others(self, found: Sequence[Mapping[str, Any]]) -> None:
        samples = {sample.clip.id: sample for sample in self.samples}
        problems, seen = [], set()
        for row in found:
            clip_id = str(row.get("id"))
            sample = samples.get(clip_id)
            if clip_id in seen:
                problems.append(f"{clip_id}: answered twice")
            elif sample is None:
                problems.append(f"{clip_id}: not asked.{suggest(clip_id, samples)}")
            elif differing := _differences(self.by, row.get("by") or {}):
                problems += [f"{clip_id}: {text}" for text in differing]
            elif row.get("prompt_sha256") != prompt_hash(self.context, sample):
                problems.append(f"{clip_id}: another prompt")
            seen.add(clip_id)
        if problems:
            raise DataError(
                str(self.path),
                expected="answers by this run to these questions",
                got=f"{len(problems)} others",
                next_step="Write elsewhere with --out, or leave them behind with --again.",
                problems=problems,
            )


def ask(
    asking: Asking,
    *,
    again: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Answer what is not answered yet; returns every row, sorted by clip.

    Args:
        again: forget answers there are.
        advance: told answers and questions of this process; `stop` is asked after every batch.

    Raises:
        DataError: answers by another run lie there.
        DivergedError: what the model gives for a clip is not finite; the answers of all other clips are kept.
        Interrupted: `stop` said so; the same call goes on from there.
        WriteError: another command is asking for the same file.
    """
    state = this_process()
    with sole_writer(beside(asking.path), asking.path) if state.is_main_process else nullcontext():
        return _ask(asking, again, advance, stop)


def _ask(
    asking: Asking, again: bool, advance: Callable[[int, int], None], stop: Callable[[], bool]
) -> list[dict[str, Any]]:
    state = this_process()
    if again and state.is_main_process:
        for path in [asking.path, *asking.parts()]:
            path.unlink(missing_ok=True)
    state.wait_for_everyone()
    done = {row["id"] for row in asking.rows()}
    state.wait_for_everyone()  # everyone has read before anyone writes
    left = [sample for sample in asking.samples if sample.clip.id not in done]
    mine = left[state.process_index :: state.num_processes]
    if mine:
        _answer_all(asking, mine, state.process_index, advance, stop)
    state.wait_for_everyone()
    rows = sorted(asking.rows(), key=lambda row: row["id"])
    state.wait_for_everyone()
    if state.is_main_process and (left or asking.parts()):
        parts = asking.parts()
        replace_bytes(asking.path, sealed_lines(rows))
        for part in parts:
            part.unlink()
    state.wait_for_everyone()
    return rows


def _answer_all(
    asking: Asking,
    samples: Sequence[Sample],
    rank: int,
    advance: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> None:
    was_training = asking.context.model.training
    asking.context.model.eval()
    answered, not_finite = 0, []
    with AppendedLines(asking.path.with_suffix(f"{PART}{rank}.jsonl")) as lines:
        for group in groups(samples, asking.batch_size):
            pairs = list(zip(group, answer(asking.context, group, generate=asking.how == "generate"), strict=True))
            lines.append(_row(asking, sample, row) for sample, row in pairs if row is not None)
            not_finite += [sample.clip.id for sample, row in pairs if row is None]
            answered += len(group)
            advance(answered, len(samples))
            if stop() and answered < len(samples):
                raise Interrupted(
                    f"{asking.path}: {answered} of {len(samples)} answered. Run the same command to go on."
                )
    asking.context.model.train(was_training)
    refuse_not_finite(str(asking.path), not_finite, len(samples))


def _row(asking: Asking, sample: Sample, answered: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row_of(sample),
        "reference": asking.references[sample.clip.id],
        **answered,
        "by": dict(asking.by),
    }


def _differences(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Who else answered. Rows of an earlier release do not say how they were asked: the hash of the prompt does."""
    keys = mine if "wording" in theirs else mine.keys() - {"wording", "answer"}
    return [
        f"{key} is {theirs.get(key)!r}, here {mine[key]!r}"
        for key in mine
        if key in keys and mine[key] != theirs.get(key)
    ]
