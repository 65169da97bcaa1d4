"""Who trains with whom: trials that take the same batches on the same base, as many as fit in memory.

The same batches: equal data, prompt, features, seed and batch sizes, and a fusion that gives equally many soft tokens.
What differs between members is what is trained: fusion, LoRA, learning rates, steps.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from featurecache.spec import canonical_json
from fusion_train.config import Config
from fusion_train.sweeps.job import Cost
from fusion_train.sweeps.sweep_file import Trial

BATCHING = ("batch_size", "micro_batch_size", "micro_batch_tokens", "activation_checkpointing", "precision",
            "deterministic", "compile")  # fmt: skip
"""Settings of the optimizer that members have in common."""


def group_trials(
    trials: Sequence[Trial], stage: int, cost: Callable[[Trial], Cost | None], free_bytes: int, workers: int = 1
) -> list[list[Trial]]:
    """Group trials for one stage of their chains; a company never holds more than fits beside one base.

    For several workers groups are cut where that shares the work evenly, and the largest come first.
    """
    by_batches: dict[Hashable, list[Trial]] = {}
    for trial in trials:
        found = cost(trial)
        soft = None if found is None else found.soft_tokens
        config = trial.stages[stage]
        alone = None if shares_base(config) else trial.key
        by_batches.setdefault((batch_key(config), soft, alone), []).append(trial)
    groups = []
    for alike in by_batches.values():
        size = max(1, _fitting_size([cost(trial) for trial in alike], free_bytes))
        groups += [alike[start : start + size] for start in range(0, len(alike), size)]
    return groups if workers == 1 else _spread(groups, workers, cost)


def _spread(groups: list[list[Trial]], workers: int, cost: Callable[[Trial], Cost | None]) -> list[list[Trial]]:
    """Lay groups end to end and cut at equal shares of the work (McNaughton's rule): at most workers − 1 cuts."""
    costs = [cost(trial) for group in groups for trial in group]
    known = all(each is not None for each in costs)
    work = {
        trial.key: each.flops if each is not None and known else 1.0
        for trial, each in zip((trial for group in groups for trial in group), costs, strict=True)
    }
    share, passed = sum(work.values()) / workers, 0.0
    pieces: dict[tuple[int, int], list[Trial]] = {}
    for number, group in enumerate(groups):
        for trial in group:
            worker = int((passed + work[trial.key] / 2) / share)
            pieces.setdefault((number, worker), []).append(trial)
            passed += work[trial.key]
    return sorted(pieces.values(), key=lambda piece: -sum(work[trial.key] for trial in piece))


def batch_key(config: Config) -> str:
    """Equal for configurations whose batches are the same, given equally many soft tokens."""
    values = config.model_dump(mode="json")
    for own in ("checkpoint", "log", "init_stage"):
        del values[own]
    for own in ("fusion", "lora", "frozen"):
        del values["model"][own]
    values["optim"] = {name: values["optim"][name] for name in BATCHING}
    return canonical_json(values)


def shares_base(config: Config) -> bool:
    """Whether a trial can train in company: there is a base, and it is not quantised."""
    return config.model.llm is not None and not config.model.quantised


def _fitting_size(costs: Sequence[Cost | None], free: int) -> int:
    known = [cost for cost in costs if cost is not None]
    if not known:
        return 1  # probes share no base
    largest = max(cost.own_bytes for cost in known)
    room = (free - known[0].shared_bytes) // max(largest, 1)
    return int(max(1, min(len(costs), room)))
