"""What a run costs, before anything is loaded: sizes read off a model without weights, arithmetic, memory, hours."""
