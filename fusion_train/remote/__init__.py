"""The code of an exported model: what `AutoModelForCausalLM` and `AutoProcessor` run from the exported folder.

These modules import the encoders, the fusion and the prompt that trained the model. The exporter copies those modules
beside them, so the exported model runs the same code without this package. They import only packages that a machine
with torch, transformers, PyAV, NumPy and Pillow has. `integrity` is not copied: it checks an exported folder from here.
"""
