"""Cross-validation: each fold is a run of its own in one folder, and the held-out answers are scored together.

`division` divides the clips, `checks` refuses folds that cannot be trained before the first one is, `running` trains
and asks them and continues after a stop, `results` reads a folder and computes its scores, `report` shows them.
"""
