"""`python -m featurecache`, the same as `fcache`."""

from featurecache.cli import main

main(prog_name="fcache")
