"""`fusion-train export` under its older name, run from a checkout: python tools/export_e2e.py --run RUN --out DIR."""

from __future__ import annotations

from featurecache.console import TrainerTool
from fusion_train.cli.export import export

main = TrainerTool(
    "export_e2e.py",
    params=export.params,
    callback=export.callback,
    help=export.help,
    context_settings={"max_content_width": 100},
)

if __name__ == "__main__":
    main()
