"""Export a run as a Hugging Face folder that answers on raw clips without this package, and prove that it does."""
