"""Training: from a configuration, a store and a clip list to a run's folder.

trainer           the loop over steps, for one run or for several on one base; training_run: one run in it
step              one optimizer step: loss, optimizer, averaging, parallel, devices
callbacks         a user's own loss, logger or stop rule
sample_stream     the samples of every step; shared_base: run contexts that share a base
resume            the start and the resumption of a run; clip_list_changes, non_finite_steps, verify_resume
validation        scores on held-out clips
metrics_logger    metrics.jsonl and trackers, from step_metrics; run_report: the page about a run
"""
