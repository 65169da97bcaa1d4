"""Ask a model, keep its answers, score them.

    evaluate ─▶ answers ─ asking, bench_runs ─▶ JSON lines ─ prediction_rows, scoring ─▶ scores ─ score_report, contrast

benches   what a bench asks and how it is scored   text_models, judging   language models that rate or read answers
rating    human ratings                            figures                pictures of the reports
"""
