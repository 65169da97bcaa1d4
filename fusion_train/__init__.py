"""fusion_train: a fusion adapter and LoRA trained from cached tensors, at the speed of the LLM."""

__version__ = "0.1.0"
