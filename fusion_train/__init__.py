"""fusion_train: a fusion adapter and LoRA trained from cached tensors, at the speed of the LLM."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fusion_train.training.callbacks import Callback

# peft imports bitsandbytes where it is installed, which says at once that a faster 4-bit kernel for CPUs is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
__all__ = ["Callback"]


def __getattr__(name: str) -> Any:
    """Import `Callback` when it is asked for: `import fusion_train` alone loads no torch."""
    if name == "Callback":
        from fusion_train.training.callbacks import Callback

        return Callback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
