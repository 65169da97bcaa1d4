"""Read settings as YAML: a document, or one override `a.b=c`; and merge one mapping into another.

YAML 1.1, but 1e-4 is a number and a date is a text. Refused, where PyYAML is silent: a repeated key, a key that is no
text, an alias inside itself, and aliases that expand a few lines to gigabytes. This module knows no setting.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from fusion_train.errors import ConfigError

MAX_VALUES = 100_000
"""Values in one YAML document; an alias counts at every use."""


def parse_yaml(text: bytes, subject: str) -> dict[str, Any]:
    """Read a YAML mapping whose keys are texts; an empty document is an empty mapping.

    Raises:
        ConfigError: invalid YAML or UTF-8, a repeated key, a refused alias, or no mapping.
    """
    values = _parsed(text, subject, "YAML")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(subject, expected="a mapping of settings", got=type(values).__name__)
    return values


def parse_override(text: str) -> dict[str, Any]:
    """Parse `a.b=c` into {"a": {"b": c}}."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text}", expected="KEY=VALUE, such as optim.lr=3e-4", got=repr(text))
    nested = _parsed(value.encode("utf-8", "surrogateescape"), f"--set {text}", "a YAML value")
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def _parsed(text: bytes, subject: str, expected: str) -> Any:
    try:
        loader = _Loader(text.decode("utf-8-sig"))
        node = loader.get_single_node()
        if node is None:
            return None
        _count_values(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:  # not UTF-8, `!!bool x`, …
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        message = f"{problem} on line {mark.line + 1}" if mark and problem else " ".join(str(error).split())
        next_step = "Indent with spaces, not with tabs." if "\\t" in message else None
        raise ConfigError(subject, expected=expected, got=message, next_step=next_step) from error


def _count_values(node: yaml.Node, counted: dict[int, int | None]) -> int:
    """Count the values of a node, with an alias at every use; refuse what PyYAML accepts silently.

    Raises:
        yaml.constructor.ConstructorError: a key that is no text or is repeated, an alias inside itself, or more than
            `MAX_VALUES` values.
    """
    if id(node) in counted:
        count = counted[id(node)]
        if count is None:
            raise _refused(node, "an alias that holds itself")
        return count
    counted[id(node)] = None
    count, seen = 1, set()
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise _refused(key, f"a key that is no text: {getattr(key, 'value', '')!r}; write it in quotes")
            if key.value in seen:
                raise _refused(key, f'the key "{key.value}" a second time')
            seen.add(key.value)
            count += _count_values(value, counted)
    elif isinstance(node, yaml.SequenceNode):
        count += sum(_count_values(item, counted) for item in node.value)
    if count > MAX_VALUES:
        raise _refused(node, f"more than {MAX_VALUES:,} values")
    counted[id(node)] = count
    return count


def _refused(node: yaml.Node, problem: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Merge `over` into `base` in place: mappings are merged key by key, any other value replaces."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = dict(value) if isinstance(value, Mapping) else value


class _Loader(yaml.SafeLoader):
    """Loader of YAML 1.1, but 1e-4 is a number (PyYAML requires a dot) and a date is a text."""


_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_Loader.yaml_constructors = {
    tag: constructor for tag, constructor in _Loader.yaml_constructors.items() if tag != _TIMESTAMP
}
_Loader.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in value if tag != _TIMESTAMP]
    for key, value in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)
