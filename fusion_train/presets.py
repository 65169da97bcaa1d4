"""Resolve the configuration of a run from its layers: shipped presets, a file of the user, a stage, and overrides.

Each layer overrides the ones before it: the defaults of `config`, `--config`, `configs/stages/STAGE.yaml`,
`stages: {STAGE: …}` of `--config`, `--set a.b=c`. A stage is a file, not a branch in the code. A file may contain
`extends: NAME`, another file or shipped preset that it overrides. `replaced_settings` reports settings of the user's
file that the stage overrides: this is meant for a file without stages, but a surprise for a file that names tasks or
the language model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from featurecache.errors import suggest
from fusion_train.config import Config, OptimConfig, validate
from fusion_train.errors import ConfigError, refuse_unknown
from fusion_train.yaml_settings import merge, parse_override, parse_yaml

DEFAULT = "emotion_llama_v2"
PROBE = "probe"
"""The stage that trains no language model."""
MAX_EXTENDED = 8
"""Files that may extend each other in a chain."""


def preset_dir() -> Any:
    """Return the folder of shipped presets: inside an installed wheel, or `configs/` of a checkout."""
    packaged = files("fusion_train") / "configs"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / "configs"


def stage_names() -> list[str]:
    """Return the names of the shipped stages."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in (preset_dir() / "stages").iterdir()
        if entry.name.endswith(".yaml")
    )


def load_config(
    config: str | Path | None = None,
    stage: str | None = None,
    overrides: Iterable[str] = (),
    llm: str | None = None,
) -> Config:
    """Resolve a configuration.

    Args:
        config: a YAML file, or the name of a shipped preset; None: `DEFAULT`.
        stage: name of a file in `configs/stages/`.
        overrides: texts `a.b=c`; c is read as YAML.
        llm: language model of the defaults, in place of the published one; a `config` names its own.

    Raises:
        ConfigError: no such file, invalid YAML, unknown keys or wrong values; all are listed with their dotted keys.
    """
    overrides = list(overrides)
    values = layered_settings(config, stage, overrides, llm)
    fit_to_length(values, own_settings(config, stage, overrides))
    resolved = validate(values, str(config or DEFAULT))
    refuse_probe_with_llm(resolved)
    return resolved


def layered_settings(
    config: str | Path | None = None,
    stage: str | None = None,
    overrides: Iterable[str] = (),
    llm: str | None = None,
) -> dict[str, Any]:
    """Merge the layers of a configuration, as in `load_config`, without `fit_to_length` and without validation."""
    values = read_yaml(config if config is not None else DEFAULT)
    values.pop("stages", None)
    if llm is not None and config is None:
        merge(values, {"model": {"llm": llm}})
    if stage is not None:
        merge(values, stage_settings(config, stage))
    for text in overrides:
        merge(values, parse_override(text))
    return values


def refuse_probe_with_llm(config: Config) -> None:
    """Raise ConfigError if the probe stage, which trains no language model, names one."""
    if config.stage == PROBE and config.model.llm is not None:
        raise ConfigError(
            "model.llm",
            expected="null, since the stage probe trains only fusion and a linear head",
            got=config.model.llm,
            next_step="Leave model.llm out, or train with it: --stage perception.",
        )


def own_settings(config: str | Path | None, stage: str | None, overrides: Iterable[str]) -> dict[str, Any]:
    """Return the settings of the user: those of a file of theirs and the overrides, none of shipped presets."""
    own: dict[str, Any] = {}
    if config is not None and os.path.isfile(config):
        own = dict(_mapping(parse_yaml(Path(config).read_bytes(), str(config)), str(config)))
        stages = own.pop("stages", None)
        merge(own, _mapping(_mapping(stages, "stages").get(stage), "stages") if stage else {})
    for text in overrides:
        merge(own, parse_override(text))
    return own


def fit_to_length(values: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Shorten warm-up and intervals that the run would never reach, in place, except settings of the user.

    They get the shares of the published recipe: of 50,000 steps, 1,000 are warm-up, a checkpoint is saved every 1,000
    and a validation runs every 5,000.
    """
    optim = values.get("optim") or {}
    steps = optim.get("steps", OptimConfig().steps) if isinstance(optim, Mapping) else None
    if not isinstance(steps, int) or steps < 1:
        return  # `validate` reports the error
    for section, name, first, share in (
        ("optim", "warmup_steps", steps, 50),
        ("checkpoint", "every", steps + 1, 50),
        ("log", "eval_every", steps + 1, 10),
    ):
        settings, of_user = values.get(section) or {}, own.get(section) or {}
        if not isinstance(settings, Mapping) or not isinstance(of_user, Mapping) or name in of_user:
            continue
        default = Config.model_fields[section].default
        value = settings.get(name, getattr(default, name))
        if isinstance(value, int) and value >= first:
            least = 0 if name == "warmup_steps" else 1
            merge(values, {section: {name: max(steps // share, least)}})


def stage_settings(config: str | Path | None, stage: str) -> dict[str, Any]:
    """Return the settings of a stage: its file, and the section of the configuration about this stage.

    Raises:
        ConfigError: no such stage.
    """
    refuse_unknown("stage", stage, stage_names())
    values = read_yaml(f"stages/{stage}")
    name = config if config is not None else DEFAULT
    own_stages = _mapping(read_yaml(name).get("stages"), f"{name}: stages")
    for known in own_stages:
        refuse_unknown("stage", known, stage_names())
    merge(values, _mapping(own_stages.get(stage), f"{name}: stages.{stage}"))
    return values


def _mapping(value: Any, subject: str) -> Mapping[str, Any]:
    """Return a mapping, empty for None; raise ConfigError for any other value."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(subject, expected="a mapping of settings", got=repr(value))
    return value or {}


def read_yaml(config: str | Path, _depth: int = 0) -> dict[str, Any]:
    """Read a YAML mapping from a file, or from a shipped preset by name, and merge it over the file it extends."""
    path = Path(config)
    name = str(config)
    source: Any = path
    if not os.path.isfile(path):  # False also for a name that is no valid path, where Path.is_file may raise
        source = preset_dir() / (name if name.endswith(".yaml") else f"{name}.yaml")
    if not os.path.isfile(str(source)):
        folder, _, last = name.removesuffix(".yaml").rpartition("/")  # "sweeps" of "sweeps/pre_fusion"
        beside = preset_dir() / "sweeps" if folder == "sweeps" else preset_dir()
        shipped = sorted(entry.name.removesuffix(".yaml") for entry in beside.iterdir() if entry.name.endswith(".yaml"))
        raise ConfigError(
            name,
            expected="a YAML file, or one of " + ", ".join(shipped),
            got="no such file",
            next_step=suggest(last, shipped).strip() or None,
        )
    values = parse_yaml(source.read_bytes(), name)
    below = values.pop("extends", None)
    if below is None:
        return values
    if not isinstance(below, str) or not below:
        raise ConfigError(f"{name}: extends", expected="the name of one file or shipped preset", got=repr(below))
    if _depth > MAX_EXTENDED:
        raise ConfigError(
            name, expected=f"at most {MAX_EXTENDED} files that extend each other", got="more, or a circle"
        )
    beside = path.parent / below
    base = read_yaml(beside if os.path.isfile(path) and os.path.isfile(beside) else below, _depth + 1)
    merge(base, values)
    return base


NAMED_KEYS = 5
"""Settings that one line names."""
NOT_OF_A_STAGE = ("stages", "extends", "stage", "init_stage")


def replaced_settings(config: str | Path | None, stage: str, overrides: Iterable[str] = ()) -> list[str]:
    """Return lines about settings of the file `config` that the stage overrides; empty if there are none.

    Of a shipped preset, and of files that the file extends, only the language model is compared.
    """
    if config is None:
        return []
    own = parse_yaml(Path(config).read_bytes(), str(config)) if os.path.isfile(config) else {}
    overriding: dict[str, Any] = {}  # settings of the user that override the stage
    merge(overriding, (own.get("stages") or {}).get(stage) or {})
    for text in overrides:
        merge(overriding, parse_override(text))
    base = {key: value for key, value in own.items() if key not in NOT_OF_A_STAGE}
    of_stage, restored = dict(_flat(read_yaml(f"stages/{stage}"))), dict(_flat(overriding))
    keys = [key for key, value in _flat(base) if of_stage.get(key, value) != value and key not in restored]
    lines = []
    llm = (read_yaml(config).get("model") or {}).get("llm")
    if stage == PROBE and llm is not None and "model.llm" not in restored:
        lines.append(f"stage {stage} trains no language model: model.llm of {config} ({llm}) is not used")
    if keys := [key for key in keys if key != "model.llm"]:
        more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
        lines.append(
            f"stage {stage} has values of its own for {', '.join(keys[:NAMED_KEYS])}{more}, in place of those in "
            f"{config}; name yours under stages: {{{stage}: …}} there, or with --set"
        )
    return lines


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys and values of nested mappings."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
