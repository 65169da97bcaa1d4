"""`fcache`: the command line of featurecache. Each command reads its options, calls the library and prints the result.

Exit codes: 0 done; 1 done with listed failures, or stopped and resumable; 2 wrong use.
"""

from __future__ import annotations

import click

import featurecache
from featurecache.cli import audit, extract, importing, inspect_store, maintenance, project, similarity
from featurecache.console import HELP, CommandGroup

MODULES = (project, extract, importing, inspect_store, maintenance, similarity, audit)
EXPLORE = {command.name for module in (similarity, audit) for command in module.COMMANDS}
"""Commands that need nothing beyond the extra `explore`."""


class CacheCommands(CommandGroup):
    """The commands of `fcache`."""

    def suggested_extra(self, ctx: click.Context) -> str | None:
        return "explore" if ctx.invoked_subcommand in EXPLORE else None


@click.group(cls=CacheCommands, context_settings={"help_option_names": HELP})
@click.version_option(featurecache.__version__, prog_name="fcache")
def main() -> None:
    """Run frozen encoders once; keep their tokens in a store that is never stale and never torn."""


for _command in (command for module in MODULES for command in module.COMMANDS):
    main.add_command(_command)
