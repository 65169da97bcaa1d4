"""Train several trials in step on one frozen base: each equals the run that it would be alone.

    batch -> every member's fusion -> base on all rows, LoRA per member -> losses, summed -> each member's own AdamW

A member has its run folder, optimizer, gradient scaler, clipping, schedule, moving average, dropout stream, journal,
checkpoints and early exit; they are written by the functions that write those of a run trained alone, so that `eval`,
`resume` and `export` know no difference. A member resumed at a later step joins when the others reach it. One that
diverges leaves; the others go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from featurecache.errors import FingerprintError
from featurecache.interrupt import Interrupted, StopRequest
from featurecache.terminal import show_progress
from fusion_train.config import Config
from fusion_train.data.batches import Batch
from fusion_train.data.halves import Halves
from fusion_train.data.loader import PrefetchingLoader
from fusion_train.errors import DivergedError, FusionTrainError
from fusion_train.llm.loading import build_model, load_llm
from fusion_train.models.emotion_llama import ModelOutput
from fusion_train.models.model_group import ModelGroup, evaluating, shared_copy
from fusion_train.planning.memory_budget import Budget, choose_budget
from fusion_train.planning.sizes import work_of
from fusion_train.processes import this_process
from fusion_train.run import Run, absolute
from fusion_train.run_context import RunContext, build_context
from fusion_train.seeding import derive
from fusion_train.sweeps.group_scoring import Scored, score_together
from fusion_train.training.averaging import Averaged
from fusion_train.training.clip_list_changes import check_lists
from fusion_train.training.devices import make_accelerator, peak_flops, place
from fusion_train.training.loss import LOSS_PER, loss_of, total_of
from fusion_train.training.metrics_logger import MetricsLogger
from fusion_train.training.non_finite_steps import keep_for_replay
from fusion_train.training.optimizer import gradient_norms, make_optimizer, set_learning_rates
from fusion_train.training.resume import (
    halves_of,
    make_record,
    refuse_other_configuration,
    refuse_other_draws,
    refuse_other_pool,
    resume,
    save_checkpoint,
    start_from,
)
from fusion_train.training.sample_stream import keep_pool, make_stream
from fusion_train.training.step_metrics import Tally
from fusion_train.training.validation import Validation, summarise


class SharedBase:
    """Language models by name and dtype, loaded once; the last one is kept."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._llm: nn.Module | None = None

    def plain(self, name: str, dtype: str) -> nn.Module:
        """The model itself, without adapters, on this process's device."""
        if self._key != (name, dtype) or self._llm is None:
            self._llm = None  # before the next one is loaded
            self._llm, self._key = load_llm(name, dtype).to(this_process().device), (name, dtype)
        return self._llm

    def copy(self, name: str, dtype: str) -> nn.Module:
        """Modules of one's own over the same weights."""
        return shared_copy(self.plain(name, dtype))


@dataclass(frozen=True)
class Asked:
    """A run to train in company."""

    config: Config
    run: Run
    initial: Run | None = None
    per_half: bool = False
    """Keep also the weights that are best on each half of the held-out clips."""


@dataclass
class Member:
    """One trial in training."""

    asked: Asked
    context: RunContext
    accelerator: Any
    optimizer: Any
    averaged: Averaged | None
    start: int
    logger: MetricsLogger
    tally: Tally
    halves: Halves = ()
    """Of its held-out clips, where it keeps the weights that each half chooses."""
    done: int = 0
    seconds: float = 0.0
    """Its share of the company's time."""
    finished: bool = False
    scored: dict[int, Scored] = field(default_factory=dict)
    """Step -> what it answered there, of the scorings in this process whose weights may be scored at the end."""
    error: FusionTrainError | None = None
    rates: dict[str, float] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    loss: Any = field(default=None, repr=False)

    @property
    def config(self) -> Config:
        return self.asked.config


def train_together(
    asked: Sequence[Asked],
    *,
    store: str,
    clips: str,
    base: SharedBase,
    until: int | None = None,
    say: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
    clips_changed: bool = False,
) -> list[Member]:
    """Train runs that take the same batches, to their end or to step `until`; each is checkpointed and scored there.

    Args:
        clips_changed: go on with a clip list that changed since a run began, and record that.

    Returns:
        The members in the order asked; one that diverged has its `error`.

    Raises:
        FeatureCacheError: settings, data or checkpoints that do not serve, before any of them is trained on.
        Interrupted: SIGINT, SIGTERM, SIGHUP or `stop` said so; all members are saved and resume from there.
    """
    for each in asked:
        refuse_other_configuration(each.run, each.config)
        refuse_other_draws(each.run, each.run.record() if each.run.exists else None)
    contexts = contexts_of(asked, [None] * len(asked), store=store, clips=clips, base=base)
    first = contexts[0]
    llm = base.plain(first.config.model.llm or "", first.config.model.llm_dtype)
    budget = choose_budget(first.config, first.model, next(llm.parameters()).device)
    # Recomputed activations would draw their dropout again from whoever's turn it is.
    group = ModelGroup(llm, [context.model for context in contexts], stacked=False if budget.checkpointing else None)
    changed = [
        check_lists(each.run, each.run.record(), first, accept=clips_changed, say=say) if each.run.exists else None
        for each in asked
    ]
    kept = asked[0].run.pool if asked[0].run.exists and not any(changed) else None
    stream = make_stream(first, say, kept=kept)
    rows = budget.tokens // len(contexts) if group.stacked else budget.tokens
    loader = PrefetchingLoader(first.config, stream, first.collator, num_processes=1, process=0, budget=max(rows, 1))
    halves = [
        halves_of(each.run, first, record or (each.run.record() if each.run.exists else None), each.per_half)
        for each, record in zip(asked, changed, strict=True)
    ]
    validation = Validation(first) if first.config.data.eval_split is not None else None
    summary = summarise(first, stream, validation)
    with ExitStack() as open_loggers:
        for each, record in zip(asked, changed, strict=True):
            open_loggers.enter_context(each.run.writing())
            refuse_other_pool(each.run, record or (each.run.record() if each.run.exists else None), stream.pool)
            anew = record is not None or not each.run.exists
            keep_pool(stream, each.run.pool, validation.split if validation else (), summary, anew=anew)
            if record is not None:
                each.run.keep(replace(record, pool_sha256=stream.pool.sha256))
        members = [
            _join(each, context, store, clips, budget, stream.pool.sha256, of, open_loggers)
            for each, context, of in zip(asked, contexts, halves, strict=True)
        ]
        for line in summary:
            say(line)
        ends = [min(member.config.optim.steps, until or member.config.optim.steps) for member in members]
        start, end = min(member.start for member in members), max(ends)
        say(f"{len(members)} together from step {start} to {end}: {', '.join(each.run.name for each in asked)}")
        with StopRequest(stop) as request, show_progress("sweep", "steps", already=start) as progress:
            began = time.perf_counter()
            for step, step_batches in enumerate(loader.steps(start, end), start=start):
                here = [n for n, member in enumerate(members) if _takes_part(member, step, ends[n])]
                stopping = False
                if here:
                    group.keep(here)
                    present = [members[n] for n in here]
                    for member in present:
                        member.logger.waited(time.perf_counter() - began)
                    _step(group, here, members, step_batches, step)
                    _share(present, time.perf_counter() - began)
                    mean = sum(float(member.loss) for member in present) / len(present)
                    progress(step + 1, end, f"{len(present)} together, mean loss {mean:.4f}")
                    stopping = request.requested
                    _after(group, validation, members, here, ends, step + 1, stopping, say)
                if stopping and any(not m.finished and m.error is None for m in members):
                    raise Interrupted(f"stopped after step {step + 1}. Go on with the same command.")
                began = time.perf_counter()
        for member in members:  # killed between its last checkpoint and its end
            if (
                member.error is None
                and not member.finished
                and (member.done == member.config.optim.steps or member.logger.stalled())
            ):
                _finish(member)
    return members


def contexts_of(
    asked: Sequence[Asked], known: Sequence[RunContext | None], *, store: str, clips: str, base: SharedBase
) -> list[RunContext]:
    """A workbench for each of some runs that take the same batches; all but the model is shared.

    Args:
        known: those that there are already.
    """
    first = next((context for context in known if context is not None), None)
    found = []
    for each, context in zip(asked, known, strict=True):
        made = context or (_beside(first, each, base) if first else _bench(each, store, clips, base))
        first = first or made
        found.append(made)
    return found


def _bench(asked: Asked, store: str, clips: str, base: SharedBase) -> RunContext:
    known = asked.run.record() if asked.run.exists else None
    return build_context(
        asked.config,
        store,
        clips,
        fingerprints=known.fingerprints if known else None,
        sets=known.label_sets if known else None,
        load=base.copy,
    )


def _beside(first: RunContext, asked: Asked, base: SharedBase) -> RunContext:
    """The workbench of another member: a model of its own, everything else the first one's."""
    if asked.run.exists and dict(asked.run.record().fingerprints) != first.reader.fingerprints:
        raise FingerprintError(
            str(asked.run.folder),
            expected="the features that the run was trained on",
            got="others",
            next_step="Name the store it was trained from with --store, or delete the run.",
        )
    config = asked.config
    llm = base.copy(config.model.llm or "", config.model.llm_dtype)
    return replace(first, config=config, model=build_model(config, llm, first.reader.shapes))


def _join(
    asked: Asked,
    context: RunContext,
    store: str,
    clips: str,
    budget: Budget,
    pool_sha256: str,
    halves: Halves,
    loggers: ExitStack,
) -> Member:
    run, config = asked.run, asked.config
    accelerator = make_accelerator(config.optim)
    known = run.record() if run.exists else None
    initial = asked.initial
    if known is not None and known.initial is not None:
        initial = Run(absolute(known.initial["run"], run.folder))
    loaded = start_from(initial, run, context.model, known) if initial else None
    if known is None:
        run.create(config, replace(make_record(context, store, clips, run, loaded, halves), pool_sha256=pool_sha256))
    place(context.model, config, accelerator, budget)
    optimizer = accelerator.prepare(make_optimizer(context.model, config.optim))
    averaged = Averaged(context.model, config.optim.ema_decay) if config.optim.ema_decay else None
    start = resume(run, context.model, optimizer, averaged, accelerator, known)
    logger = MetricsLogger(
        run.folder,
        start,
        config.log,
        enabled=True,
        peak_flops=peak_flops(accelerator, config),
        about=config.model_dump(mode="json"),
    )
    loggers.enter_context(logger)
    return Member(
        asked, context, accelerator, optimizer, averaged, start, logger, Tally(work_of(context.model)), halves, start
    )


def _takes_part(member: Member, step: int, end: int) -> bool:
    return member.error is None and not member.finished and member.start <= step < end


def _step(group: ModelGroup, here: Sequence[int], members: Sequence[Member], batches: list[Batch], step: int) -> None:
    """One optimizer step of every member that is here."""
    present = [members[n] for n in here]
    device = present[0].context.device
    for n, member in zip(here, present, strict=True):
        member.rates = set_learning_rates(member.optimizer, step, member.config.optim)
        group.streams[n].seed(derive(member.config.seed, "dropout", step, 0))
        member.loss = torch.zeros((), device=device)

    totals = {per: sum(total_of(batch, per) for batch in batches) for per in LOSS_PER}
    for batch in batches:

        def weigh(n: int, output: ModelOutput, batch: Batch = batch) -> torch.Tensor:
            scaler, per = members[n].accelerator.scaler, members[n].config.optim.loss_per
            loss = loss_of(output, batch, per) * (1 / totals[per])
            return loss if scaler is None else scaler.scale(loss)

        with present[0].accelerator.autocast():
            outputs = group.learn(batch.to(device).tensors(), weigh)
        for member, output in zip(present, outputs, strict=True):
            member.tally.count(batch.asked, output.sample_losses)
            per = member.config.optim.loss_per
            member.loss += loss_of(output, batch, per) / totals[per]
    for member in present:
        error = _apply(member, step)
        if error is not None:
            clip_ids = [clip for batch in batches for clip in batch.clip_ids]
            keep_for_replay(member.asked.run, member.context, step, clip_ids)
            member.error = error
        member.done = step + 1
        member.optimizer.zero_grad(set_to_none=True)


def _apply(member: Member, step: int) -> DivergedError | None:
    """Clip, step and average, unless loss or gradient is not finite."""
    problem = ("loss", float(member.loss))
    if math.isfinite(problem[1]):
        member.accelerator.unscale_gradients(member.optimizer)
        member.norms = gradient_norms(member.context.model, member.config.optim.max_grad_norm)
        problem = ("gradient", member.norms["all"])
        if math.isfinite(problem[1]) or member.accelerator.scaler is not None:  # a scaler skips such steps
            member.optimizer.step()
            if member.averaged is not None:
                member.averaged.update(step)
            return None
    return DivergedError(
        f"{member.asked.run.folder}, step {step}",
        expected=f"a finite {problem[0]}",
        got=str(problem[1]),
        next_step="Lower optim.lr or set optim.precision=bf16; "
        f"fusion-train replay {member.asked.run.folder} asks sample by sample.",
    )


def _after(
    group: ModelGroup,
    validation: Validation | None,
    members: Sequence[Member],
    here: Sequence[int],
    ends: Sequence[int],
    done: int,
    stopping: bool,
    say: Callable[[str], None],
) -> None:
    """Lines of the journals, scores, checkpoints; who is done leaves."""
    sound = [n for n in here if members[n].error is None]
    for member in (members[n] for n in sound):
        if member.logger.due(done):
            member.logger.step(done, member.tally.take(), member.rates, member.norms)
    paused_since = time.perf_counter()
    asking = [n for n in sound if done == ends[n] or done % members[n].config.log.eval_every == 0]
    if validation and asking:
        group.keep(asking)
        chosen = [members[n] for n in asking]
        with _averages(chosen), evaluating(group):
            found = score_together(
                validation, group, [member.context.model for member in chosen], [member.halves for member in chosen]
            )
        for member, scored in zip(chosen, found, strict=True):
            member.logger.scores(done, scored.scores)
            chosen_steps = member.logger.chosen_steps()
            member.scored = {at: each for at, each in member.scored.items() if at in chosen_steps} | {done: scored}
            said = ", ".join(f"{name} {value:.3f}" for name, value in scored.scores.items())
            say(f"step {done}: {member.asked.run.name}: {said}")
    for n in sound:
        member = members[n]
        complete = done == member.config.optim.steps or member.logger.stalled()
        due = done % member.config.checkpoint.every == 0 or done in member.logger.chosen_steps()
        if complete or done == ends[n] or due or stopping:
            half_scores = member.logger.half_scores_at(done) if member.halves else ()
            save_checkpoint(
                member.asked.run,
                member.context,
                member.optimizer,
                member.averaged,
                member.accelerator,
                done,
                member.logger.score_at(done),
                half_scores,
            )
        if complete:
            _finish(member)
    passed = time.perf_counter() - paused_since
    for n in here:
        members[n].logger.paused(passed)
    _share([members[n] for n in here], passed)


def _finish(member: Member) -> None:
    member.finished = True
    scores = member.logger.scores_at(member.done)
    member.asked.run.finish({"step": member.done, "scores": scores, "seconds": round(member.seconds, 3)})


def _share(present: Sequence[Member], seconds: float) -> None:
    for member in present:
        member.seconds += seconds / len(present)


@contextmanager
def _averages(members: Sequence[Member]) -> Iterator[None]:
    """Put every member's moving average in the place of its parameters."""
    with ExitStack() as stack:
        for member in members:
            if member.averaged is not None:
                stack.enter_context(member.averaged.in_place())
        yield
