"""One run while it trains: its weights, optimizer, metrics, scores and checkpoints, alone or beside other runs.

A run has its own folder, optimizer, gradient scaler, schedule, moving average, metrics log, checkpoints and end, so
`eval`, `resume` and `export` see no difference between a run that trained alone and one that trained with others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from accelerate import Accelerator

from fusion_train import checkpoint
from fusion_train.config import Config
from fusion_train.data.halves import Halves
from fusion_train.errors import FusionTrainError
from fusion_train.models.parts import learning_parameters
from fusion_train.planning.memory_budget import TokenBudget
from fusion_train.planning.sizes import work_of
from fusion_train.run import Run, RunRecord
from fusion_train.run_context import RunContext
from fusion_train.training.averaging import Averaged
from fusion_train.training.devices import peak_flops, place
from fusion_train.training.metrics_logger import MetricsLogger
from fusion_train.training.optimizer import make_optimizer
from fusion_train.training.resume import resume, save_checkpoint
from fusion_train.training.step import Learner, over_processes
from fusion_train.training.step_metrics import MetricsAccumulator
from fusion_train.training.validation import Scored


class Callback:
    """What training calls; every method does nothing here, so that a subclass defines only those that it needs.

    All methods are called on every process, after the loop has done its own part.
    """

    source: str = ""
    """sha256 of the file that defines it, where it was loaded from one."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def on_start(self, run: TrainingRun) -> None:
        """Called once, before the first step of this process: model and optimizer are on their device."""

    def on_step(self, run: TrainingRun, step: int) -> None:
        """Called after every optimizer step; `step` steps are done, `run.learner.loss` is the loss of the last one."""

    def on_log(self, run: TrainingRun, step: int, values: Mapping[str, float]) -> None:
        """Called with every line of step metrics; their names are those of `metrics.jsonl`."""

    def on_score(self, run: TrainingRun, step: int, scores: Mapping[str, float]) -> None:
        """Called with the scores on the held-out clips."""

    def should_stop(self, run: TrainingRun, step: int) -> bool:
        """Whether training ends after this step; the run is then scored, saved and finished."""
        return False

    def on_end(self, run: TrainingRun, result: Mapping[str, Any]) -> None:
        """Called once, when the run is finished; not when it is interrupted."""


@dataclass(eq=False)
class TrainingRun:
    """One run in training."""

    run: Run
    context: RunContext
    learner: Learner
    logger: MetricsLogger
    start: int
    """Steps done when this process took the run up."""
    halves: Halves = ()
    """Held-out clips by half, where the run keeps the weights that each half chooses."""
    callbacks: Sequence[Callback] = ()
    done: int = 0
    """Steps done."""
    seconds: float = 0.0
    """Training time; of runs that train together, an equal share."""
    finished: bool = False
    answers: dict[int, Scored] = field(default_factory=dict)
    """Step -> what the held-out clips were answered, for the scorings of this process whose weights are kept."""
    error: FusionTrainError | None = None
    """Why the run left before its end."""
    stopped_by_callback: bool = False

    @classmethod
    def open(
        cls,
        run: Run,
        context: RunContext,
        accelerator: Accelerator,
        budget: TokenBudget,
        record: RunRecord | None,
        halves: Halves,
        callbacks: Sequence[Callback],
        stack: ExitStack,
    ) -> TrainingRun:
        """Bring the model to its device and restore the newest checkpoint; the log closes with `stack`.

        Args:
            record: of a run that is resumed.

        Raises:
            CheckpointError: a damaged checkpoint or log.
        """
        config, model = context.config, context.model
        place(model, config, accelerator, budget)
        optimizer: Any = accelerator.prepare(make_optimizer(model, config.optim))
        averaged = Averaged(model, config.optim.ema_decay) if config.optim.ema_decay else None
        start = resume(run, model, optimizer, averaged, accelerator, record)
        logger = MetricsLogger(
            run.folder,
            start,
            config.log,
            enabled=accelerator.is_main_process,
            peak_flops=peak_flops(accelerator, config),
            about=config.model_dump(mode="json"),
        )
        stack.enter_context(logger)
        learner = Learner(config, model, optimizer, accelerator, MetricsAccumulator(work_of(model)), averaged)
        return cls(run, context, learner, logger, start, halves, callbacks, done=start)

    @property
    def config(self) -> Config:
        return self.context.config

    @property
    def leads(self) -> bool:
        """Whether this process writes the run's files."""
        return self.learner.accelerator.is_main_process

    def complete(self) -> bool:
        """Whether all steps are done, or training ends early: scores no longer improve, or a callback asked for it."""
        return self.done == self.config.optim.steps or self.stopped_by_callback or self.logger.stalled()

    def trains_at(self, step: int, until: int | None) -> bool:
        """Whether the run takes part in a step; one that was resumed further on waits for the others."""
        end = self.config.optim.steps if until is None else min(until, self.config.optim.steps)
        return self.error is None and not self.finished and self.start <= step < end

    def log_step(self) -> None:
        """Write the line of the steps since the last line, where one is due."""
        if self.logger.due(self.done):
            counts = over_processes(self.learner.metrics.take())
            values = self.logger.step(self.done, counts, self.learner.rates, self.learner.norms)
            for callback in self.callbacks:
                callback.on_log(self, self.done, values)

    def log_scores(self, scored: Scored) -> None:
        """Record the scores after this step."""
        self.logger.scores(self.done, scored.scores)
        kept = self.logger.chosen_steps()
        self.answers = {step: answers for step, answers in self.answers.items() if step in kept} | {self.done: scored}
        for callback in self.callbacks:
            callback.on_score(self, self.done, scored.scores)

    def save_if_due(self, *, now: bool) -> None:
        """Write a checkpoint where the schedule or the best score asks for one, or `now`."""
        due = self.done % self.config.checkpoint.every == 0 or self.done in self.logger.chosen_steps()
        if now or due:
            self.save(self.logger.score_at(self.done), self.logger.half_scores_at(self.done) if self.halves else ())

    def save(self, score: float | None, half_scores: Sequence[float | None] = ()) -> None:
        """Write a checkpoint of the steps done."""
        if self.leads:
            learner = self.learner
            save_checkpoint(
                self.run,
                self.context,
                learner.optimizer,
                learner.averaged,
                learner.accelerator,
                self.done,
                score,
                half_scores,
            )

    def save_unscored(self) -> None:
        """Keep sound weights that gave no sound score."""
        sound = all(bool(p.isfinite().all()) for p in learning_parameters(self.context.model).values())
        if sound and not checkpoint.step_folder(self.run.checkpoints, self.done).exists():
            self.save(None)

    def finish(self) -> None:
        """Write `finished.json`."""
        self.finished = True
        if self.leads:
            self.run.finish(self.result)
        for callback in self.callbacks:
            callback.on_end(self, self.result)

    @property
    def result(self) -> dict[str, Any]:
        """Steps, final scores and seconds, as `finished.json` holds them."""
        return {"step": self.done, "scores": self.logger.scores_at(self.done), "seconds": round(self.seconds, 3)}
