"""One module a subject; see tools/bench.py."""
