"""The training loop, for one run or for several runs that share a frozen base.

    sample stream -> loader (steps ahead, on a thread) -> forward, backward -> AdamW -> metrics, scores, checkpoint

Several runs take the same batches and differ in what is trained: fusion, LoRA, learning rates, steps. Each equals the
run that it would be alone. One that diverges leaves, and the others go on; one that was resumed at a later step joins
when the others reach it.

Published recipe: AdamW, fresh optimizer and schedule in stage 2; fp16 autocast with scaler; no clipping.
Samples and dropout are pure functions of (seed, step): a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from featurecache.interrupt import Interrupted, StopRequest
from featurecache.terminal import show_progress
from fusion_train import checkpoint
from fusion_train.config import Config
from fusion_train.data.batches import Batch
from fusion_train.data.loader import PrefetchingLoader, TokenBudget
from fusion_train.data.pool import Pool, StoredClips
from fusion_train.errors import DivergedError
from fusion_train.models.fused_layers import fuse_layers
from fusion_train.models.kernels import compiles
from fusion_train.models.model_group import ModelGroup, OneModel
from fusion_train.models.parts import learning_parameters
from fusion_train.planning.cautions import cautions
from fusion_train.planning.memory_budget import advise, choose_budget, fitting
from fusion_train.remote.exportability import export_notices
from fusion_train.run import Run, RunRecord
from fusion_train.run_context import RunContext
from fusion_train.training.callbacks import refuse_other_callbacks
from fusion_train.training.devices import (
    device_name,
    make_accelerator,
    refusing_other_kernels,
    use_deterministic_kernels,
)
from fusion_train.training.non_finite_steps import keep_for_replay
from fusion_train.training.opening import Opening
from fusion_train.training.parallel import any_process
from fusion_train.training.resume import (
    refuse_other_configuration,
    refuse_other_draws,
    refuse_other_pool,
)
from fusion_train.training.sample_stream import make_stream
from fusion_train.training.shared_base import RunRequest, SharedBase, open_contexts
from fusion_train.training.step import diverged, train_step
from fusion_train.training.trackers import refuse_missing_tracker
from fusion_train.training.training_run import Callback, TrainingRun
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
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Train a run, or resume it where it was; a finished run is checked and its result returned.

    Args:
        store, clips: the feature store and the clip list.
        run: folder to train in.
        initial: start from this run's best trained weights.
        stop: called after every step; True saves and stops there.
        clips_changed: go on with a clip list that changed since the run began, and record the change.
        per_half: also keep the weights that are best on each half of the held-out clips; a run remembers this.
        callbacks: the user's own code; see `callbacks`.

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
    request = RunRequest(config, run, initial, per_half)
    (trained,) = train_runs(
        [request],
        store=store,
        clips=clips,
        say=say,
        stop=stop,
        clips_changed=clips_changed,
        callbacks=callbacks,
    )
    if trained.error is not None:
        raise trained.error
    return trained.result


def train_runs(
    requests: Sequence[RunRequest],
    *,
    store: str,
    clips: str,
    base: SharedBase | None = None,
    until: int | None = None,
    say: Callable[[str], None] = print,
    stop: Callable[[], bool] = lambda: False,
    clips_changed: bool = False,
    callbacks: Sequence[Callback] = (),
) -> list[TrainingRun]:
    """Train runs that take the same batches, to their ends or to step `until`; each is scored and saved there.

    Args:
        base: the frozen language model that several runs share; None for a single run.
        until: step after which the runs pause; None trains them to their ends.

    Returns:
        The runs, in the order of the requests; one that diverged has its `error`.

    Raises:
        FeatureCacheError: unusable settings, data or checkpoints, before any run trains; else as `train`.
    """
    for request in requests:
        refuse_other_configuration(request.run, request.config)
        refuse_missing_tracker(request.config.log)
    if any(request.config.optim.deterministic for request in requests):
        use_deterministic_kernels()
    accelerators = [make_accelerator(request.config.optim) for request in requests]
    with ExitStack() as stack:
        if accelerators[0].is_main_process:
            for request in requests:
                stack.enter_context(request.run.writing())
        else:
            say = _say_nothing
        trainer = Trainer(
            requests,
            accelerators,
            store,
            clips,
            stack,
            base=base,
            until=until,
            say=say,
            clips_changed=clips_changed,
            callbacks=callbacks,
        )
        trainer.train(stop)
    accelerators[0].wait_for_everyone()  # see processes.leave_at_exit
    return trainer.runs


class Trainer:
    """Runs that are ready to train, and the loop over their steps."""

    def __init__(
        self,
        requests: Sequence[RunRequest],
        accelerators: Sequence[Accelerator],
        store: str,
        clips: str,
        stack: ExitStack,
        *,
        base: SharedBase | None = None,
        until: int | None = None,
        say: Callable[[str], None] = print,
        clips_changed: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Open data and models, and bring every run to where it begins or goes on.

        Args:
            accelerators: one per run.
            stack: closes the metrics logs when training ends.

        Raises:
            As `train_runs`, before a step is trained.
        """
        self._until, self._say, self._accelerator = until, say, accelerators[0]
        self._clock = time.perf_counter()
        existing = [request.run.record() if request.run.exists else None for request in requests]
        for request, record in zip(requests, existing, strict=True):
            refuse_other_draws(request.run, record)
            refuse_other_callbacks(request.run, record, callbacks)
        contexts = open_contexts(requests, [None] * len(requests), store=store, clips=clips, base=base)
        self._context = contexts[0]
        fusions, normalise = {r.config.model.fusion.name for r in requests}, self._context.config.features.normalise
        for notice in export_notices(self._context.reader.specs, fusions, normalise):
            say(notice)
        openings = [Opening(*parts) for parts in zip(requests, accelerators, contexts, existing, strict=True)]
        for opening in openings:
            opening.compare_lists(self._context, accept=clips_changed, say=say)
        self._budget = budget = self._chosen_budget(existing)
        self._models = _model_set(contexts, base, checkpointing=budget.checkpointing)
        # Clips that the first run saved serve all, unless some run accepted another clip list.
        reusable = existing[0] is not None and not any(opening.changed for opening in openings)
        self._stream = make_stream(self._context, say, kept=requests[0].run.pool if reusable else None)
        self._loader = PrefetchingLoader(
            self._context.config,
            self._stream,
            self._context.collator,
            num_processes=self._accelerator.num_processes,
            process=self._accelerator.process_index,
            budget=budget,
        )
        for opening in openings:
            opening.load_initial(self._stream.pool.clips)
        summary = self._summary()
        if self._accelerator.is_main_process:
            for opening in openings:
                refuse_other_pool(opening.request.run, opening.record, self._stream.pool)
            for opening in openings:
                self._keep_clips(opening.request.run, summary, fresh=opening.fresh)
                opening.write_record(store, clips, self._stream.pool.sha256, callbacks, budget)
        self.runs = [
            TrainingRun.open(
                opening.request.run,
                opening.context,
                opening.accelerator,
                budget,
                opening.existing,
                opening.halves,
                callbacks,
                stack,
            )
            for opening in openings
        ]
        self._say_start(summary, resumed=existing[0] is not None)

    def _chosen_budget(self, existing: Sequence[RunRecord | None]) -> TokenBudget:
        """Return how rows are filled: as the runs record it, where one of them began already."""
        recorded = next((record.rows for record in existing if record is not None and record.rows), None)
        if recorded is not None:
            return TokenBudget(**recorded)
        device = self._accelerator.device
        together = len(existing) if device.type == "cuda" else 1
        return choose_budget(self._context.config, self._context.model, device, num_models=together)

    def train(self, stop: Callable[[], bool]) -> None:
        """Train all runs to their ends, or to the step at which they pause.

        Raises:
            Interrupted: a signal, or `stop` returned True; all runs are saved.
        """
        for run in self.runs:
            for callback in run.callbacks:
                callback.on_start(run)
        unfinished = [run for run in self.runs if not run.complete()]
        end = self._until or max(run.config.optim.steps for run in self.runs)
        start = min([run.start for run in unfinished], default=end)
        shown = show_progress(
            self._context.config.stage, "steps", already=start, shown=self._accelerator.is_main_process
        )
        with StopRequest(stop) as request, shown as progress:
            self._clock = time.perf_counter()
            for step, batches in enumerate(self._loader.steps(start, end), start=start):
                places = [
                    place
                    for place, run in enumerate(self.runs)
                    if run in unfinished and run.trains_at(step, self._until)
                ]
                if places:
                    present = [self.runs[place] for place in places]
                    waited_s = self._charge(present)
                    for run in present:
                        run.logger.waited(waited_s)
                    self._step(places, batches, step)
                    self._charge(present)
                    progress(step + 1, end, self._progress_text(present))
                    stopping = self._after_step(places, step + 1, request)
                    if stopping and any(not run.finished and run.error is None for run in self.runs):
                        raise Interrupted(self._stopped_text(step + 1))
                if all(run.finished or run.error is not None for run in self.runs):
                    break
        for place, run in enumerate(self.runs):
            if run.error is None and not run.finished and run.complete():
                self._finish_late(place, run)

    @cached_property
    def validation(self) -> Validation:
        """The held-out clips; a run that goes on needs them only when it scores."""
        return Validation(self._context)

    def _step(self, places: Sequence[int], batches: Sequence[Batch], step: int) -> None:
        """Take one optimizer step of the runs at `places`; a run whose step is not finite leaves."""
        self._models.keep(places)
        present = [self.runs[place] for place in places]
        longest = max(batch.num_tokens for batch in batches)
        advice = partial(advise, self._context.config, self._context.model, longest, self._budget)
        with fitting(f"step {step}, a row of {longest} tokens", advice), refusing_other_kernels():
            train_step(self._models, [run.learner for run in present], places, batches, step)
        for run in present:
            if run.learner.problem is not None:
                self._leave(run, batches, step)
                continue
            run.done = step + 1
            for callback in run.callbacks:
                callback.on_step(run, run.done)
            asked_to_stop = any(callback.should_stop(run, run.done) for callback in run.callbacks)
            run.stopped_by_callback = bool(run.callbacks) and any_process(self._accelerator, asked_to_stop)

    def _leave(self, run: TrainingRun, batches: Sequence[Batch], step: int) -> None:
        """Keep a step that is not finite for replay; the run ends with an error."""
        replay = f"fusion-train replay {run.run.folder}"
        subject = f"{run.run.folder}, step {step}" if len(self.runs) > 1 else f"step {step}"
        error = diverged(run.learner, subject, batches, f"{replay} goes sample by sample. ")
        if run.leads:
            keep_for_replay(run.run, run.context, step, list(error.problems))
            self._say(f"{run.run.name}: step {step} is kept for {replay}")
        run.error = error

    def _after_step(self, places: Sequence[int], done: int, request: StopRequest) -> bool:
        """Log, score, save and finish after a step; returns whether all runs stop here."""
        sound = [place for place in places if self.runs[place].error is None]
        for place in sound:
            self.runs[place].log_step()
        self._score([place for place in sound if self._scores_at(self.runs[place], done)])
        stopping = any_process(self._accelerator, request.requested)
        complete = [run for run in (self.runs[place] for place in sound) if run.complete()]
        for place in sound:
            run = self.runs[place]
            run.save_if_due(now=run in complete or stopping or done == self._until)
        paused_s = self._charge([self.runs[place] for place in places])
        for place in places:
            self.runs[place].logger.paused(paused_s)
        for run in complete:
            if run.logger.stalled() and done < run.config.optim.steps:
                self._say(
                    f"step {done}: no better accuracy (or loss, without one) in {run.config.log.patience} scorings; "
                    "training ends, and the best weights are kept"
                )
            run.finish()
        return stopping

    def _charge(self, runs: Sequence[TrainingRun]) -> float:
        """Add the time since the last call to the runs, in equal shares; returns this time in seconds."""
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        for run in runs:
            run.seconds += seconds / len(runs)
        return seconds

    def _scores_at(self, run: TrainingRun, done: int) -> bool:
        if run.config.data.eval_split is None:
            return False
        ends = done in (run.config.optim.steps, self._until) or run.stopped_by_callback
        return ends or done % run.config.log.eval_every == 0

    def _score(self, places: Sequence[int]) -> None:
        """Score the weights of the runs at `places`, or their moving averages, on the held-out clips.

        Raises:
            DivergedError: a score that is NaN or infinite. Finite weights are saved first.
        """
        if not places:
            return
        runs = [self.runs[place] for place in places]
        self._models.keep(places)
        done = runs[0].done
        try:
            with _averages(runs), fitting(f"scoring after step {done}", lambda: SCORE_LATER), refusing_other_kernels():
                models = [run.context.model for run in runs]
                scored = self.validation.score(self._models, models, [run.halves for run in runs])
        except DivergedError:
            for run in runs:
                run.save_unscored()
            raise
        for run, outcome in zip(runs, scored, strict=True):
            run.log_scores(outcome)
            name = f"{run.run.name}: " if len(self.runs) > 1 else ""
            scores = ", ".join(f"{metric} {value:.3f}" for metric, value in outcome.scores.items())
            self._say(f"step {done}: {name}{scores}")

    def _finish_late(self, place: int, run: TrainingRun) -> None:
        """Finish a run that was killed between its last checkpoint and its end, scored if its last scoring failed."""
        if run.config.data.eval_split is not None and not run.logger.scores_at(run.done):
            self._score([place])
        run.finish()

    def _summary(self) -> list[str]:
        """Lines about the clips; a resumed run kept them with its clips."""
        if isinstance(self._stream.pool.clips, StoredClips):
            return list(self._stream.pool.summary)
        return summarise(self._context, self._stream, self.validation if self._scored else None)

    @property
    def _scored(self) -> bool:
        return self._context.config.data.eval_split is not None

    def _keep_clips(self, run: Run, summary: Sequence[str], *, fresh: bool) -> None:
        """Keep the clips that the run draws from for its next start, unless they are kept already."""
        resumed = isinstance(self._stream.pool.clips, StoredClips)
        if fresh or not resumed or Pool.load(run.pool) is None:
            held_out = self.validation.split if self._scored else ()
            self._stream.pool.save(run.pool, held_out, summary)

    def _say_start(self, summary: Sequence[str], *, resumed: bool) -> None:
        for line in summary:
            self._say(line)
        if len(self.runs) > 1:
            start = min(run.start for run in self.runs)
            end = self._until or max(run.config.optim.steps for run in self.runs)
            names = ", ".join(run.run.name for run in self.runs)
            self._say(f"{len(self.runs)} together from step {start} to {end}: {names}")
            return
        (run,) = self.runs
        config, on_cpu = run.config, self._accelerator.device.type == "cpu"
        if not resumed:
            num_scored = {"num_scored": len(self.validation.split)} if self._scored else {}
            for line in cautions(config, num_clips=len(self._stream), on_cpu=on_cpu, **num_scored):
                self._say(line)
        trained = sum(p.numel() for p in learning_parameters(run.context.model).values())
        self._say(
            f"{run.run.folder}: {'resuming at' if run.start else 'training'} step {run.start} of {config.optim.steps}, "
            f"{len(self._stream)} clips an epoch, {trained:,} trained parameters, {_base_name(config)}, "
            f"on {device_name(self._accelerator)}"
        )
        abilities = getattr(run.context.model, "abilities", None)
        if abilities is not None and not abilities.packing:
            self._say("each sample takes a forward pass of its own: in this family, samples of one row see each other")

    def _progress_text(self, present: Sequence[TrainingRun]) -> str:
        if len(self.runs) > 1:
            mean = sum(run.learner.loss for run in present) / len(present)
            return f"{len(present)} together, mean loss {mean:.4f}"
        (run,) = present
        return f"loss {run.learner.loss:.4f}, lr {max(run.learner.rates.values()):.1e}"

    def _stopped_text(self, done: int) -> str:
        if len(self.runs) > 1:
            return f"stopped after step {done}. Go on with the same command."
        folder = self.runs[0].run.folder
        return f"{folder}: stopped after step {done}. Go on with: fusion-train resume {folder}"


def _model_set(
    contexts: Sequence[RunContext], base: SharedBase | None, *, checkpointing: bool
) -> OneModel | ModelGroup:
    """The models of all runs, as one step trains them."""
    if len(contexts) == 1:
        return OneModel(contexts[0].model)
    assert base is not None
    config = contexts[0].config
    llm = base.plain(config.model.llm or "", config.model.llm_dtype)
    # Checkpointing would recompute dropout from another member's random stream, so members run one after another.
    group = ModelGroup(llm, [context.model for context in contexts], stacked=False if checkpointing else None)
    if group.stacked and compiles(config.optim.compile, contexts[0].device.type):
        fuse_layers(group.llm)
    return group


@contextmanager
def _averages(runs: Sequence[TrainingRun]) -> Iterator[None]:
    """Put every run's moving average in the place of its parameters."""
    with ExitStack() as stack:
        for run in runs:
            if run.learner.averaged is not None:
                stack.enter_context(run.learner.averaged.in_place())
        yield


def _base_name(config: Config) -> str:
    """The frozen language model, without the folder that it lies in."""
    llm = config.model.llm
    return "no language model" if llm is None else f"language model {Path(llm).name if Path(llm).exists() else llm}"


def _say_nothing(text: str) -> None:
    """No-op in place of `say` on processes other than the main one."""
