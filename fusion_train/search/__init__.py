"""Search over features, heads and hyperparameters: thousands of small models on cached features, trained stacked.

search_file -> utterance_vectors, parts -> draws -> rungs (stacked_training) -> trial_results -> selection -> report
"""
