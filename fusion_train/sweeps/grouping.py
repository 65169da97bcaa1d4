"""Group trials that train together: the same batches on the same base, and no more than fit in memory.

Batches are the same where data, prompt, features, seed, batch sizes and the number of soft tokens are equal. Trials of
a group may differ in fusion, LoRA, learning rates and steps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from featurecache.spec import canonical_json
from fusion_train.config import Config
from fusion_train.sweeps.job import Cost
from fusion_train.sweeps.sweep_file import Trial

BATCHING = ("batch_size", "micro_batch_size", "micro_batch_tokens", "activation_checkpointing", "precision",
            "deterministic", "compile")  # fmt: skip
"""Settings of the optimizer that are equal for all trials of a group."""


def group_trials(
    trials: Sequence[Trial], stage: int, cost: Callable[[Trial], Cost | None], free_bytes: int, workers: int = 1
) -> list[list[Trial]]:
    """Group trials for one stage of their chains; a group fits beside one base in the memory of a device.

    For several workers, groups are cut so that all workers get about equal work; the largest groups come first.
    """
    by_batches: dict[Hashable, list[Trial]] = {}
    for trial in trials:
        trial_cost = cost(trial)
        soft_tokens = None if trial_cost is None else trial_cost.soft_tokens
        config = trial.stages[stage]
        alone = None if shares_base(config) else trial.key
        by_batches.setdefault((batch_key(config), soft_tokens, alone), []).append(trial)
    groups = []
    for same_batches in by_batches.values():
        size = max(1, _fitting_size([cost(trial) for trial in same_batches], free_bytes))
        groups += [same_batches[start : start + size] for start in range(0, len(same_batches), size)]
    return groups if workers == 1 else _spread(groups, workers, cost)


def _spread(groups: list[list[Trial]], workers: int, cost: Callable[[Trial], Cost | None]) -> list[list[Trial]]:
    """Lay groups end to end and cut at equal shares of the work (McNaughton's rule): at most workers − 1 cuts."""
    costs = [cost(trial) for group in groups for trial in group]
    all_known = all(trial_cost is not None for trial_cost in costs)
    work = {
        trial.key: trial_cost.flops if trial_cost is not None and all_known else 1.0
        for trial, trial_cost in zip((trial for group in groups for trial in group), costs, strict=True)
    }
    share, assigned = sum(work.values()) / workers, 0.0
    pieces: dict[tuple[int, int], list[Trial]] = {}
    for number, group in enumerate(groups):
        for trial in group:
            worker = int((assigned + work[trial.key] / 2) / share)
            pieces.setdefault((number, worker), []).append(trial)
            assigned += work[trial.key]
    return sorted(pieces.values(), key=lambda piece: -sum(work[trial.key] for trial in piece))


def batch_key(config: Config) -> str:
    """Equal for configurations whose batches are the same, given equally many soft tokens."""
    values = config.model_dump(mode="json")
    for key in ("checkpoint", "log", "init_stage"):
        del values[key]
    for key in ("fusion", "lora", "frozen"):
        del values["model"][key]
    values["optim"] = {name: values["optim"][name] for name in BATCHING}
    return canonical_json(values)


def shares_base(config: Config) -> bool:
    """Whether a trial can share its base with others: it has one, and the base is not quantised."""
    return config.model.llm is not None and not config.model.quantised


def _fitting_size(costs: Sequence[Cost | None], free: int) -> int:
    known_costs = [cost for cost in costs if cost is not None]
    if not known_costs:
        return 1  # probes share no base
    largest = max(cost.own_bytes for cost in known_costs)
    size = (free - known_costs[0].shared_bytes) // max(largest, 1)
    return int(max(1, min(len(costs), size)))
