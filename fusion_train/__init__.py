"""fusion_train: train a fusion adapter and LoRA from cached features, at the speed of the language model."""

import logging

# peft imports bitsandbytes if it is installed, and bitsandbytes warns that its faster 4-bit kernel for CPUs is missing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.2.0"
