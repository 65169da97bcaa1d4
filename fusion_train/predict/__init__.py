"""Ask an exported model about clips: from files to answers, and what the model looked at.

    files ─ clips ─▶ clip list ─ pipeline ─▶ decoded ─ encoded ─ answered ─▶ ClipAnswer ─ answer_file ─▶ JSON lines
                                                                         └─ evidence ─ picture ─▶ PNG

It knows exported folders alone: no run, no store.
"""
