"""Ask an exported model about clips: from media files to answers, with evidence of what the model relied on.

    files ─ request ─▶ clip list ─ pipeline ─▶ decode ─ encode ─ answer ─▶ ClipAnswer ─ answer_file ─▶ JSON lines
                                                                              └─ evidence ─ picture ─▶ PNG

These modules read exported folders only; they know no run and no store.
"""
