"""Clip lists: the clips of a dataset, the paths of their media, and their labels and texts."""
