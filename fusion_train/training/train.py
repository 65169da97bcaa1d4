"""The training loop, read top to bottom.

    sample stream -> feed (steps ahead, on a thread) -> forward, backward -> AdamW -> metrics, scoring, checkpoint

Published recipe: AdamW, fresh optimizer and schedule in stage 2; fp16 autocast with scaler; no clipping.
Samples and dropout are pure functions of (seed, step): a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from featurecache.interrupt import Interrupted, StopRequest
from featurecache.terminal import show_progress
from fusion_train import checkpoint
from fusion_train.config import Config
from fusion_train.data.loader import PrefetchingLoader
from fusion_train.data.pool import KeptClips
from fusion_train.errors import DivergedError
from fusion_train.models.parts import learning_parameters
from fusion_train.planning.cautions import cautions
from fusion_train.planning.memory_budget import advise, choose_budget, fitting
from fusion_train.planning.sizes import work_of
from fusion_train.run import Run, absolute
from fusion_train.run_context import RunContext, build_context
from fusion_train.training.averaging import Averaged
from fusion_train.training.clip_list_changes import check_lists
from fusion_train.training.devices import device_name, make_accelerator, peak_flops, place
from fusion_train.training.metrics_logger import MetricsLogger
from fusion_train.training.non_finite_steps import keep_for_replay
from fusion_train.training.optimizer import make_optimizer, set_learning_rates
from fusion_train.training.parallel import any_process
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
from fusion_train.training.step import over_processes, train_step
from fusion_train.training.step_metrics import Tally
from fusion_train.training.trackers import refuse_missing_tracker
from fusion_train.training.validation import Validation, summarise

SCORE_LATER = "Set data.eval_split=null, and score the run later: fusion-train eval --batch-size 1."


def train(
    config: Config,
    *,
    store: str,
    clips: str,
    run: Run,
    initial: Run | None = None,
    say: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
    clips_changed: bool = False,
    per_half: bool = False,
) -> dict[str, Any]:
    """Train a run, or resume it where it was; a finished run is checked and returned as it is.

    Args:
        store, clips: the feature store and the clip list.
        run: folder to train in.
        initial: start from this run's best trained weights.
        stop: asked after every step whether to save and stop there.
        clips_changed: go on with a clip list that changed since the run began, and record that.
        per_half: keep also the weights that are best on each half of the held-out clips; a run remembers it.

    Returns:
        The final scores and timings, as written to `finished.json`.

    Raises:
        ConfigError, DataError, StoreError, ModelError: before anything is written.
        CheckpointError: the folder holds a run of another configuration, or damaged files.
        WriteError: another process is training this run.
        DivergedError: the loss is not finite, and the step is kept for `fusion-train replay`; or a score is not.
        DeviceMemoryError: a step does not fit into the device's memory.
        Interrupted: SIGINT, SIGTERM, SIGHUP or `stop`; the run resumes from here.
    """
    refuse_other_configuration(run, config)
    if run.exists and run.finished:
        for folder in checkpoint.published(run.checkpoints):
            checkpoint.verify(folder)
        say(f"{run.folder}: already finished at step {run.result['step']}")
        return run.result
    refuse_missing_tracker(config.log)
    accelerator = make_accelerator(config.optim)
    with run.writing() if accelerator.is_main_process else nullcontext():
        return _train(config, accelerator, store, clips, run, initial, say, stop, clips_changed, per_half)


def _train(
    config: Config,
    accelerator: Accelerator,
    store: str,
    clips: str,
    run: Run,
    initial: Run | None,
    say: Callable[[str], None],
    stop: Callable[[], bool],
    clips_changed: bool,
    per_half: bool,
) -> dict[str, Any]:
    leads = accelerator.is_main_process
    if not leads:
        say = _nothing
    known = run.record() if run.exists else None
    refuse_other_draws(run, known)
    context = build_context(
        config,
        store,
        clips,
        fingerprints=known.fingerprints if known else None,
        sets=known.label_sets if known else None,
    )
    changed = check_lists(run, known, context, accept=clips_changed, say=say) if known else None
    halves = halves_of(run, context, changed or known, per_half)
    stream = make_stream(context, say, kept=run.pool if known and not changed else None)
    budget = choose_budget(config, context.model, accelerator.device)
    loader = PrefetchingLoader(
        config,
        stream,
        context.collator,
        num_processes=accelerator.num_processes,
        process=accelerator.process_index,
        budget=budget.tokens,
    )
    scored = config.data.eval_split is not None
    fresh = not isinstance(stream.pool.clips, KeptClips)  # a run that goes on has kept what it found of its clips
    validation = Validation(context, halves) if scored and fresh else None

    if known is not None and known.initial is not None:
        initial = Run(absolute(known.initial["run"], run.folder))
    loaded = start_from(initial, run, context.model, known) if initial else None
    summary = summarise(context, stream, validation) if fresh else stream.pool.summary
    if leads:
        refuse_other_pool(run, changed or known, stream.pool)
        if fresh:
            keep_pool(stream, run.pool, validation.split if validation else (), summary, anew=True)
        record = changed or known or make_record(context, store, clips, run, loaded, halves)
        if known is None:
            run.create(config, replace(record, pool_sha256=stream.pool.sha256))
        elif changed is not None:
            run.keep(replace(record, pool_sha256=stream.pool.sha256))
    place(context.model, config, accelerator, budget)
    optimizer = accelerator.prepare(make_optimizer(context.model, config.optim))
    averaged = Averaged(context.model, config.optim.ema_decay) if config.optim.ema_decay else None
    start = resume(run, context.model, optimizer, averaged, accelerator, known)
    scored_clips = {"num_scored": len(validation.split)} if validation else {}
    warned = cautions(config, num_clips=len(stream), on_cpu=accelerator.device.type == "cpu", **scored_clips)
    for line in (*summary, *(warned if known is None else ())):
        say(line)
    say(
        f"{run.folder}: {'resuming at' if start else 'training'} step {start} of {config.optim.steps}, "
        f"{len(stream)} clips an epoch, {sum(p.numel() for p in learning_parameters(context.model).values()):,} "
        f"trained parameters, {_base(config)}, on {device_name(accelerator)}"
    )

    steps = loader.steps(start, config.optim.steps)
    tally = Tally(work_of(context.model))
    logger = MetricsLogger(
        run.folder,
        start,
        config.log,
        enabled=leads,
        peak_flops=peak_flops(accelerator, config),
        about=config.model_dump(mode="json"),
    )
    done, began = start, time.perf_counter()
    shown = show_progress(config.stage, "steps", already=start, shown=leads)
    with StopRequest(stop) as request, logger, shown as progress:
        waiting_since = time.perf_counter()
        for step, batches in enumerate(steps if not logger.stalled() else (), start=start):
            logger.waited(time.perf_counter() - waiting_since)
            rates = set_learning_rates(optimizer, step, config.optim)
            longest = max(batch.num_tokens for batch in batches)
            less = partial(advise, config, context.model, longest, checkpointing=budget.checkpointing)
            try:
                with fitting(f"step {step}, a row of {longest} tokens", less):
                    loss, norms = train_step(context.model, optimizer, batches, tally, accelerator, config, step)
            except DivergedError as error:
                if leads:
                    keep_for_replay(run, context, step, list(error.problems))
                    say(f"step {step} is kept: fusion-train replay {run.folder} asks sample by sample")
                raise
            if averaged is not None:
                averaged.update(step)
            done = step + 1
            if logger.due(done):
                logger.step(done, over_processes(tally.take()), rates, norms)
            progress(done, config.optim.steps, f"loss {loss:.4f}, lr {max(rates.values()):.1e}")
            last, paused_since = done == config.optim.steps, time.perf_counter()
            if scored and (last or done % config.log.eval_every == 0):
                validation = validation or Validation(context, halves)
                scores = _score(validation, run, context, optimizer, averaged, accelerator, done)
                logger.scores(done, scores)
                say(f"step {done}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
                if logger.stalled() and not last:
                    last = True
                    say(
                        f"step {done}: no better accuracy (or loss, without one) in {config.log.patience} scorings; "
                        "training ends, and the best weights are kept"
                    )
            stopping = any_process(accelerator, request.requested)
            if (last or done % config.checkpoint.every == 0 or stopping or done in logger.chosen_steps()) and leads:
                save_checkpoint(
                    run,
                    context,
                    optimizer,
                    averaged,
                    accelerator,
                    done,
                    logger.score_at(done),
                    logger.half_scores_at(done) if halves else (),
                )
            if stopping and not last:
                raise Interrupted(
                    f"{run.folder}: stopped after step {done}. Go on with: fusion-train resume {run.folder}"
                )
            if last:
                break
            waiting_since = time.perf_counter()
            logger.paused(waiting_since - paused_since)
        never_scored = start == config.optim.steps and not logger.scores_at(start)  # the last scoring failed
        if scored and never_scored:
            logger.scores(
                start, _score(Validation(context, halves), run, context, optimizer, averaged, accelerator, start)
            )

    result = {"step": done, "scores": logger.scores_at(done), "seconds": round(time.perf_counter() - began, 3)}
    if leads:
        run.finish(result)
    accelerator.wait_for_everyone()  # see processes.leave_at_exit
    return result


def _score(
    validation: Validation,
    run: Run,
    context: RunContext,
    optimizer: Any,
    averaged: Averaged | None,
    accelerator: Accelerator,
    done: int,
) -> dict[str, float]:
    """Score the weights, or their average; sound weights that give no sound score are kept in a checkpoint.

    Raises:
        DivergedError: a score that is NaN or infinite; the clips are named.
    """
    averages = averaged.in_place() if averaged is not None else nullcontext()
    try:
        with averages, fitting(f"scoring after step {done}", lambda: SCORE_LATER):
            return validation.score()
    except DivergedError:
        sound = all(bool(p.isfinite().all()) for p in learning_parameters(context.model).values())
        if sound and accelerator.is_main_process and not checkpoint.step_folder(run.checkpoints, done).exists():
            save_checkpoint(run, context, optimizer, averaged, accelerator, done, None)
        raise


def _base(config: Config) -> str:
    """The frozen language model, without the folder that it lies in."""
    llm = config.model.llm
    return "no language model" if llm is None else f"language model {Path(llm).name if Path(llm).exists() else llm}"


def _nothing(text: str) -> None:
    """What a process says that others speak for."""
