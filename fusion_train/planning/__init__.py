"""Predict what a run costs before anything is loaded: sizes of the model, arithmetic, memory and hours."""
