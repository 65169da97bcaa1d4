"""Ask a model questions about held-out clips, keep its answers, and score them.

    evaluate ─▶ predictions ─▶ JSON lines ─ prediction_rows, scoring ─▶ scores ─ score_report, comparison ─▶ reports

`benchmarks` defines which questions a benchmark asks and how its answers are scored; `benchmark_runs` runs one.
`wording` decides the prompt of each set. `text_models` are language models that rate or read answers; `rating` is the
same by people. `figures` draws loss curves and confusion matrices.
"""
