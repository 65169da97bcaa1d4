"""Extraction: clips in, committed shards of tokens out."""
