"""Train a run: one loop, and what it calls.

train         the loop, read top to bottom          step, optimizer, averaging   one step of the trained parts
devices       where a model lies, how it computes   parallel, memory_budget      several processes; what fits
continuing    where a run begins and goes on        journal, tally, trackers, held_out, run_report   what is seen of it
diverged      a step kept for replay                verify_resume                the proof that resuming is exact
probing       the stage without a language model
"""
