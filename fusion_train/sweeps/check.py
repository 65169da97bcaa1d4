"""Check a sweep before any trial starts: every variant is built without weights, and its cost and memory counted."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from featurecache.errors import FeatureCacheError
from fusion_train.config import Config
from fusion_train.data.feature_reader import FeatureReader
from fusion_train.errors import ConfigError, DataError
from fusion_train.planning.cautions import cautions, split_sizes
from fusion_train.planning.costs import DEFAULT_UTILISATION
from fusion_train.planning.plan import Lengths, make_plan
from fusion_train.processes import this_process
from fusion_train.run_context import build_context
from fusion_train.sweeps.early_stopping import announce, rung_steps
from fusion_train.sweeps.expected_power import power_notice
from fusion_train.sweeps.grouping import batch_key
from fusion_train.sweeps.job import Cost
from fusion_train.sweeps.scored_weights import choosing_splits, optimism_notice, resolve_scoring
from fusion_train.sweeps.sweep_file import Sweep


def check(sweep: Sweep, store: str, clips: str, say: Callable[[str], None]) -> dict[str, Cost | None]:
    """Return the cost of a trial of each variant; None for a probe.

    Raises:
        DataError: variants that cannot run; all are listed, with what the sweep file says about their needs. Or
            references that the metric cannot take.
    """
    sweep = resolve_scoring(sweep, clips)
    costs: dict[str, Cost | None] = {}
    problems: list[str] = []
    counted: dict[Hashable, Lengths] = {}
    for trial in {trial.variant: trial for trial in sweep.trials}.values():
        try:
            for config in trial.stages:
                FeatureReader.open(store, config.features.used)
                if config.model.llm is None:  # a probe is quick to build whole
                    build_context(config, store, clips)
                if config.optim.shard_base:
                    raise ConfigError(
                        "optim.shard_base",
                        expected="false, since a trial trains in one process",
                        got="true",
                        next_step="Quantise the base instead: model.quantised: nf4.",
                    )
            stages = [cost_of(config, store, clips, counted, sweep.split) for config in trial.stages]
            costs[trial.variant] = stages[-1]
        except FeatureCacheError as error:
            problems.append(f"{trial.variant}: {error}")
    if problems:
        raise DataError(
            f"sweep {sweep.name}",
            expected="variants that can all be trained",
            got=f"{len(problems)} of {len(sweep.variants)} that cannot",
            next_step=sweep.needs or None,
            problems=problems,
        )
    _say_costs(sweep, costs, clips, say)
    return costs


def _say_costs(sweep: Sweep, costs: Mapping[str, Cost | None], clips: str, say: Callable[[str], None]) -> None:
    """Print the costs of the variants, the rules that may stop them, and the difference that the sweep can find."""
    for variant, cost in costs.items():
        if cost is None:
            say(f"{variant}: a probe, without a language model")
        else:
            say(
                f"{variant}: {cost.trained:,} trained parameters, {cost.soft_tokens} soft tokens, "
                f"{cost.flops / 1e12:,.1f} TFLOP a trial, memory {cost.shared_bytes / 2**20:,.0f} MiB shared "
                f"+ {cost.own_bytes / 2**20:,.0f} MiB of its own"
            )
    announce(sweep, say)
    on_cpu = this_process().device.type == "cpu"
    configs = [(trial.variant, config) for trial in sweep.trials for config in trial.stages]
    lines = [
        (variant, line)
        for variant, config in configs
        for line in cautions(config, on_cpu=on_cpu, **split_sizes(config, clips))
    ]
    for line in dict.fromkeys(line for _, line in lines):
        variants = [*dict.fromkeys(variant for variant, other in lines if other == line)]
        say(line if len(variants) == len(sweep.variants) else f"{', '.join(variants)}: {line}")
    optim = [trial.config.optim for trial in sweep.trials]
    warmup = max(settings.warmup_steps for settings in optim)
    rungs_in_warmup = [
        rung for rung in rung_steps(sweep.halving, max(settings.steps for settings in optim)) if rung <= warmup
    ]
    if rungs_in_warmup:
        say(
            f"halving: step {', '.join(map(str, rungs_in_warmup))} lies in the warm-up of {warmup} steps, where scores "
            "tell little; name later shares of the steps in halving.at"
        )
    notice = optimism_notice(sweep.weights, sweep.split, choosing_splits(sweep))
    say(
        f"scored on {sweep.split}, with the {sweep.weights} weights, since {sweep.why_weights}"
        + (f"; {notice}" if notice else "")
    )
    say(power_notice(sweep, clips))


def cost_of(
    config: Config, store: str, clips: str, counted: dict[Hashable, Lengths], asked_split: str | None = None
) -> Cost | None:
    """Return the cost of training, from the model without weights; None for a probe, which shares no base.

    Args:
        counted: token lengths by batch key, shared by the variants of a sweep; this call adds its own.

    Raises:
        FeatureCacheError: it cannot be built.
    """
    if config.model.llm is None:
        return None
    plan = make_plan(
        config,
        store,
        clips,
        gpu="h200",
        utilisation=DEFAULT_UTILISATION,
        say=lambda text: None,
        counted=counted,
        batches=batch_key(config),
        asked_split=asked_split,
    )
    need = plan.memory
    row = need.activations + need.logits + need.features + need.workspace
    # Rows of size auto shrink with the number of trials in a group, down to the questions on one clip.
    fixed_size = isinstance(config.optim.micro_batch_size, int)
    smallest = 1.0 if fixed_size else min(config.data.questions_per_clip / plan.micro_batch_size, 1.0)
    # The free memory is measured without the memory of the CUDA context.
    return Cost(
        trained=sum(plan.parameters.values()),
        soft_tokens=round(plan.lengths.soft),
        flops=plan.flops.total * plan.samples,
        shared_bytes=need.base,
        own_bytes=need.total - need.base - need.reserved - row + round(row * smallest),
    )
