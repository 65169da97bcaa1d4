"""Options whose value may come from the project file: the one place where `featurecache.toml` meets a command line.

An option declared with `cls=ProjectOption, project_key=KEY` takes the value of KEY where the command line has none. The
first such option of a command prints one line on standard error that names the file and the keys that the command takes
from it. An option with `fills=False` only counts for this line; its command asks `project()` itself, because the
value of a key is part of the option's value: the weights of some encoders, one setting of many.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from featurecache.console import note
from featurecache.project import Project, find_project

_STATE = "featurecache.project"


class ProjectOption(click.Option):
    """An option with a key of the project file."""

    def __init__(
        self, *arguments: Any, project_key: str, fills: bool = True, unless: str | None = None, **settings: Any
    ) -> None:
        """`unless` names an option of the same command that, when it is given, stands for the key."""
        super().__init__(*arguments, **settings)
        self.project_key, self.fills, self.unless = project_key, fills, unless or (self.name if fills else None)

    def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> Any:
        is_subcommand = isinstance(ctx.command, click.Group) and bool(args)
        if not is_subcommand and not ctx.resilient_parsing and _state(ctx) is None:
            _announce(ctx, opts)
        return super().handle_parse_result(ctx, opts, args)

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        value, source = super().consume_value(ctx, opts)
        project_file = _state(ctx)
        own = getattr(project_file, self.project_key) if project_file and self.fills else None
        if own and source is ParameterSource.DEFAULT:
            return own, ParameterSource.DEFAULT_MAP
        return value, source


def project(ctx: click.Context | None = None) -> Project | None:
    """Return the project file that the options of the current command met; None without one."""
    project_file = _state(ctx or click.get_current_context())
    return project_file or None


def _state(ctx: click.Context) -> Any:
    """Return the project of a command, False if there is none, None before its options are read."""
    return ctx.meta.get(f"{_STATE} {ctx.command_path}")


def _announce(ctx: click.Context, opts: Mapping[str, Any]) -> None:
    """Find the project file and print which of its keys this command takes."""
    project_file = find_project()
    ctx.meta[f"{_STATE} {ctx.command_path}"] = project_file or False
    if project_file is None:
        return
    options = [option for option in ctx.command.params if isinstance(option, ProjectOption)]
    taken = {option.project_key for option in options if option.unless not in opts}
    keys = [key for key in project_file.present() if key in taken]
    if keys:
        note(f"{os.path.relpath(project_file.path)}: {', '.join(keys)}")
