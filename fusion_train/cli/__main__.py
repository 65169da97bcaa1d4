"""`python -m fusion_train.cli`."""

from fusion_train.cli import main

main()
