"""Packages that only some commands need, and what to say of one that is missing or cannot be imported."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

from featurecache.errors import BrokenPackageError, FeatureCacheError, MissingExtraError

DISTRIBUTION = "featurecache"
MODULE_OF = {"opencv-python-headless": "cv2", "pytest-xdist": "xdist", "scikit-learn": "sklearn"}
"""Modules of distributions that are named otherwise; only those that an extra brings."""
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
    require(extra, *(module for module, extras in _modules().items() if extra in extras), subject=subject)


def import_failure(error: BaseException, extra: str, subject: str) -> FeatureCacheError | None:
    """Return the error to show for an exception that began in an import: an extra's module that is missing, or another
    project's package that is installed and cannot be imported. None for any other exception.

    Libraries import on demand and wrap what goes wrong, so that the exception at the end of the chain decides. Of
    several extras that bring a module, `extra` is named if it is one of them.
    """
    causes = list(_causes(error))
    root = causes[-1]
    if isinstance(root, ModuleNotFoundError) and root.name:
        extras = _modules().get(root.name.partition(".")[0], [])
        if not extras:
            return None
        chosen = extra if extra in extras else extras[0]
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


def _modules() -> dict[str, list[str]]:
    """Modules of all extras, each with the extras that bring it."""
    from packaging.requirements import Requirement  # transformers needs it

    modules: dict[str, list[str]] = {}
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return modules  # sources that were never installed
    requirements = [Requirement(line) for line in about.get_all("Requires-Dist") or ()]
    for extra in about.get_all("Provides-Extra") or ():
        for needed in requirements:
            if needed.marker and needed.marker.evaluate({"extra": extra}) and needed.name != DISTRIBUTION:
                module = MODULE_OF.get(needed.name, needed.name.replace("-", "_"))
                modules.setdefault(module, []).append(extra)
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
