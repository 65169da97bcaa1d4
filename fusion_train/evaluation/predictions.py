"""Ask a run the questions of one set; each batch of answers is on the disk before the next batch is asked.

    samples -> samples without an answer -> share of this process -> answers -> SET.part-RANK.jsonl
    all answered -> SET.jsonl, sorted by clip id, published whole; the part files are deleted

After a kill, the same call asks the remaining questions, with any number of processes: each clip is answered exactly
once. Each row records its source: weights, features, hidden or removed parts, and the hash of the prompt. Rows of
another source are refused, never mixed. Several processes: see `processes`.
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
from fusion_train.evaluation.evaluate import answer, groups, prompt_hash, refuse_not_finite, row_of
from fusion_train.planning.scoring_batch import clips_at_once
from fusion_train.processes import this_process
from fusion_train.run_context import RunContext

PART = ".part-"
"""Between the name of a set and the rank of the process that writes the file."""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one set, and how they are asked."""

    context: RunContext
    samples: Sequence[Sample]
    references: Mapping[str, Any]
    """Clip id -> reference answer of the clip list."""
    path: Path
    how: Literal["choose", "generate"] = "choose"
    batch_size: int | None = None
    """Clips asked at once; None: as many as fit a GPU, see `planning.scoring_batch`."""
    wording: Mapping[str, Any] | None = None
    """`Wording.as_json`; None for a probe, which has no prompt."""
    by: Mapping[str, Any] = field(init=False)
    """Source of the answers, the same in every row of a file."""

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
        """Read the answers that exist already.

        Raises:
            DataError: answers of another source, answers to other questions, or two answers about one clip.
        """
        rows = read_lines(self.path)
        for part in self.parts():
            rows += read_lines(part, torn=True)
        self._refuse_other_answers(rows)
        return rows

    def parts(self) -> list[Path]:
        """Return the part files of all processes."""
        return sorted(self.path.parent.glob(f"{self.path.stem}{PART}*.jsonl"))

    def _refuse_other_answers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        samples = {sample.clip.id: sample for sample in self.samples}
        problems, seen = [], set()
        for row in rows:
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
    questions: QuestionSet,
    *,
    again: bool = False,
    advance: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Answer the questions that have no answer yet; return every row, sorted by clip id.

    Args:
        again: delete existing answers first.
        advance: called with the numbers of answers and questions of this process after every batch.
        stop: called after every batch; True stops the work.

    Raises:
        DataError: the file holds answers of another run.
        DivergedError: the scores of a clip are not finite; the answers of all other clips are kept.
        Interrupted: `stop` returned True; the same call continues.
        WriteError: another command writes the same file.
    """
    state = this_process()
    with sole_writer(beside(questions.path), questions.path) if state.is_main_process else nullcontext():
        return _ask(questions, again, advance, stop)


def _ask(
    questions: QuestionSet, again: bool, advance: Callable[[int, int], None], stop: Callable[[], bool]
) -> list[dict[str, Any]]:
    state = this_process()
    if again and state.is_main_process:
        for path in [questions.path, *questions.parts()]:
            path.unlink(missing_ok=True)
    state.wait_for_everyone()
    answered = {row["id"] for row in questions.rows()}
    state.wait_for_everyone()  # all processes must have read the files before any process writes
    remaining = [sample for sample in questions.samples if sample.clip.id not in answered]
    share = remaining[state.process_index :: state.num_processes]
    if share:
        _answer_share(questions, share, state.process_index, advance, stop)
    state.wait_for_everyone()
    rows = sorted(questions.rows(), key=lambda row: row["id"])
    state.wait_for_everyone()
    if state.is_main_process and (remaining or questions.parts()):
        parts = questions.parts()
        replace_bytes(questions.path, sealed_lines(rows))
        for part in parts:
            part.unlink()
    state.wait_for_everyone()
    return rows


def _answer_share(
    questions: QuestionSet,
    samples: Sequence[Sample],
    rank: int,
    advance: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> None:
    """Answer the samples of this process and append the answers to its part file."""
    context = questions.context
    was_training = context.model.training
    context.model.eval()
    at_once = questions.batch_size or clips_at_once(context.config, context.model, context.device)
    num_answered, not_finite = 0, []
    with AppendedLines(questions.path.with_suffix(f"{PART}{rank}.jsonl")) as lines:
        for group in groups(samples, at_once):
            answers = answer(context, group, generate=questions.how == "generate")
            pairs = list(zip(group, answers, strict=True))
            lines.append(_row(questions, sample, fields) for sample, fields in pairs if fields is not None)
            not_finite += [sample.clip.id for sample, fields in pairs if fields is None]
            num_answered += len(group)
            advance(num_answered, len(samples))
            if stop() and num_answered < len(samples):
                raise Interrupted(
                    f"{questions.path}: {num_answered} of {len(samples)} answered. Run the same command to go on."
                )
    context.model.train(was_training)
    refuse_not_finite(str(questions.path), not_finite, len(samples))


def _row(questions: QuestionSet, sample: Sample, answer_fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **row_of(sample),
        "reference": questions.references[sample.clip.id],
        **answer_fields,
        "by": dict(questions.by),
    }


def _differences(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """Return how the sources of two answers differ, one text per key.

    Rows of earlier releases have no `wording` and no `answer`; for them the hash of the prompt decides.
    """
    keys = expected if "wording" in got else expected.keys() - {"wording", "answer"}
    return [
        f"{key} is {got.get(key)!r}, here {expected[key]!r}"
        for key in expected
        if key in keys and expected[key] != got.get(key)
    ]
