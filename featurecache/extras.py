"""Packages that only some commands need, and what to say of one that is missing or cannot be imported."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

from featurecache.errors import BrokenPackageError, FeatureCacheError, MissingExtraError

DISTRIBUTION = "featurecache"
MODULE_OF = {
    "faiss-cpu": "faiss",
    "opencv-python-headless": "cv2",
    "pillow": "PIL",
    "pytest-xdist": "xdist",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}
"""Modules of distributions that are named otherwise; only those that an extra brings."""
REQUIREMENT = re.compile(r"""(?P<name>[A-Za-z0-9._-]+)[^;]*;.*\bextra == ['"](?P<extra>[^'"]+)['"]""")
"""A line `Requires-Dist` of an extra: `pyarrow>=16; extra == 'parquet'`."""
PLUGIN_GROUPS = ("featurecache.encoders", "featurecache.importers", "fusion_train.fusions")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def require(extra: str, *modules: str, subject: str) -> None:
    """Raise MissingExtraError where one of `modules` is not installed."""
    missing = [module for module in modules if not _installed(module)]
    if missing:
        raise MissingExtraError(
            subject,
            expected=", ".join(modules),
            got=f"no {', '.join(missing)}",
            next_step=f"pip install 'featurecache[{extra}]'.",
        )


def require_all(extra: str, subject: str) -> None:
    """Raise MissingExtraError where a package of an extra is not installed."""
    require(extra, *sorted(_extras().get(extra, ())), subject=subject)


def import_failure(error: BaseException, extra: str | None, subject: str) -> FeatureCacheError | None:
    """Return the error to show for an exception that began in an import: an extra's module that is missing, or another
    project's package that is installed and cannot be imported. None for any other exception.

    Libraries import on demand and wrap what goes wrong, so that the exception at the end of the chain decides. Of
    several extras that bring a module, the error names `extra` if it is one of them, else the one with the fewest
    modules.
    """
    causes = list(_causes(error))
    root = causes[-1]
    if isinstance(root, ModuleNotFoundError) and root.name:
        missing = root.name.partition(".")[0]
        extras = {name: modules for name, modules in _extras().items() if missing in modules}
        if not extras:
            return None
        chosen = extra if extra in extras else min(extras, key=lambda name: (len(extras[name]), name))
        return MissingExtraError(
            subject, expected=root.name, got="no such package", next_step=f"pip install 'featurecache[{chosen}]'."
        )
    package = _importing(root)
    if package is None:
        return None
    reason = (str(root).splitlines() or [type(root).__name__])[0]
    return BrokenPackageError(
        f"{package} {_version(package)}",
        expected=f"a build that fits torch {_version('torch')}",
        got=f'"{reason}" where it is imported',
        next_step=_mend(package),
    )


def _mend(package: str) -> str:
    if package != "torchvision":
        return f"Install one that fits, or remove it: pip uninstall {package}."
    step = "Nothing here needs it: pip uninstall torchvision."
    torch = _version("torch")
    minor = torch.split(".")[1] if torch.startswith("2.") else None
    if minor is None or not torch.endswith("+cpu"):
        return step
    fitting = f"torchvision==0.{int(minor) + 15}.*"  # as the two have been numbered since torch 2.0
    return f"{step} Or, for other programs: pip install --force-reinstall --no-deps {fitting} --index-url {CPU_INDEX}"


def _installed(module: str) -> bool:
    """Whether it can be found; a folder of that name in the working directory, such as wandb/, is no package."""
    spec = find_spec(module)
    return spec is not None and not (spec.origin is None and spec.submodule_search_locations)


def _extras() -> dict[str, set[str]]:
    """Return the modules of each extra, from the metadata of the installed package; empty where it is not installed.

    Extras that include others (`featurecache[encode]`) are written out in the metadata.
    """
    modules: dict[str, set[str]] = {}
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return modules
    for match in filter(None, map(REQUIREMENT.match, lines)):
        name = match["name"]
        if not name.startswith("types-"):  # types for mypy: no module
            modules.setdefault(match["extra"], set()).add(MODULE_OF.get(name, name.replace("-", "_")))
    return modules


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _importing(error: BaseException) -> str | None:
    """The package, of another project, whose module was running when `error` rose; None where none was."""
    running = [
        frame.f_globals.get("__name__", "")
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "<module>"
    ]
    package = running[-1].partition(".")[0] if running else ""
    plugins = {
        point.module.partition(".")[0] for group in PLUGIN_GROUPS for point in metadata.entry_points(group=group)
    }
    if not package or package in plugins | sys.stdlib_module_names:  # an error in somebody's own code is shown whole
        return None
    return package if package in metadata.packages_distributions() else None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of an unknown release"
