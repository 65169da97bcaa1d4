"""The frozen language model: loading, checks of its family, quantisation."""
