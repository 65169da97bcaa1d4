"""`python -m fusion_train`, the same as `fusion-train`; for launchers that start a module, such as torchrun."""

from fusion_train.cli import main

main(prog_name="fusion-train")
