"""`python -m featurecache.cli`."""

from featurecache.cli import main

main()
