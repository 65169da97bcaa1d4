"""`fusion-train plan | zero-image`: predict the cost of a run; encode the all-zero image for `absent: visible`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featurecache.console import OutputPath, command, note, print_table, say
from featurecache.tables import Table
from fusion_train.cli.options import CLIPS, CONFIG, SET, STORE, project_model

if TYPE_CHECKING:
    from fusion_train.planning.costs import MemoryKinds
    from fusion_train.planning.plan import TrainingPlan


@command()
@click.option("--stage", default="perception", show_default=True, help="A file under configs/stages.")
@CONFIG
@STORE
@CLIPS
@click.option("--gpu", default="h100", show_default=True, help="GPU to plan for, such as h200, a100-80gb, rtx-4090.")
@click.option(
    "--utilisation",
    type=click.FloatRange(0.01, 1),
    default=0.45,
    show_default=True,
    help="Share of the GPU's published dense peak that training reaches.",
)
@SET
def plan(
    stage: str,
    config: str | None,
    store: str,
    clips: str,
    gpu: str,
    utilisation: float,
    overrides: tuple[str, ...],
) -> None:
    """Show parameters, tokens, FLOPs, memory and hours of a configuration; nothing is loaded.

    \b
    fusion-train plan --gpu rtx-4090 --set optim.micro_batch_size=2
    """
    from fusion_train.planning.cautions import cautions, split_sizes
    from fusion_train.planning.plan import make_plan
    from fusion_train.presets import load_config, replaced_settings

    settings = load_config(config, stage, overrides, project_model())
    for line in replaced_settings(config, stage, overrides):
        note(line)
    training_plan = make_plan(settings, store, clips, gpu=gpu, utilisation=utilisation, say=note)
    for table in _tables(training_plan):
        print_table(table)
    card, total_flops = training_plan.gpu, training_plan.flops.total * training_plan.samples
    say(
        f"{training_plan.steps:,} steps, {training_plan.samples:,} samples: {total_flops:.2e} FLOP, "
        f"{training_plan.hours:.3g} hours of one {card.name} at {training_plan.utilisation:.0%} of its published "
        f"{card.bf16_tflops:g} TFLOP/s"
    )
    say(
        "layers: operators of transformers; optim.compile=true computes norms, rotary positions and activations in one "
        "kernel each"
        if settings.optim.compile is False
        else "layers: norms, rotary positions and activations in one kernel each, by torch.compile"
    )
    for line in cautions(settings, on_cpu=False, **split_sizes(settings, clips)):
        say(line)
    if training_plan.advice:
        say(f"does not fit the {card.memory_gib} GiB of one {card.name}. {training_plan.advice}")


def _tables(plan: TrainingPlan) -> list[Table]:
    """Return the tables of a plan: parameters, tokens, FLOPs and memory."""
    trained = sum(plan.parameters.values())
    parameters = _table("trained parameters", "part", "count")
    for part, count in plan.parameters.items():
        parameters.add([part, f"{count:,}"])
    parameters.add(["all", f"{trained:,}"])
    parameters.add(["share of all but encoders", f"{trained / (trained + plan.frozen):.2%}"])

    lengths = plan.lengths
    tokens = _table(f"tokens of a sample ({lengths.source})", "kind", "mean")
    for kind, mean in (("soft", lengths.soft), ("text", lengths.text), ("answer", lengths.answer)):
        tokens.add([kind, f"{mean:.1f}"])
    tokens.add(["all", f"{lengths.total:.1f}"])

    unit, unit_flops = ("TFLOP", 1e12) if plan.flops.total >= 1e11 else ("GFLOP", 1e9)
    flops = _table(f"{unit} of a sample", "part", unit)
    for part in ("layers", "head", "attention", "trained", "recomputed"):
        flops.add([part, f"{getattr(plan.flops, part) / unit_flops:.2f}"])
    flops.add(["all", f"{plan.flops.total / unit_flops:.2f}"])
    flops.add(["rule of 4N per token", f"{plan.rule_flops / unit_flops:.2f}"])

    training = _memory_table(f"memory at micro-batch {plan.micro_batch_size}", plan.memory)
    scoring = _memory_table(f"memory of scoring, {plan.scored_clips} clips at once", plan.scoring)
    return [parameters, tokens, flops, training, scoring]


def _memory_table(title: str, memory: MemoryKinds) -> Table:
    unit, unit_bytes = ("GiB", 2**30) if memory.total >= 2**30 else ("MiB", 2**20)
    table = _table(title, "kind", unit)
    for kind, size in memory.by_kind().items():
        table.add([kind, f"{size / unit_bytes:.2f}"])
    table.add(["all", f"{memory.total / unit_bytes:.2f}"])
    return table


def _table(title: str, first: str, second: str) -> Table:
    return Table([first, second], caption=title)


@command("zero-image")
@STORE
@click.option("--name", default="eva-global", show_default=True, help="The image feature in the store.")
@click.option("--weights", help="Checkpoint that made the feature, if the store does not record it.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
@click.option("--out", type=OutputPath("file"), default="zero-image.safetensors", show_default=True)
def zero_image(store: str, name: str, weights: str | None, device: str, out: Path) -> None:
    """Encode an all-zero image once, for runs in which the model sees absent modalities (--config released).

    \b
    fusion-train zero-image --weights eva_vit_g.pth
    """
    from fusion_train.export.encoders import make_zero_image

    make_zero_image(store, name, out, weights=weights, device=device, say=say)
