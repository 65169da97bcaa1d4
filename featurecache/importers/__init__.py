"""Importers: other layouts and datasets, read into stores and clip lists."""
