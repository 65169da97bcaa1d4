"""Stores: where tokens are kept."""
