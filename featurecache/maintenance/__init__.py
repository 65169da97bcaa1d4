"""Maintenance of stores: verify, repair, retry, remove leftovers, compare, convert, describe."""
