"""fusion_train: a fusion adapter and LoRA trained from cached tensors, at the speed of the LLM."""

import logging

# peft imports bitsandbytes where it is installed, which says at once that a faster 4-bit kernel for CPUs is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
