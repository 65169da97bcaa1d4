"""`fcache`: the command line of featurecache. Each command reads its options, calls the library, and prints.

Exit codes: 0 done; 1 done with failures that are listed, or stopped and resumable; 2 wrong use.
"""

from __future__ import annotations

import click

import featurecache
from featurecache.cli import audit as cli_audit
from featurecache.cli import extract as cli_extract
from featurecache.cli import importing as cli_import
from featurecache.cli import inspect_store as cli_look
from featurecache.cli import maintenance as cli_store
from featurecache.cli import similarity as cli_similarity
from featurecache.console import HELP, CommandGroup

GROUPS = (cli_extract, cli_import, cli_look, cli_store, cli_similarity, cli_audit)
EXPLORE = {command.name for group in (cli_similarity, cli_audit) for command in group.COMMANDS}
"""Commands for which the extra `explore` brings all that they need."""


class CacheCommands(CommandGroup):
    """All commands of the cache."""

    def suggested_extra(self, ctx: click.Context) -> str | None:
        return "explore" if ctx.invoked_subcommand in EXPLORE else None


@click.group(cls=CacheCommands, context_settings={"help_option_names": HELP})
@click.version_option(featurecache.__version__, prog_name="fcache")
def main() -> None:
    """Run frozen encoders once; keep their tokens in a store that is never stale and never torn."""


for _command in (command for group in GROUPS for command in group.COMMANDS):
    main.add_command(_command)
