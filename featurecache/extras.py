"""Optional packages (extras): check that they are installed, and explain why an import failed."""

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
"""Module names of distributions of extras, where the two names differ."""
REQUIREMENT = re.compile(r"""(?P<name>[A-Za-z0-9._-]+)[^;]*;.*\bextra == ['"](?P<extra>[^'"]+)['"]""")
"""A line `Requires-Dist` of an extra: `pyarrow>=16; extra == 'parquet'`."""
PLUGIN_GROUPS = ("featurecache.encoders", "featurecache.importers", "fusion_train.fusions")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def require(extra: str, *modules: str, subject: str) -> None:
    """Raise MissingExtraError if one of `modules` is not installed."""
    missing = [module for module in modules if not _installed(module)]
    if missing:
        raise MissingExtraError(
            subject,
            expected=", ".join(modules),
            got=f"no {', '.join(missing)}",
            next_step=f"pip install 'featurecache[{extra}]'.",
        )


def require_all(extra: str, subject: str) -> None:
    """Raise MissingExtraError if a package of an extra is not installed."""
    require(extra, *sorted(_extras().get(extra, ())), subject=subject)


def import_failure(error: BaseException, extra: str | None, subject: str) -> FeatureCacheError | None:
    """Return the error to show for an exception that came from a failed import; None for any other exception.

    The import failed because a module of an extra is missing, or because another project's installed package is broken.
    Libraries import lazily and wrap exceptions, so the last exception of the chain of causes decides. If several extras
    contain the missing module, the message names `extra` if it is one of them, otherwise the one with the fewest
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
    package = _imported_package(root)
    if package is None:
        return None
    reason = (str(root).splitlines() or [type(root).__name__])[0]
    return BrokenPackageError(
        f"{package} {_version(package)}",
        expected=f"a build that fits torch {_version('torch')}",
        got=f'"{reason}" where it is imported',
        next_step=_repair_step(package),
    )


def _repair_step(package: str) -> str:
    """Return how to repair a package that cannot be imported."""
    if package != "torchvision":
        return f"Install one that fits, or remove it: pip uninstall {package}."
    step = "This project does not need it: pip uninstall torchvision."
    torch = _version("torch")
    minor = torch.split(".")[1] if torch.startswith("2.") else None
    if minor is None or not torch.endswith("+cpu"):
        return step
    fitting = f"torchvision==0.{int(minor) + 15}.*"  # torchvision 0.(N + 15) belongs to torch 2.N
    return f"{step} Or, for other programs: pip install --force-reinstall --no-deps {fitting} --index-url {CPU_INDEX}"


def _installed(module: str) -> bool:
    """Return whether a module can be imported. A mere folder of its name, such as wandb/, does not count."""
    spec = find_spec(module)
    return spec is not None and not (spec.origin is None and spec.submodule_search_locations)


def _extras() -> dict[str, set[str]]:
    """Return the modules of each extra, from the metadata of the installed package; empty if it is not installed.

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
    """Yield an exception and the chain of its causes."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _imported_package(error: BaseException) -> str | None:
    """Return the installed package of another project whose import raised `error`; None if there is none."""
    running = [
        frame.f_globals.get("__name__", "")
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "<module>"
    ]
    package = running[-1].partition(".")[0] if running else ""
    plugins = {
        point.module.partition(".")[0] for group in PLUGIN_GROUPS for point in metadata.entry_points(group=group)
    }
    if (
        not package or package in plugins | sys.stdlib_module_names
    ):  # an error in the user's own code is shown with its traceback
        return None
    return package if package in metadata.packages_distributions() else None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "of an unknown release"
