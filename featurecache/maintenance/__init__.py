"""Stores in use: verify, repair, retry, remove what is orphaned, compare, convert, describe."""
