"""The training loop, read top to bottom.

    sample stream -> batches (a thread ahead) -> forward, backward -> AdamW -> metrics, scoring, checkpoint

Published recipe: AdamW, fresh optimizer and schedule in stage 2; fp16 autocast with scaler; no clipping.
The loss of a step is the mean over all supervised tokens of its global batch, whatever the number of devices and
micro-batches. Samples and dropout are pure functions of (seed, step): a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from featurecache.interrupt import Interrupted, StopRequest
from featurecache.progress import show_progress
from fusion_train import checkpoint
from fusion_train.assemble import Workbench, absolute, assemble, relative
from fusion_train.averaging import Averaged
from fusion_train.batches import Batch, prefetch
from fusion_train.config import Config, OptimConfig
from fusion_train.errors import CheckpointError, ConfigError, DivergedError
from fusion_train.held_out import HeldOut
from fusion_train.journal import Journal
from fusion_train.models.parts import learning_parameters
from fusion_train.models.probe import Probe
from fusion_train.optimizer import gradient_norms, make_optimizer, set_learning_rates
from fusion_train.peak import measured_peak_flops
from fusion_train.prompts import encode_answer
from fusion_train.run import Run, RunRecord
from fusion_train.samples import AnswerLimits, SampleStream
from fusion_train.seeding import derive
from fusion_train.sizes import work_of
from fusion_train.tally import Counts, Tally


def train(
    config: Config,
    *,
    store: str,
    clips: str,
    run: Run,
    initial: Run | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a run, or resume it where it was; a finished run is returned as it is.

    Args:
        store, clips: the feature store and the clip list.
        run: folder to train in.
        initial: start from this run's best trained weights.

    Returns:
        The final scores and timings, as written to `finished.json`.

    Raises:
        ConfigError, DataError, StoreError, ModelError: before anything is written.
        CheckpointError: the folder holds a run of another configuration.
        DivergedError: the loss is not finite.
        Interrupted: SIGINT or SIGTERM; the run resumes from here.
    """
    refuse_other_configuration(run, config)
    if run.exists and run.finished:
        say(f"{run.folder}: already finished at step {run.result['step']}")
        return run.result
    accelerator = make_accelerator(config.optim)
    check_batching(config, accelerator.num_processes)
    known = run.record() if run.exists else None
    bench = assemble(
        config, store, clips,
        fingerprints=known.fingerprints if known else None, sets=known.label_sets if known else None,
    )  # fmt: skip
    stream = make_stream(bench, say)
    held_out = HeldOut(bench) if config.data.eval_split is not None else None

    if known is not None and known.initial is not None:
        initial = Run(absolute(known.initial["run"], run.folder))
    loaded = start_from(initial, run, bench.model, known) if initial else None
    if known is None and accelerator.is_main_process:
        run.create(config, make_record(bench, store, clips, run, loaded))
    model, optimizer = accelerator.prepare(bench.model, make_optimizer(bench.model, config.optim))
    averaged = Averaged(bench.model, config.optim.ema_decay) if config.optim.ema_decay else None
    start = resume(run, bench.model, optimizer, averaged, accelerator, known)
    say(f"{run.folder}: {'resuming at' if start else 'training'} step {start} of {config.optim.steps}, "
        f"{len(stream)} clips an epoch, {sum(p.numel() for p in learning_parameters(bench.model).values()):,} "
        f"trained parameters, on {accelerator.device}")  # fmt: skip

    steps = prefetch(lambda step: micro_batches(step, bench, stream, accelerator), start, config.optim.steps)
    tally = Tally(work_of(bench.model))
    journal = Journal(
        run.folder, start, config.log, enabled=accelerator.is_main_process,
        peak_flops=peak_flops(accelerator, config), about=config.model_dump(mode="json"),
    )  # fmt: skip
    done, began, waiting_since = start, time.perf_counter(), time.perf_counter()
    with StopRequest() as stop, journal, show_progress(config.stage, "steps", already=start) as progress:
        for step, batches in enumerate(steps if not journal.stalled() else (), start=start):
            journal.waited(time.perf_counter() - waiting_since)
            rates = set_learning_rates(optimizer, step, config.optim)
            loss, norms = train_step(model, optimizer, batches, tally, accelerator, config, step)
            if averaged is not None:
                averaged.update(step)
            done = step + 1
            if journal.due(done):
                journal.step(done, over_processes(tally.take()), rates, norms)
            progress(done, config.optim.steps, f"loss {loss:.4f}, lr {max(rates.values()):.1e}")
            last, paused_since = done == config.optim.steps, time.perf_counter()
            if held_out and (last or done % config.log.eval_every == 0):
                with averaged.in_place() if averaged is not None else nullcontext():
                    scores = held_out.score()
                journal.scores(done, scores)
                say(f"step {done}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items()))
                if journal.stalled() and not last:
                    last = True
                    say(f"step {done}: no better score in {config.log.patience} scorings, so this is the last step")
            if (last or done % config.checkpoint.every == 0 or stop.requested) and accelerator.is_main_process:
                save_checkpoint(run, bench, optimizer, averaged, accelerator, done, journal.score_at(done))
            if stop.requested and not last:
                raise Interrupted(
                    f"{run.folder}: stopped after step {done}. Go on with: fusion-train resume {run.folder}"
                )
            if last:
                break
            waiting_since = time.perf_counter()
            journal.paused(waiting_since - paused_since)

    result = {"step": done, "scores": journal.scores_at(done), "seconds": round(time.perf_counter() - began, 3)}
    if accelerator.is_main_process:
        run.finish(result)
    return result


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[Batch],
    tally: Tally,
    accelerator: Accelerator,
    config: Config,
    step: int,
) -> tuple[float, dict[str, float]]:
    """One optimizer step over its micro-batches; returns the loss a supervised token, gradient norms by part."""
    torch.manual_seed(derive(config.seed, "dropout", step, accelerator.process_index))
    supervised = torch.tensor(sum(batch.num_supervised for batch in batches), device=accelerator.device)
    total = int(accelerator.reduce(supervised, reduction="sum"))
    loss = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(batches):
        last = number + 1 == len(batches)
        with nullcontext() if last else accelerator.no_sync(model):
            output = model(**batch.to(accelerator.device).tensors())
            # DDP averages gradients over processes; the loss is a mean over the tokens of all of them.
            accelerator.backward(output.loss_sum * (accelerator.num_processes / total))
        tally.count(batch.asked, output.sample_losses)
        loss += output.loss_sum.detach() / total
    mean_loss = float(accelerator.reduce(loss, reduction="sum"))
    if not math.isfinite(mean_loss):
        raise DivergedError(
            f"step {step}", expected="a finite loss", got=str(mean_loss),
            next_step="Lower optim.lr or set optim.precision=bf16. The clips of this batch:",
            problems=[clip for batch in batches for clip in batch.clip_ids],
        )  # fmt: skip
    accelerator.unscale_gradients(optimizer)
    norms = gradient_norms(accelerator.unwrap_model(model), config.optim.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return mean_loss, norms


def micro_batches(step: int, bench: Workbench, stream: SampleStream, accelerator: Accelerator) -> list[Batch]:
    """This process's micro-batches of a step; the step's samples are the same for any number of processes."""
    optim, world, rank = bench.config.optim, accelerator.num_processes, accelerator.process_index
    size = optim.micro_batch_size
    first = step * optim.batch_size
    return [
        bench.collator([stream.draw(first + start + place) for place in range(size)])
        for start in range(rank * size, optim.batch_size, world * size)
    ]


def make_accelerator(optim: OptimConfig) -> Accelerator:
    """Device and autocast by accelerate.

    Raises:
        ConfigError: a precision that the device does not have.
    """
    try:
        return Accelerator(mixed_precision="no" if optim.precision == "fp32" else optim.precision)
    except ValueError as error:
        raise ConfigError(
            "optim.precision", expected="one that this machine has", got=f"{optim.precision} ({error})",
            next_step="Use --set optim.precision=bf16 or fp32.",
        ) from error  # fmt: skip


def check_batching(config: Config, num_processes: int) -> None:
    """Raise ConfigError where a batch does not divide into micro-batches over the processes, or a pack parts a clip's
    questions."""
    optim, questions = config.optim, config.data.questions_per_clip
    if optim.batch_size % (optim.micro_batch_size * num_processes):
        raise ConfigError(
            "optim.batch_size",
            expected=f"a multiple of micro_batch_size {optim.micro_batch_size} × {num_processes} processes",
            got=str(optim.batch_size),
        )
    if optim.micro_batch_size % questions:
        raise ConfigError(
            "optim.micro_batch_size", expected=f"a multiple of data.questions_per_clip {questions}",
            got=str(optim.micro_batch_size), next_step=f"Use --set optim.micro_batch_size={questions}.",
        )  # fmt: skip


def make_stream(bench: Workbench, say: Callable[[str], None] = print) -> SampleStream:
    """Samples of the training split, as the configuration draws them."""
    data = bench.config.data
    return SampleStream(
        bench.reader.usable(bench.clips.in_split(data.train_split), data.failed_clips),
        data.tasks,
        bench.label_sets,
        seed=bench.config.seed,
        modalities=bench.reader.modalities,
        mixture=data.mixture,
        on_absent_dataset=data.mixture_absent,
        hide_modality_p=data.hide_modality_p,
        questions_per_clip=data.questions_per_clip,
        limits=AnswerLimits(
            data.max_answer_tokens, data.max_answer_words, lambda text: len(encode_answer(bench.tokenizer, text))
        ),
        say=say,
    )


def peak_flops(accelerator: Accelerator, config: Config) -> float:
    """Matrix peak of all devices: the one stated, else as measured now."""
    if config.log.peak_tflops is not None:
        return config.log.peak_tflops * 1e12 * accelerator.num_processes
    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return measured_peak_flops(accelerator.device, dtypes[config.optim.precision]) * accelerator.num_processes


def over_processes(counts: Counts) -> Counts:
    """Add up what all processes counted."""
    whole = Counts()
    for mine in gather_object([counts]):
        whole.add(mine)
    return whole


def start_from(initial: Run, run: Run, model: nn.Module, known: RunRecord | None) -> dict[str, Any]:
    """Load another run's best trained weights; returns what `run.json` keeps of it.

    Raises:
        CheckpointError: `initial` is not trained, or no longer holds the weights that `known` started from.
    """
    if known is not None and checkpoint.published(run.checkpoints):
        return dict(known.initial or {})  # the run has trained weights of its own
    folder = checkpoint.choose(initial.checkpoints, "best")
    state, weights = checkpoint.read_state(folder), checkpoint.best_weights(folder)
    loaded = {
        "run": relative(str(initial.folder), run.folder),
        "step": state.step,
        "sha256": state.sha256[weights],
    }
    if known is not None and known.initial != loaded:
        raise CheckpointError(
            str(run.folder), expected=f"to start from {known.initial}", got=str(loaded),
            next_step=f"{initial.folder} was trained anew; delete {run.folder} and start it again.",
        )  # fmt: skip
    same_kind = (initial.config().model.llm is None) == isinstance(model, Probe)
    checkpoint.load_model(folder, model, name=weights, parts=None if same_kind else ("fusion",))
    return loaded


def make_record(bench: Workbench, store: str, clips: str, run: Run, initial: Mapping[str, Any] | None) -> RunRecord:
    packages = ("torch", "transformers", "peft", "accelerate", "featurecache")
    return RunRecord(
        store=relative(store, run.folder),
        clips=relative(clips, run.folder),
        fingerprints=bench.reader.fingerprints,
        shapes=bench.reader.shapes,
        label_sets=bench.label_sets,
        initial=initial,
        versions={"python": platform.python_version()} | {name: version(name) for name in packages},
    )


def refuse_other_configuration(run: Run, config: Config) -> None:
    """Raise CheckpointError where the folder holds a run of another configuration."""
    if run.exists and (differing := config.differences(run.config())):
        raise CheckpointError(
            str(run.folder), expected="no run, or one of this configuration", got="one of another configuration",
            next_step="Choose another folder with --out. Asked != there:", problems=differing,
        )  # fmt: skip


def resume(
    run: Run,
    model: nn.Module,
    optimizer: Any,
    averaged: Averaged | None,
    accelerator: Accelerator,
    known: RunRecord | None,
) -> int:
    """Restore the newest checkpoint; returns the number of steps done."""
    folders = checkpoint.published(run.checkpoints) if known else []
    if not folders:
        return 0
    state = checkpoint.read_state(folders[-1])
    checkpoint.load_model(folders[-1], model)
    checkpoint.load_optimizer(folders[-1], model, optimizer.optimizer)
    if averaged is not None:
        averaged.load(checkpoint.load_averaged(folders[-1]))
    if accelerator.scaler is not None and state.scaler:
        accelerator.scaler.load_state_dict(dict(state.scaler))
    return state.step


def save_checkpoint(
    run: Run,
    bench: Workbench,
    optimizer: Any,
    averaged: Averaged | None,
    accelerator: Accelerator,
    step: int,
    score: float | None,
) -> None:
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
    state = checkpoint.State(step, bench.config.hash, bench.reader.fingerprints, scaler, score)
    checkpoint.save(
        run.checkpoints, bench.model, optimizer.optimizer, state, keep=bench.config.checkpoint.keep,
        averaged=averaged.tensors() if averaged is not None else None,
    )  # fmt: skip
