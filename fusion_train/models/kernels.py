"""Whether torch.compile can make kernels on this machine.

It writes C++ for a CPU and Triton for a GPU; triton compiles its launcher with a C compiler at first use.
Source: `torch/_inductor/cpp_builder.py`; `triton/runtime/build.py`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

COMPILERS = {"cpu": ("CXX", "C++", ("g++", "clang++", "c++")), "cuda": ("CC", "C", ("gcc", "clang", "cc"))}
"""Device type -> environment variable, language and usual names of the compiler."""


def compiles(setting: bool | None, device_type: str) -> bool:
    """Return whether `optim.compile` compiles on a device of this type; null does on a GPU that has what it needs."""
    return setting if setting is not None else device_type == "cuda" and missing_for_kernels(device_type) is None


def missing_for_kernels(device_type: str) -> str | None:
    """Return what torch.compile lacks to make kernels for a device of this type; None: nothing that is looked for."""
    if device_type not in COMPILERS:
        return None
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton"
    variable, language, names = COMPILERS[device_type]
    if os.environ.get(variable) or any(shutil.which(name) for name in names):
        return None
    return f"a {language} compiler ({' or '.join(names[:2])})"
